"""Trying out a run before it is queued: asked for here, done by `training.trying`."""

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User

from .models import Preflight
from .services import check, features_by_default

KEPT = timedelta(days=7)


@transaction.atomic
def request_preflight(
    *, actor: User, dataset_version: DatasetVersion, task: str, target: str | Sequence[str],
    features: Sequence[str] | None = None, config: dict[str, Any] | None = None,
) -> Preflight:  # fmt: skip
    """Check the choices as those of a run, then queue two steps of it. Errors name the field and the fix."""
    require(actor, "run.write", dataset_version.dataset.organization)
    targets = [target] if isinstance(target, str) else list(dict.fromkeys(target))
    settings = check(dataset_version, task, targets, features, config or {})
    features = features or features_by_default(dataset_version, targets)
    preflight = Preflight.objects.create(
        dataset_version=dataset_version, task=task, targets=targets, features=list(features) if features else None,
        config=settings, created_by=actor,
    )  # fmt: skip
    jobs.enqueue(preflight)
    return preflight


def outlook(measured: dict[str, Any], share: float) -> dict[str, Any]:
    """What a trial on a ``share`` of the rows says about the whole run: adds total_steps and seconds."""
    rows = measured["rows_per_epoch"] / share
    epochs = measured["epochs"]
    steps = epochs * max(1, math.ceil(rows / measured["batch_size"]))
    seconds = steps * measured["seconds_per_step"] + epochs * measured["validation_seconds"] / share
    return {**measured, "total_steps": steps, "seconds": seconds, "rows_tried": share}


def forget_preflights() -> int:
    """Remove old ones; the number removed."""
    old = Preflight.objects.filter(state__in=Preflight.ENDED, created_at__lt=timezone.now() - KEPT)
    return old.delete()[0]
