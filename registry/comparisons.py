"""Comparisons of two versions that take a job: asked for, cancelled."""

from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet

from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User

from . import availability
from .models import Comparison, ModelVersion, RegisteredModel


def ready_data(user: User, model: RegisteredModel) -> QuerySet[DatasetVersion]:
    """The dataset versions, the newest first, that a version of the model can be compared or evaluated on."""
    rows: QuerySet[DatasetVersion] = DatasetVersion.objects.visible_to(user).filter(
        dataset__organization=model.organization_id, dataset__archived_at=None, state=DatasetVersion.State.READY
    )
    return (
        rows.select_related("dataset")
        .only("number", "state", "dataset__name", "dataset__organization")
        .order_by("-created_at")
    )


def newest(base: ModelVersion, head: ModelVersion) -> Comparison | None:
    """The last comparison of these two that was asked for."""
    rows = Comparison.objects.filter(base=base, head=head).select_related("dataset_version__dataset")
    return rows.order_by("-created_at").first()


@transaction.atomic
def request_comparison(
    *, actor: User, base: ModelVersion, head: ModelVersion, dataset_version: DatasetVersion | None = None
) -> Comparison:
    """Queue a comparison; one of the same that is there already, waiting, at work or done, is the answer again."""
    require(actor, "model.write", head.model)
    if base.model.organization_id != head.model.organization_id:
        text = "The two versions belong to different organizations."
        raise ValidationError({"base": ValidationError(text, code="invalid")})
    for version in (base, head):
        availability.require_files(version)
    if dataset_version is not None:
        _check_data(dataset_version, head)
    same = Comparison.objects.filter(base=base, head=head, dataset_version=dataset_version)
    found: Comparison | None = same.exclude(state__in=("failed", "cancelled")).first()
    if found is not None:
        return found
    comparison: Comparison = Comparison.objects.create(
        model=head.model, base=base, head=head, dataset_version=dataset_version, created_by=actor
    )
    jobs.enqueue(comparison)
    return comparison


def _check_data(data: DatasetVersion, head: ModelVersion) -> None:
    if data.dataset.organization_id != head.model.organization_id:
        raise _invalid("The model and the data belong to different organizations.", "invalid")
    if data.state != DatasetVersion.State.READY:
        raise _invalid(f"This version is {data.state}; choose one that is ready.", "not_ready")
    known = {column["name"] for column in data.columns}
    lacking = sorted(column["name"] for column in head.signature.get("inputs", []) if column["name"] not in known)
    if lacking:
        raise _invalid(f"The data lacks inputs of v{head.number}: {', '.join(lacking[:10])}.", "missing_columns")


def _invalid(detail: str, code: str) -> ValidationError:
    return ValidationError({"dataset_version": ValidationError(detail, code=code)})


def cancel_comparison(*, actor: User, comparison: Comparison) -> Comparison:
    """Stop it: at once while queued, within a second while it runs."""
    require(actor, "model.write", comparison.model)
    stopped: Comparison = jobs.cancel(comparison)
    return stopped


def failure(code: str, sentence: str, next_step: str) -> dict[str, Any]:
    return {"code": code, "sentence": sentence, "next_step": next_step}
