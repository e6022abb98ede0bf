"""The scheduler's part: guardrails are watched all the time, and looks are taken when they are due."""

import logging
import time
from datetime import timedelta

from django.db.models import Q
from django.utils import timezone

from dlplatform.api import Conflict

from . import guardrails
from .judging import fraction_of, judge_guardrails
from .looks import due, read_sums, record_look, window_of
from .models import Experiment, Look

SECONDS = 5.0
PATIENCE = 20  # the sums of one experiment take at most a twentieth of the scheduler's time

logger = logging.getLogger(__name__)


def tick() -> dict[str, int]:
    """Watch every experiment that splits traffic and that it is time for. What fails in one does not keep the others unwatched."""
    now = timezone.now()
    holding = Experiment.objects.filter(Q(watch_after=None) | Q(watch_after__lte=now), state__in=Experiment.HOLDING)
    looks = 0
    for experiment in holding.select_related("deployment"):
        try:
            looks += watch(experiment)
        except Conflict as meanwhile:
            logger.info("%s: %s", experiment, meanwhile.detail)
        except Exception:
            logger.exception("%s could not be watched", experiment)
    return {"looks": looks}


def watch(experiment: Experiment) -> bool:
    """One look at the log; whether a look was written down. A guardrail's alarm always is, and rolls back."""
    began = time.monotonic()
    window = window_of(experiment)
    if window.until <= window.since:
        return False
    sums = read_sums(experiment, window)
    results = judge_guardrails(experiment, sums)
    seen = {"fraction": fraction_of(experiment, sums), "units": sums["units"], "guardrails": results}
    pause = timedelta(seconds=max(SECONDS, PATIENCE * (time.monotonic() - began)))
    now = timezone.now()
    Experiment.objects.filter(pk=experiment.pk).update(watched=seen, watched_at=now, watch_after=now + pause)
    harm = bool(guardrails.alarmed(results))
    decided = experiment.state == Experiment.State.DECIDED
    if not harm and (decided or not due(experiment, window, sums, experiment.taken.last())):
        return False
    record_look(experiment, window, sums, Look.Kind.HARM if harm else Look.Kind.DUE)
    return True
