"""Hints: a sweep has something to do, a sweep looks different now. The rows are the truth."""

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

import redis
from django.db import transaction
from django.db.models import Count, Exists, F, OuterRef, Q
from django.utils import timezone

from dlplatform import events, jobs
from training.models import Run, Sweep, Trial

from .judging import ACTIVE

logger = logging.getLogger(__name__)

QUEUE = "registry"
ENTRY = "training.jobs.advance_sweep"
UNSEEN_SECONDS = 20


def announce(sweep: Sweep) -> None:
    """Tell the organization's lists, once the change is committed."""
    organization = sweep.experiment.organization_id
    transaction.on_commit(lambda: events.publish_state(organization, "sweep", sweep.pk, sweep.state, sweep.name))


def wake(sweep: UUID) -> None:
    """Have a worker look at a sweep once the transaction has committed. Without Redis the tick does it."""
    transaction.on_commit(lambda: _enqueue(sweep))


def _enqueue(sweep: UUID) -> None:
    try:
        jobs.queue(QUEUE).enqueue(ENTRY, str(sweep), job_id=f"sweep-{sweep}", result_ttl=0, failure_ttl=3600)
    except (redis.RedisError, OSError) as error:
        logger.warning("sweep %s waits for the tick: %s", sweep, error)


def wake_idle_sweeps() -> int:
    """The tick: wake those with a trial that nobody works on, or with room for another one; how many.

    The worker that ends a run looks after its sweep itself; this is for what it did not live to see, and for runs that
    a person resumed or cancelled.
    """
    at_work = Run.objects.filter(trial=OuterRef("pk"), state__in=(*ACTIVE, Run.State.PAUSED))
    settled = Trial.objects.filter(sweep=OuterRef("pk"), state=Trial.State.RUNNING).filter(~Exists(at_work))
    busy = Count("trials", filter=Q(trials__state=Trial.State.RUNNING))
    running = Sweep.objects.filter(state=Sweep.State.RUNNING).annotate(busy=busy)
    unseen = Q(advanced_at=None) | Q(
        busy__lt=F("parallel"), advanced_at__lt=timezone.now() - timedelta(seconds=UNSEEN_SECONDS)
    )
    found = running.filter(unseen | Exists(settled) | Exists(_paused_at_rung())).values_list("pk", flat=True)
    for sweep in found:
        _enqueue(sweep)
    return len(found)


def _paused_at_rung() -> Any:
    """Trials that count as training though all their runs have paused."""
    trains = Run.objects.filter(trial=OuterRef("pk"), state__in=ACTIVE)
    waits = Run.objects.filter(trial=OuterRef("pk"), state=Run.State.PAUSED)
    return Trial.objects.filter(sweep=OuterRef("pk"), state=Trial.State.RUNNING).filter(Exists(waits), ~Exists(trains))
