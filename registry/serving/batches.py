"""Predictions for all rows of a dataset version: asked for, cancelled. The work is in `registry.serving.predicting`."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

from datasets.models import Dataset, DatasetVersion
from dlplatform import jobs
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.engine.schema import reads
from registry.availability import require_files
from registry.models import ModelVersion

from .models import BatchPrediction
from .refusing import refused
from .services import MODEL_FILE

LONGEST_NAME = 120
FOLDER = "batches"


@transaction.atomic
def request_batch(
    *, actor: User, version: ModelVersion, dataset_version: DatasetVersion, name: str = ""
) -> BatchPrediction:
    """Queue it. The rows with their predictions become a version of the dataset ``name``, which is made if there is none.

    Raises PermissionDenied, ValidationError, Conflict.
    """
    organization = version.model.organization
    require(actor, "predict", version.model)
    require(actor, "dataset.write", organization)
    require_files(version)
    if MODEL_FILE not in version.tree:
        raise refused("version", f"v{version.number} has no {MODEL_FILE}: other programs load it.", "model_unusable")
    check_data(version, dataset_version)
    name = (name.strip() or default_name(version, dataset_version))[:LONGEST_NAME]
    target = Dataset.objects.filter(organization=organization, name=name, archived_at=None).first()
    if target is not None:
        require(actor, "dataset.write", target)
    if target is not None and target.pk == dataset_version.dataset_id:
        raise refused("name", "The predictions would become the newest version of their own data.", "invalid")
    batch: BatchPrediction = BatchPrediction.objects.create(
        version=version, dataset_version=dataset_version, name=name, created_by=actor
    )
    audit.record(actor, "batch.request", version.model, organization, version=version.number, dataset=name)
    jobs.enqueue(batch)
    return batch


def default_name(version: ModelVersion, data: DatasetVersion) -> str:
    return f"{data.dataset.name}, predicted by {version.model.name}"


def check_data(version: ModelVersion, data: DatasetVersion) -> None:
    """Refuse data that the version cannot read, naming the columns. Raises ValidationError."""
    if data.dataset.organization_id != version.model.organization_id:
        raise refused("dataset_version", "The model and the data belong to different organizations.", "invalid")
    if data.state != DatasetVersion.State.READY:
        raise refused("dataset_version", f"This version is {data.state}; choose one that is ready.", "not_ready")
    types = {column["name"]: column["type"] for column in data.columns}
    inputs: list[dict[str, Any]] = version.signature.get("inputs", [])
    lacking = sorted(one["name"] for one in inputs if one["name"] not in types)
    if lacking:
        sentence = f"The data lacks inputs of v{version.number}: {', '.join(lacking[:10])}."
        raise refused("dataset_version", sentence, "missing_columns")
    odd = sorted(one["name"] for one in inputs if not reads(one["type"], types[one["name"]]))
    if odd:
        sentence = f"The model reads these columns as another type: {', '.join(odd[:10])}."
        raise refused("dataset_version", sentence, "wrong_types")


def cancel_batch(*, actor: User, batch: BatchPrediction) -> BatchPrediction:
    """Stop it: at once while queued, within a second while it runs."""
    require(actor, "dataset.write", batch.version.model.organization)
    stopped: BatchPrediction = jobs.cancel(batch)
    return stopped


def folder_of(batch: UUID) -> Path:
    """Where its rows are kept until it ends."""
    return Path(settings.JOB_PATH) / FOLDER / str(batch)


def sweep_folders() -> int:
    """Remove what batch predictions that have ended, or are gone, left on this machine; how many did."""
    removed = 0
    for folder in (Path(settings.JOB_PATH) / FOLDER).glob("*"):
        with suppress(ValueError):
            batch = BatchPrediction.objects.filter(pk=UUID(folder.name)).only("state").first()
            if batch is None or batch.ended:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed
