"""What turned out to be right: taken late, repeatedly or by the list, and what it says of each variant."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models.expressions import RawSQL
from django.utils import timezone

from dlplatform.accounts.access import require
from dlplatform.accounts.models import User

from .experiments.models import SupersededLabel
from .models import Deployment, Feedback, PredictionRecord, Variant
from .statistics.proportions import wilson

LOOKED_AT = 5000  # labels, the newest first
MOST_TOLD = 100  # refused labels of a list


@dataclass(frozen=True)
class Label:
    request_id: UUID
    label: Any
    index: int = 0


@transaction.atomic
def give_feedback(*, actor: User, deployment: Deployment, labels: Sequence[Label]) -> int:
    """Keep labels; of several for one row the last wins. How many rows have one now of these.

    Of a request that the log does not have (yet, or any more) every index is taken. Raises ValidationError on
    `<position>.index` for a row that a known request did not have.
    """
    require(actor, "predict", deployment)
    _refuse_beyond(deployment, labels)
    last = {(one.request_id, one.index): one.label for one in labels}
    now = timezone.now()
    _keep_superseded(deployment, last, now)
    rows = [
        Feedback(deployment=deployment, request_id=request, index=index, label=label, actor=actor, at=now)
        for (request, index), label in sorted(last.items())  # one order for all, or two writers wait for each other
    ]
    Feedback.objects.bulk_create(
        rows, batch_size=500, update_conflicts=True, unique_fields=["deployment", "request_id", "index"],
        update_fields=["label", "actor", "at"],
    )  # fmt: skip
    return len(rows)


def _refuse_beyond(deployment: Deployment, labels: Sequence[Label]) -> None:
    rows = _rows_of(deployment, {one.request_id for one in labels if one.index > 0})
    refused: dict[str, ValidationError] = {}
    for position, one in enumerate(labels):
        known = rows.get(one.request_id)
        if known is not None and one.index >= known and len(refused) < MOST_TOLD:
            sentence = f"The request {one.request_id} had {_counted(known)}: give an index from 0 to {known - 1}."
            refused[f"{position}.index"] = ValidationError(sentence, code="max_value")
    if refused:
        raise ValidationError(refused)


def _rows_of(deployment: Deployment, requests: Collection[UUID]) -> dict[UUID, int]:
    """How many rows these requests had, of those in the log; counted in the database, for rows can be long."""
    if not requests:
        return {}
    records = PredictionRecord.objects.filter(
        deployment=deployment, request_id__in=requests, role=Variant.Role.LIVE
    ).order_by()
    counted = RawSQL("CASE jsonb_typeof(instances) WHEN 'array' THEN jsonb_array_length(instances) END", [])
    return {request: rows for request, rows in records.values_list("request_id", counted) if rows}


def _counted(rows: int) -> str:
    return "one row" if rows == 1 else f"{rows} rows"


def _keep_superseded(deployment: Deployment, coming: Mapping[tuple[UUID, int], Any], now: datetime) -> None:
    """Where there are experiments or canaries: what they saw at an earlier time must stay computable."""
    if not (deployment.experiments.exists() or deployment.rollouts.exists()):
        return
    rows = Feedback.objects.select_for_update().filter(
        deployment=deployment, request_id__in={request for request, _ in coming}
    )
    SupersededLabel.objects.bulk_create(
        [
            SupersededLabel(
                deployment=deployment, request_id=row.request_id, index=row.index, label=row.label, at=row.at,
                replaced_at=now,
            )
            for row in rows.order_by("request_id", "index")
            if (row.request_id, row.index) in coming
        ],
        batch_size=500,
    )  # fmt: skip


@dataclass
class Quality:
    """Of one variant over the newest labels: how many, how many right, the mean of the absolute errors."""

    variant: Variant
    labelled: int = 0
    right: int = 0
    classes: int = 0
    error: float = 0.0

    def count(self, prediction: dict[str, Any], label: Any) -> None:
        if "label" in prediction:
            self.labelled += 1
            self.classes += 1
            self.right += prediction["label"] == (label if isinstance(label, str) else str(label))
        elif isinstance(prediction.get("value"), int | float) and isinstance(label, int | float):
            self.labelled += 1
            self.error += abs(prediction["value"] - label)

    @property
    def accuracy(self) -> float | None:
        return self.right / self.classes if self.classes else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the accuracy: Wilson's score interval of 95 % (Wilson 1927)."""
        return wilson(self.right, self.classes) if self.classes else None

    @property
    def mean_absolute_error(self) -> float | None:
        numbers = self.labelled - self.classes
        return self.error / numbers if numbers else None


def quality_of(deployment: Deployment) -> list[Quality]:
    """Of every variant with labelled answers, shadows with theirs, by the newest labels."""
    labels = list(Feedback.objects.filter(deployment=deployment).order_by("-at")[:LOOKED_AT])
    wanted = {one.request_id for one in labels}
    rows = PredictionRecord.objects.filter(deployment=deployment, request_id__in=wanted).only(
        "request_id", "variant_id", "predictions"
    )
    records: dict[UUID, list[PredictionRecord]] = {}
    for row in rows:
        records.setdefault(row.request_id, []).append(row)
    variants = Variant.objects.filter(deployment=deployment).select_related("version__model")
    found = {variant.pk: Quality(variant) for variant in variants}
    for one in labels:
        for record in records.get(one.request_id, ()):
            if record.predictions and one.index < len(record.predictions):
                found[record.variant_id].count(record.predictions[one.index], one.label)
    return [one for one in found.values() if one.labelled]
