"""Which objects the registry refers to, and what deleting versions would free."""

from collections.abc import Collection
from uuid import UUID

from django.db.models import QuerySet

from dlplatform.objects.collection import bytes_freed

from .models import ModelVersion


def reachable_objects(organization: UUID) -> set[str]:
    """The ids in the trees of all versions but the deleted ones; archiving loses nothing."""
    return objects_of(_kept(organization))


def bytes_freed_by_deleting(versions: Collection[ModelVersion], organization: UUID) -> int:
    """Stored bytes that only these versions need; the other versions of the organization stay as they are."""
    chosen = ModelVersion.objects.filter(pk__in=[version.pk for version in versions])
    others = _kept(organization).exclude(pk__in=chosen)
    return bytes_freed("models", organization, deleting=objects_of(chosen), keeping=objects_of(others))


def _kept(organization: UUID) -> "QuerySet[ModelVersion]":
    return ModelVersion.objects.filter(model__organization_id=organization, deleted_at=None)


def objects_of(versions: "QuerySet[ModelVersion]") -> set[str]:
    trees = versions.values_list("tree", flat=True).iterator()
    return {entry["sha256"] for tree in trees for entry in tree.values()}
