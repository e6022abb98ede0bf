"""What a trial's runs say about it: its state, and the metric at the rungs and at the end. Reads only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from django.db.models import Count

from training.models import MetricPoint, MetricSeries, Run, Sweep, Trial

# The metrics that a sweep may be judged by: those that the engine reports after every epoch.
METRICS = {
    "classification": ("validation/loss", "validation/accuracy"),
    "regression": ("validation/loss", "validation/rmse", "validation/mae", "validation/r2"),
    "multilabel": ("validation/loss", "validation/f1_micro", "validation/exact_match"),
    "language-model": ("validation/loss", "validation/perplexity"),
}
ALL_METRICS = sorted({metric for known in METRICS.values() for metric in known})
ACTIVE = (Run.State.QUEUED, Run.State.PREPARING, Run.State.RUNNING)


@dataclass(frozen=True)
class Judgement:
    """A trial as its runs make it. ``rung_values``: best so far at each rung that all its runs reached, mean over them."""

    state: str
    rung_values: list[float]
    value: float | None
    spread: float | None


def judge(sweep: Sweep, trial: Trial, runs: Sequence[Run]) -> Judgement:
    """The best value up to an epoch counts, as the engine keeps the weights of the best epoch."""
    best = max if sweep.direction == Sweep.Direction.MAXIMIZE else min
    curves = [_values(sweep, run) for run in runs]
    rung_values = []
    for epoch in sweep.rungs:
        if not all(_reached(run, values, epoch) for run, values in zip(runs, curves, strict=True)):
            break
        rung_values.append(fmean(best(values[:epoch]) for values in curves))
    state = _state(trial, runs)
    finals = [_final(sweep, run) for run in runs] if state == Trial.State.SUCCEEDED else []
    known = [value for value in finals if value is not None]
    if runs and len(known) == len(runs):
        return Judgement(state, rung_values, fmean(known), pstdev(known) if len(known) > 1 else None)
    return Judgement(state, rung_values, rung_values[-1] if rung_values else None, None)


def _values(sweep: Sweep, run: Run) -> list[float]:
    """The metric after each epoch, as far as the rungs go."""
    if not sweep.rungs:
        return []
    points = MetricPoint.objects.filter(series__run=run, series__key=sweep.metric, value__isnull=False)
    found = points.order_by("step").values_list("value", flat=True)[: sweep.rungs[-1]]
    return [value for value in found if value is not None]


def _reached(run: Run, values: list[float], epoch: int) -> bool:
    """Whether a run is as far as that; one that stopped early of itself has come as far as it ever will."""
    return bool(values) and (len(values) >= epoch or run.state == Run.State.SUCCEEDED)


def _final(sweep: Sweep, run: Run) -> float | None:
    series = MetricSeries.objects.filter(run=run, key=sweep.metric).first()
    if series is None:
        return None
    return series.maximum if sweep.direction == Sweep.Direction.MAXIMIZE else series.minimum


def _state(trial: Trial, runs: Sequence[Run]) -> str:
    """A run that somebody paused keeps its trial's place, as one that trains does."""
    states = {run.state for run in runs}
    stopped = set(at_their_stop(runs))
    if not runs:
        return Trial.State.FAILED
    if states & set(ACTIVE) or any(run.state == Run.State.PAUSED and run.pk not in stopped for run in runs):
        return Trial.State.RUNNING
    if Run.State.FAILED in states:
        return Trial.State.FAILED
    if Run.State.CANCELLED in states:
        return Trial.State.CANCELLED if trial.pruned_at_epoch is None else Trial.State.PRUNED
    return Trial.State.PAUSED if Run.State.PAUSED in states else Trial.State.SUCCEEDED


def at_their_stop(runs: Iterable[Run]) -> list[object]:
    """The ids of runs that paused because they reached their rung, not because somebody asked."""
    paused = {run.pk: run for run in runs if run.state == Run.State.PAUSED and run.stop_after_epoch}
    if not paused:
        return []
    counted = MetricSeries.objects.filter(run__in=paused, key="validation/loss").annotate(epochs=Count("points"))
    return [one.run_id for one in counted if one.epochs >= (paused[one.run_id].stop_after_epoch or 0)]
