"""Which objects the datasets refer to, and what deleting versions would free."""

from collections.abc import Collection
from uuid import UUID

from django.db.models import QuerySet

from dlplatform.objects.collection import bytes_freed

from .models import DatasetVersion


def reachable_objects(organization: UUID) -> set[str]:
    """The ids of all uploads and parts, those of archived datasets included: archiving loses nothing."""
    return _ids(DatasetVersion.objects.filter(dataset__organization_id=organization))


def bytes_freed_by_deleting(versions: Collection[DatasetVersion], organization: UUID) -> int:
    """Stored bytes that only these versions need; the other versions of the organization stay as they are."""
    chosen = DatasetVersion.objects.filter(pk__in=[version.pk for version in versions])
    others = DatasetVersion.objects.filter(dataset__organization_id=organization).exclude(pk__in=chosen)
    return bytes_freed("datasets", organization, deleting=_ids(chosen), keeping=_ids(others))


def _ids(versions: "QuerySet[DatasetVersion]") -> set[str]:
    found: set[str] = set()
    for source, parts in versions.values_list("source_sha256", "parts").iterator():
        found |= {source, *(part["sha256"] for part in parts)}
    return found
