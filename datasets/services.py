"""What changes in datasets. The only writers besides the worker that ingests a version."""

from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from dlplatform import events, jobs
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import Organization, User
from dlplatform.accounts.names import name_taken, unique_name
from dlplatform.api import Conflict
from dlplatform.objects.store import ObjectIdentity, ObjectStore

from .ingestion.names import clean_filename
from .models import Dataset, DatasetVersion


def object_store(organization: UUID) -> ObjectStore:
    return ObjectStore("datasets", organization)


@transaction.atomic
def create_dataset(*, actor: User, organization: Organization, name: str, description: str = "") -> Dataset:
    require(actor, "dataset.write", organization)
    _check_name_is_free(organization, name)
    with unique_name(_taken(name)):
        dataset = Dataset.objects.create(
            organization=organization, name=name, description=description, created_by=actor
        )
    audit.record(actor, "dataset.create", dataset, organization, name=name)
    return dataset


def require_living(dataset: Dataset) -> None:
    """Raise Conflict for a dataset that was deleted."""
    if dataset.deleted_at is not None:
        raise Conflict(f"The dataset “{dataset.name}” was deleted; bring it back first.", code="deleted")


def _check_name_is_free(organization: Organization, name: str, but: Dataset | None = None) -> None:
    namesakes = Dataset.objects.filter(organization=organization, name=name, archived_at=None)
    if but is not None:
        namesakes = namesakes.exclude(pk=but.pk)
    if namesakes.exists():
        raise name_taken(_taken(name))


def _taken(name: str) -> str:
    return f"There is a dataset “{name}” already; upload a new version of it, or choose another name."


@transaction.atomic
def update_dataset(*, actor: User, dataset: Dataset, **changes: str) -> Dataset:
    """Change name or description."""
    require(actor, "dataset.write", dataset)
    if "name" in changes:
        _check_name_is_free(dataset.organization, changes["name"], but=dataset)
    for field, value in changes.items():
        setattr(dataset, field, value)
    with unique_name(_taken(dataset.name)):
        dataset.save(update_fields=list(changes))
    audit.record(actor, "dataset.change", dataset, dataset.organization, **changes)
    return dataset


@transaction.atomic
def set_dataset_archived(*, actor: User, dataset: Dataset, archived: bool) -> Dataset:
    """Take a dataset out of the lists, or bring it back; nothing is lost either way."""
    require(actor, "dataset.delete", dataset)
    if not archived:
        require_living(dataset)
        _check_name_is_free(dataset.organization, dataset.name, but=dataset)
    dataset.archived_at = timezone.now() if archived else None
    with unique_name(_taken(dataset.name)):
        dataset.save(update_fields=["archived_at"])
    audit.record(actor, "dataset.archive" if archived else "dataset.restore", dataset, dataset.organization)
    return dataset


@transaction.atomic
def create_version(
    *, actor: User, dataset: Dataset, stored: ObjectIdentity, filename: str, content_type: str
) -> DatasetVersion:
    """A new version of an uploaded file that is in the object store already; queued for ingestion."""
    require(actor, "dataset.write", dataset)
    row = Dataset.objects.select_for_update().get(pk=dataset.pk)
    require_living(row)
    if row.archived_at is not None:
        raise Conflict(f"The dataset “{row.name}” is archived; bring it back first.", code="archived")
    newest = dataset.versions.order_by("-number").values_list("number", flat=True).first() or 0
    version = DatasetVersion.objects.create(
        dataset=dataset,
        number=newest + 1,
        created_by=actor,
        filename=clean_filename(filename),
        content_type=content_type[:120],
        source_sha256=stored.sha256,
        source_bytes=stored.size,
    )
    audit.record(actor, "dataset_version.create", version, dataset.organization, number=version.number)
    jobs.enqueue(version)
    announce(version)
    return version


@transaction.atomic
def cancel_version(*, actor: User, version: DatasetVersion) -> DatasetVersion:
    """Stop an ingestion: at once while queued, within a second while it runs."""
    require(actor, "dataset.write", version)
    version = DatasetVersion.objects.select_for_update(of=("self",)).get(pk=version.pk)
    if version.ended:
        raise Conflict(f"This version is {version.state} already.", code="ended")
    DatasetVersion.objects.filter(pk=version.pk).update(cancel_requested_at=Now())
    if version.state == DatasetVersion.State.QUEUED:
        end_unheld(version, DatasetVersion.State.CANCELLED)
    audit.record(actor, "dataset_version.cancel", version, version.dataset.organization)
    version.refresh_from_db()
    return version


def end_unheld(version: DatasetVersion, state: str, problems: list[dict[str, Any]] | None = None) -> None:
    """End a version that no worker holds any more."""
    if version.end_unheld(state, problems=problems or []):
        version.state = state
        announce(version)


def give_up(version: DatasetVersion) -> None:
    """The reconciler's verdict on an abandoned ingestion that must not be tried again."""
    if version.cancel_requested_at:
        end_unheld(version, DatasetVersion.State.CANCELLED)
        return
    detail = (
        "The worker was lost again and again while reading this file. Check the machine's memory, then upload again."
    )
    problem = {"row": None, "column": None, "code": "worker_lost", "severity": "error", "detail": detail}
    end_unheld(version, DatasetVersion.State.REJECTED, [problem])


def announce(version: DatasetVersion) -> None:
    """A hint to the organization's lists and pages, once the change is committed."""
    organization, identifier = version.dataset.organization_id, version.pk
    state, name = version.state, version.dataset.name
    transaction.on_commit(lambda: events.publish_state(organization, "dataset_version", identifier, state, name))


def local_parts(version: DatasetVersion) -> list[Path]:
    """The version's Parquet parts as files of this machine, in row order; fetched once where they lie elsewhere."""
    store = object_store(version.dataset.organization_id)
    return [_local_part(store, part["sha256"]) for part in version.parts]


def _local_part(store: ObjectStore, sha256: str) -> Path:
    if (path := store.local_path(sha256)) is not None:
        return path
    cached = settings.CACHE_PATH / "parts" / store.prefix / f"{sha256}.parquet"
    if not cached.exists():
        store.fetch(sha256, cached)
    return cached
