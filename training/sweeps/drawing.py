"""What the page of a sweep draws, for `static/js/figures.js`: history, parallel coordinates, curves with bands."""

from collections.abc import Sequence
from typing import Any

from training.bands import line
from training.curves import Point, curves
from training.models import Run, Sweep, Trial

MOST_LINES = 200
CURVES = 5
CURVE_POINTS = 200


def charts(sweep: Sweep, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """``trials`` with their runs; those without a value are left out."""
    valued = [one for one in trials if one.value is not None]
    if not valued:
        return []
    return [_history(sweep, valued), *_curves(sweep, valued), _parallel(sweep, valued)]


def ranked(sweep: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    """Best first: those that trained to the end before those that did not."""
    sign = -1 if sweep.direction == Sweep.Direction.MAXIMIZE else 1
    valued = [one for one in trials if one.value is not None]
    return sorted(valued, key=lambda one: (one.state != Trial.State.SUCCEEDED, sign * (one.value or 0), one.number))


def _history(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    """The value of every trial, and the best so far."""
    better = max if sweep.direction == Sweep.Direction.MAXIMIZE else min
    best: list[tuple[int, float]] = []
    for trial in trials:
        if trial.state == Trial.State.SUCCEEDED and trial.value is not None:
            best.append((trial.number, better(trial.value, best[-1][1]) if best else trial.value))
    ended = [(one.number, one.value) for one in trials if one.state == Trial.State.SUCCEEDED]
    others = [(one.number, one.value) for one in trials if one.state != Trial.State.SUCCEEDED]
    series = [
        {"name": "best so far", "points": best, "color": 0},
        {"name": "trained to the end", "points": ended, "color": 2, "dots": True},
        {"name": "stopped at a rung", "points": others, "color": 9, "dots": True},
    ]
    return {
        "kind": "line", "title": f"{sweep.metric} of the trials", "x": "trial", "whole": True, "tools": True,
        "series": [one for one in series if one["points"]],
    }  # fmt: skip


def _curves(sweep: Sweep, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The metric over the steps of the best trials; of several seeds the mean and a band."""
    series = []
    for color, trial in enumerate(ranked(sweep, trials)[:CURVES]):
        drawn = [found for run in trial.runs.all() if len(found := _curve(run, sweep.metric)) > 1]
        if drawn:
            series.append(line(f"trial {trial.number}", color, drawn))
    drawing = {"kind": "line", "title": f"{sweep.metric} of the best", "x": "step", "tools": True, "series": series}
    return [drawing] if series else []


def _curve(run: Run, metric: str) -> list[Point]:
    return curves(run, [metric], CURVE_POINTS).get(metric, [])


def _parallel(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    shown = ranked(sweep, trials)[:MOST_LINES]
    values = [one.value for one in shown if one.value is not None]
    axes = [_axis(dimension) for dimension in sweep.space]
    axes.append({"name": sweep.metric, "low": min(values), "high": max(values)})
    lines = [
        {
            "name": f"trial {trial.number}",
            "values": [*(trial.params[dimension["name"]] for dimension in sweep.space), trial.value],
            "rank": rank,
        }
        for rank, trial in enumerate(shown)
    ]
    return {"kind": "parallel", "title": "Settings and result", "axes": axes, "lines": lines}


def _axis(dimension: dict[str, Any]) -> dict[str, Any]:
    if dimension["kind"] == "categorical":
        return {"name": dimension["name"], "choices": dimension["choices"]}
    return {name: dimension[name] for name in ("name", "low", "high", "log")}
