"""Trying out a run before it is queued: asked for here, done by `training.trying`."""

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts.access import require
from dlplatform.accounts.models import Organization, User
from registry.models import ModelVersion

from .code import ARCHITECTURE
from .learning_checks import check, check_code, features_by_default
from .models import CodeBundle, Preflight, Run

KEPT = timedelta(days=7)


@transaction.atomic
def request_preflight(
    *, actor: User, dataset_version: DatasetVersion, task: str, target: str | Sequence[str],
    features: Sequence[str] | None = None, config: dict[str, Any] | None = None,
    base_version: ModelVersion | None = None, finetune: dict[str, Any] | None = None, code: CodeBundle | None = None,
    entry: str = "", cloned_from: Run | None = None,
) -> Preflight:  # fmt: skip
    """Check the choices as those of a run, then queue two steps of it. Errors name the field and the fix."""
    organization = dataset_version.dataset.organization
    require(actor, "run.write", organization)
    targets = [target] if isinstance(target, str) else list(dict.fromkeys(target))
    if code is not None:
        entry = _check_code(actor, organization, code, entry, task)
    kept = cloned_from.config if cloned_from else {}
    settings = check(dataset_version, task, targets, features, config or {}, entry, base_version, kept=kept)
    features = features or features_by_default(dataset_version, targets, task)
    preflight = Preflight.objects.create(
        dataset_version=dataset_version, task=task, targets=targets, features=list(features) if features else None,
        config=settings, base_version=base_version, finetune=finetune, code=code, entry=entry, created_by=actor,
    )  # fmt: skip
    jobs.enqueue(preflight)
    return preflight


def _check_code(actor: User, organization: Organization, code: CodeBundle, entry: str, task: str) -> str:
    """The file that is tried out; ValidationError for a script, whose steps nobody else knows."""
    entry = check_code(actor, organization, code, entry, task)
    if entry != ARCHITECTURE:
        told = "Only an architecture (model.py) can be tried out: what a step of a script is only the script knows."
        raise ValidationError({"entry": ValidationError(told, code="not_for_script")})
    return entry


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
