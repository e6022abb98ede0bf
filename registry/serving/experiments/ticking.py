"""The scheduler's part: guardrails are watched all the time, looks are taken and canaries go on when it is time."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone

from dlplatform.api import Conflict

from . import bandits, guardrails, pairs, rollouts
from .judging import fraction_of, plain
from .looks import agree, before, carried_sums, due, judge, judge_guardrails, read_sums, record_look, window_of
from .models import Experiment, Look, Rollout
from .running import forget
from .sums import Window, window_until_now

SECONDS = 5.0
PATIENCE = 5  # the sums of one experiment take at most a sixth of the scheduler's time
TUNED_UNITS = 1000  # an arm: where a canary's comparisons are the sharpest

logger = logging.getLogger(__name__)


def tick() -> dict[str, int]:
    """Watch every experiment and canary that splits traffic and that it is time for.

    What fails in one does not keep the others unwatched.
    """
    return {
        "looks": _each(Experiment.objects.filter(state__in=Experiment.HOLDING), watch),
        "canaries moved": _each(Rollout.objects.filter(state__in=Rollout.HOLDING), watch_rollout),
    }


def _each(holding: Any, act: Callable[[Any], bool]) -> int:
    done = 0
    for one in holding.filter(Q(watch_after=None) | Q(watch_after__lte=timezone.now())).select_related("deployment"):
        try:
            done += act(one)
        except Conflict as meanwhile:
            logger.info("%s: %s", one, meanwhile.detail)
        except Exception:
            logger.exception("%s could not be watched", one)
    return done


def watch(experiment: Experiment) -> bool:
    """One look at what came; whether a look was written down. A guardrail's alarm always is, and rolls back.

    Of a bandit's several versions it takes out the one that it is about, once.
    """
    began = time.monotonic()
    window = window_of(experiment)
    if window.until <= window.since:
        return False
    sums = carried_sums(experiment, window)
    last = experiment.taken.last()
    results = judge_guardrails(experiment, sums, last)
    seen = {"fraction": fraction_of(experiment, sums), "units": sums["units"], "guardrails": results}
    moving = experiment.mode == Experiment.Mode.BANDIT
    if moving:
        told = judge(experiment, sums, window.until, before(experiment, last))
        seen |= {"bandit": told["bandit"], "sentence": told["verdict"]["sentence"]}
    if experiment.mode == Experiment.Mode.PAIRED:
        seen |= {"copies": pairs.told_of_copies(sums), "pairs": sums["differences"][0], "means": sums["means"]}
    _remember(experiment, seen, began)
    if (kind := _wanted(experiment, window, sums)) is None:
        return False
    carried, sums = sums, read_sums(experiment, window)  # what is written down is read from the log itself
    if not agree(carried, sums):
        _make_anew(experiment)
        if (kind := _wanted(experiment, window, sums)) is None:
            return False
    record_look(experiment, window, sums, kind)
    return True


def _wanted(experiment: Experiment, window: Window, sums: dict[str, Any]) -> str | None:
    """The kind of look that these sums make due, if any."""
    last = experiment.taken.last()
    found = judge_guardrails(experiment, sums, last)
    if experiment.mode == Experiment.Mode.BANDIT:
        found = bandits.fresh_alarms(found, bandits.out_of(last.results if last else None))
    if guardrails.alarmed(found):
        return Look.Kind.HARM
    if experiment.state == Experiment.State.DECIDED or not due(experiment, window, sums, last):
        return None
    return Look.Kind.MOVE if experiment.mode == Experiment.Mode.BANDIT else Look.Kind.DUE


def watch_rollout(rollout: Rollout) -> bool:
    """Read its guardrails, also of one that is paused; whether it went back, on, or to its end."""
    began = time.monotonic()
    window = window_until_now(rollout.deployment_id, rollout.started_at, rollout.revision)
    if window.until <= window.since:
        return False
    seen = rollouts.carried_sums(rollout, window)
    results = guardrails.judge(rollout.guardrails, seen["sums"], tuned_units=TUNED_UNITS)
    _remember(rollout, seen | {"guardrails": results}, began)
    running = rollout.state == Rollout.State.RUNNING
    if guardrails.alarmed(results) or (running and rollouts.over(rollout, seen["requests"], timezone.now())):
        return _act_by_the_log(rollout, window, seen)
    return False


def _act_by_the_log(rollout: Rollout, window: Window, carried: dict[str, Any]) -> bool:
    """Go back or on where the log itself says so too; whether it did."""
    read = rollouts.read_sums(rollout, window)
    if read != carried:
        _make_anew(rollout)
    if harm := guardrails.alarmed(guardrails.judge(rollout.guardrails, read["sums"], tuned_units=TUNED_UNITS)):
        rollouts.roll_back(rollout=rollout, reason=" ".join(harm))
        return True
    return rollout.state == Rollout.State.RUNNING and rollouts.advance(rollout=rollout, requests=read["requests"])


def _make_anew(watched: Experiment | Rollout) -> None:
    logger.warning("%s: sums were carried on without what came very late, and are made anew", watched)
    forget(watched)


def _remember(watched: Experiment | Rollout, seen: dict[str, Any], began: float) -> None:
    """For the page; and when to come again."""
    pause = timedelta(seconds=max(SECONDS, PATIENCE * (time.monotonic() - began)))
    now = timezone.now()
    rows = type(watched)._default_manager.filter(pk=watched.pk)
    rows.update(watched=plain(seen), watched_at=now, watch_after=now + pause)
