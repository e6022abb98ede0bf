"""Deleting datasets and versions: the bytes are told beforehand, freed after a grace period, and undoable until then.

What is deleted are the rows. The version stays, with its columns, its profile and what was made from it.
"""

from datetime import datetime

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from dlplatform.objects.errors import CorruptObject, MissingObject
from dlplatform.objects.grace import Preview, bring_back

from . import services
from .models import Dataset, DatasetVersion
from .reachability import bytes_freed_by_deleting, objects_of

State = DatasetVersion.State


# --- versions -----------------------------------------------------------------------------------------


def preview_of_version(version: DatasetVersion) -> Preview:
    obstacles = [] if version.ended else [f"it is {version.state}; cancel it first"]
    return Preview(bytes_freed_by_deleting([version], version.dataset.organization_id), 1, obstacles)


@transaction.atomic
def delete_version(*, actor: User, version: DatasetVersion) -> DatasetVersion:
    """Delete the rows of a version. Raises Conflict while it is being read, and when it was deleted already."""
    require(actor, "dataset.delete", version)
    row = DatasetVersion.objects.select_for_update(of=("self",)).select_related("dataset").get(pk=version.pk)
    if row.state == State.DELETED:
        raise Conflict(f"v{row.number} is deleted already.", code="deleted")
    if not row.ended:
        raise Conflict(f"v{row.number} is {row.state}; cancel it first.", code="in_use")
    _delete(DatasetVersion.objects.filter(pk=row.pk), timezone.now())
    audit.record(actor, "dataset_version.delete", row, row.dataset.organization, number=row.number)
    return _announced(row)


@transaction.atomic
def restore_version(*, actor: User, version: DatasetVersion) -> DatasetVersion:
    """Undo the deletion of a version's rows. Raises Conflict once they are gone."""
    require(actor, "dataset.delete", version)
    row = DatasetVersion.objects.select_for_update(of=("self",)).select_related("dataset").get(pk=version.pk)
    services.require_living(row.dataset)
    if row.state == State.DELETED:
        _bring_back(row.dataset, DatasetVersion.objects.filter(pk=row.pk), row.deleted_at)
        audit.record(actor, "dataset_version.restore", row, row.dataset.organization, number=row.number)
    return _announced(row)


def _announced(row: DatasetVersion) -> DatasetVersion:
    row.refresh_from_db(fields=["state", "deleted_at"])
    services.announce(row)
    return row


# --- datasets -----------------------------------------------------------------------------------------


def preview_of_dataset(dataset: Dataset) -> Preview:
    versions = list(dataset.versions.exclude(state=State.DELETED).only("pk", "state"))
    working = [version for version in versions if not version.ended]
    obstacles = ["a version is being read; cancel that first"] if working else []
    return Preview(bytes_freed_by_deleting(versions, dataset.organization_id), len(versions), obstacles)


@transaction.atomic
def delete_dataset(*, actor: User, dataset: Dataset) -> Dataset:
    """Take a dataset out of the lists and delete the rows of all its versions. Raises Conflict."""
    require(actor, "dataset.delete", dataset)
    row = Dataset.objects.select_for_update().get(pk=dataset.pk)
    services.require_living(row)
    if row.versions.exclude(state__in=DatasetVersion.ENDED).exists():
        raise Conflict("A version is being read; cancel that first.", code="in_use")
    row.deleted_at = timezone.now()
    row.archived_at = row.archived_at or row.deleted_at
    row.save(update_fields=["deleted_at", "archived_at"])
    _delete(row.versions.exclude(state=State.DELETED), row.deleted_at)
    audit.record(actor, "dataset.delete", row, row.organization, name=row.name)
    return row


@transaction.atomic
def restore_dataset(*, actor: User, dataset: Dataset) -> Dataset:
    """Bring a dataset back into the lists, and what was deleted with it. Raises Conflict once its rows are gone."""
    require(actor, "dataset.delete", dataset)
    row = Dataset.objects.select_for_update().get(pk=dataset.pk)
    if row.deleted_at is not None:
        _bring_back(row, row.versions.filter(deleted_at=row.deleted_at), row.deleted_at)
        row.deleted_at = None
        row.save(update_fields=["deleted_at"])
    return services.set_dataset_archived(actor=actor, dataset=row, archived=False)


def _delete(versions: "QuerySet[DatasetVersion]", moment: datetime) -> None:
    versions.update(state=State.DELETED, deleted_at=moment)


def _bring_back(dataset: Dataset, versions: "QuerySet[DatasetVersion]", deleted_at: datetime | None) -> None:
    assert deleted_at is not None
    try:
        wanted = objects_of(versions, dataset.organization_id)
        bring_back("datasets", dataset.organization_id, wanted, deleted_at)
    except (MissingObject, CorruptObject):
        raise Conflict("The rows are gone: the time to bring them back is over.", code="gone") from None
    for version in versions:
        version.state = _state_before(version)
        version.deleted_at = None
        version.save(update_fields=["state", "deleted_at"])


def _state_before(version: DatasetVersion) -> str:
    if version.rows is not None:
        return State.READY
    return State.REJECTED if version.problems else State.CANCELLED
