"""Which objects the datasets refer to, and what deleting versions would free."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from dlplatform.objects.collection import bytes_freed
from dlplatform.objects.errors import CorruptObject, MissingObject
from dlplatform.objects.store import ObjectStore

from .images import objects_listed
from .models import DatasetVersion


def reachable_objects(organization: UUID) -> set[str]:
    """The ids of everything that versions need, but for deleted ones; archiving loses nothing.

    Raises MissingObject and CorruptObject when a list of images cannot be read: then nothing may be collected, since
    nobody knows what it named.
    """
    return objects_of(_kept(organization), organization)


def bytes_freed_by_deleting(versions: Collection[DatasetVersion], organization: UUID) -> int:
    """Stored bytes that only these versions need; the other versions of the organization stay as they are."""
    store = ObjectStore("datasets", organization)
    chosen = DatasetVersion.objects.filter(pk__in=[version.pk for version in versions])
    others = _kept(organization).exclude(pk__in=chosen)
    deleting, keeping = (_objects(some, store, strict=False) for some in (chosen, others))
    return bytes_freed("datasets", organization, deleting=deleting, keeping=keeping)


def _kept(organization: UUID) -> "QuerySet[DatasetVersion]":
    return DatasetVersion.objects.filter(dataset__organization_id=organization).exclude(
        state=DatasetVersion.State.DELETED
    )


def objects_of(versions: "QuerySet[DatasetVersion]", organization: UUID) -> set[str]:
    """Uploads, parts, images and their lists. Raises MissingObject and CorruptObject."""
    return _objects(versions, ObjectStore("datasets", organization), strict=True)


def _objects(versions: "QuerySet[DatasetVersion]", store: ObjectStore, *, strict: bool) -> set[str]:
    """An archive is let go once its images are stored: it would hold every one of them a second time."""
    found: set[str] = set()
    listed: dict[str, dict[str, Any]] = {}
    for source, parts, images in versions.values_list("source_sha256", "parts", "images").iterator():
        found |= {part["sha256"] for part in parts}
        if images:
            listed[images["index"]] = images
        else:
            found.add(source)
    for images in listed.values():
        try:
            found |= objects_listed(store, images)
        except (MissingObject, CorruptObject):
            if strict:
                raise
    return found
