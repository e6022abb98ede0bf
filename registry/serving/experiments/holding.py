"""Who holds a deployment: while an experiment or a rollout runs on it, its variants are theirs alone."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import Q

from dlplatform.api import Conflict

from .models import Experiment, Rollout

if TYPE_CHECKING:
    from registry.serving.models import Deployment

Holder = Experiment | Rollout
PAST = timedelta(days=14)  # before the start: what a covariate is made of


def holder_of(deployment: "Deployment") -> Holder | None:
    """As `holders_of`, of one; where an experiment holds it, no canary is asked for."""
    rows = (_holding(kind, [deployment.pk]).first() for kind in (Experiment, Rollout))
    return next((row for row in rows if row is not None), None)


def holders_of(deployments: "Sequence[Deployment]") -> dict[UUID, Holder]:
    """By the deployment, of those that are held; in as many queries however many there are."""
    keys = [one.pk for one in deployments]
    found: dict[UUID, Holder] = {}
    for kind in (Rollout, Experiment):
        found |= {row.deployment_id: row for row in _holding(kind, keys)}
    return found


def _holding(kind: Any, deployments: list[UUID]) -> Any:
    return kind.objects.filter(deployment__in=deployments, state__in=kind.HOLDING)


def name_of(holder: Holder) -> str:
    return f"{'Experiment' if isinstance(holder, Experiment) else 'Canary'} {holder.number}"


def refuse_held(deployment: "Deployment", by: Holder | None = None) -> None:
    """Raise Conflict when another than ``by`` holds it. Call with the deployment's row locked."""
    holder = holder_of(deployment)
    if holder is not None and holder != by:
        raise Conflict(
            f"{name_of(holder)} is {holder.state} here, and would see other things afterwards: end it first.",
            code="held",
        )


def needed_since(before: datetime) -> dict[UUID, datetime]:
    """By deployment, from when on its log must be kept: of experiments that run, or that ended after ``before``."""
    running = Q(state__in=Experiment.HOLDING) | Q(ended_at__gte=before)
    rows = Experiment.objects.filter(running).exclude(started_at=None).order_by("-started_at")
    found = {row.deployment_id: row.started_at - PAST for row in rows if row.started_at is not None}
    for rollout in Rollout.objects.filter(state__in=Rollout.HOLDING):
        found[rollout.deployment_id] = min(rollout.started_at, found.get(rollout.deployment_id, rollout.started_at))
    return found


def complete_log(deployment: "Deployment") -> float:
    """Have every request written down; the sample rate there was."""
    before = deployment.sample_rate
    deployment.sample_rate = 1.0
    deployment.save(update_fields=["sample_rate"])
    return before


def release_log(deployment: "Deployment", before: float) -> None:
    deployment.sample_rate = before
    deployment.save(update_fields=["sample_rate"])


def own_sample_rate(deployment: "Deployment") -> float:
    """The rate it has when nobody needs all of its log, from 0 to 1."""
    holder = holder_of(deployment)
    return deployment.sample_rate if holder is None or holder.sample_rate is None else holder.sample_rate
