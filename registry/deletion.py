"""Deleting models and versions: the bytes are told beforehand, freed after a grace period, and undoable until then.

What is deleted are the files. The commit stays, with who made it, when, from what and how good it was, for the log of
refs must go on answering what was in production.
"""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from dlplatform.objects.errors import MissingObject
from dlplatform.objects.grace import Preview, bring_back

from . import services
from .availability import require_files, require_living
from .models import ModelVersion, RegisteredModel
from .reachability import bytes_freed_by_deleting, objects_of

NAMED_ADAPTERS = 5
# Whoever stands on versions adds here what it has against deleting some; the registry itself knows none of them.
further_obstacles: "list[Callable[[QuerySet[ModelVersion]], list[str]]]" = []

# --- versions -----------------------------------------------------------------------------------------


def preview_of_version(version: ModelVersion) -> Preview:
    return Preview(bytes_freed_by_deleting([version], version.model.organization_id), 1, obstacles=_obstacles(version))


def _obstacles(version: ModelVersion) -> list[str]:
    """Names by which the version can still be asked for."""
    found = [f"the {ref.kind} “{ref.name}” points to it" for ref in version.refs.order_by("kind", "name")]
    if hasattr(version, "release"):
        found.append(f"it is released as {version.release.number}")
    adapters = version.adapters.filter(deleted_at=None).select_related("model").order_by("created_at")[:NAMED_ADAPTERS]
    found += [f"{adapter} is an adapter over it" for adapter in adapters]
    return found + _further(ModelVersion.objects.filter(pk=version.pk))


def _further(versions: "QuerySet[ModelVersion]") -> list[str]:
    return [sentence for obstacles in further_obstacles for sentence in obstacles(versions)]


@transaction.atomic
def delete_version(*, actor: User, version: ModelVersion) -> ModelVersion:
    """Delete the files of a version that no name stands for any more. Raises Conflict."""
    require(actor, "model.delete", version.model)
    RegisteredModel.objects.select_for_update().get(pk=version.model_id)
    version.refresh_from_db(fields=["deleted_at"])
    require_files(version)
    if obstacles := _obstacles(version):
        raise Conflict(f"v{version.number} stays: {'; '.join(obstacles)}.", code="in_use")
    ModelVersion.objects.filter(pk=version.pk).update(deleted_at=timezone.now())
    audit.record(actor, "version.delete", version, version.model.organization, number=version.number)
    version.refresh_from_db(fields=["deleted_at"])
    return version


@transaction.atomic
def restore_version(*, actor: User, version: ModelVersion) -> ModelVersion:
    """Undo the deletion of a version's files. Raises Conflict once they are gone."""
    require(actor, "model.delete", version.model)
    RegisteredModel.objects.select_for_update().get(pk=version.model_id)
    version.refresh_from_db(fields=["deleted_at"])
    require_living(version.model)
    if version.deleted_at is not None:
        _bring_back(ModelVersion.objects.filter(pk=version.pk), version.model.organization_id, version.deleted_at)
        audit.record(actor, "version.restore", version, version.model.organization, number=version.number)
        version.deleted_at = None
    return version


# --- models -------------------------------------------------------------------------------------------


def preview_of_model(model: RegisteredModel) -> Preview:
    versions = list(model.versions.filter(deleted_at=None).only("pk"))
    freed = bytes_freed_by_deleting(versions, model.organization_id)
    return Preview(freed, len(versions), obstacles=_further(model.versions.all()))


@transaction.atomic
def delete_model(*, actor: User, model: RegisteredModel) -> RegisteredModel:
    """Take a model out of the lists and delete the files of all its versions. Raises Conflict when that was done."""
    require(actor, "model.delete", model)
    row = RegisteredModel.objects.select_for_update().get(pk=model.pk)
    require_living(row)
    _require_no_adapters_elsewhere(row)
    if obstacles := _further(row.versions.all()):
        raise Conflict(f"“{row.name}” stays: {'; '.join(obstacles)}.", code="in_use")
    row.deleted_at = timezone.now()
    row.archived_at = row.archived_at or row.deleted_at
    row.save(update_fields=["deleted_at", "archived_at"])
    row.versions.filter(deleted_at=None).update(deleted_at=row.deleted_at)
    audit.record(actor, "model.delete", row, row.organization, name=row.name)
    return row


def _require_no_adapters_elsewhere(model: RegisteredModel) -> None:
    needed = ModelVersion.objects.filter(base__model=model, deleted_at=None).exclude(model=model)
    if first := needed.select_related("model").first():
        raise Conflict(f"“{model.name}” stays: {first} is an adapter over a version of it.", code="in_use")


@transaction.atomic
def restore_model(*, actor: User, model: RegisteredModel) -> RegisteredModel:
    """Bring a model back into the lists, and what was deleted with it. Raises Conflict once its files are gone."""
    require(actor, "model.delete", model)
    row = RegisteredModel.objects.select_for_update().get(pk=model.pk)
    if row.deleted_at is not None:
        _bring_back(row.versions.filter(deleted_at=row.deleted_at), row.organization_id, row.deleted_at)
        row.deleted_at = None
        row.save(update_fields=["deleted_at"])
    return services.set_model_archived(actor=actor, model=row, archived=False)


def _bring_back(versions: "QuerySet[ModelVersion]", organization: UUID, deleted_at: datetime) -> None:
    try:
        bring_back("models", organization, objects_of(versions), deleted_at)
    except MissingObject:
        raise Conflict("The files are gone: the time to bring them back is over.", code="gone") from None
    versions.update(deleted_at=None)
