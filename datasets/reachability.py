"""Which objects the datasets refer to, and what deleting versions would free."""

from collections.abc import Collection
from uuid import UUID

from django.db.models import QuerySet

from dlplatform.objects.collection import bytes_freed

from .models import DatasetVersion


def reachable_objects(organization: UUID) -> set[str]:
    """The ids of all uploads and parts but those of deleted versions; archiving loses nothing."""
    return objects_of(_kept(organization))


def bytes_freed_by_deleting(versions: Collection[DatasetVersion], organization: UUID) -> int:
    """Stored bytes that only these versions need; the other versions of the organization stay as they are."""
    chosen = DatasetVersion.objects.filter(pk__in=[version.pk for version in versions])
    others = _kept(organization).exclude(pk__in=chosen)
    return bytes_freed("datasets", organization, deleting=objects_of(chosen), keeping=objects_of(others))


def _kept(organization: UUID) -> "QuerySet[DatasetVersion]":
    return DatasetVersion.objects.filter(dataset__organization_id=organization).exclude(
        state=DatasetVersion.State.DELETED
    )


def objects_of(versions: "QuerySet[DatasetVersion]") -> set[str]:
    found: set[str] = set()
    for source, parts in versions.values_list("source_sha256", "parts").iterator():
        found |= {source, *(part["sha256"] for part in parts)}
    return found
