"""Runs that differ in nothing but their seed, drawn as one curve: the mean, and a band around it."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from .curves import Point
from .models import Run

MOST_POINTS = 400


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups of the same data, code and settings but for the seed, in the order of their first ones."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_without_seed(run), []).append(run)
    return list(groups.values())


def _without_seed(run: Run) -> str:
    config = {name: value for name, value in run.config.items() if name != "seed"}
    chosen = [
        str(run.dataset_version_id),
        run.task,
        run.target,
        run.features,
        config,
        str(run.base_version_id),
        run.finetune,
        str(run.code_id),
        run.entry,
    ]
    return json.dumps(chosen, sort_keys=True)


def banded(curves: Sequence[Sequence[Point]]) -> dict[str, Any]:
    """{points: [(step, mean)], band: [(step, low, high)]}: the band is one standard deviation to either side.

    Curves that end early count as far as they go; between its points each is taken as a straight line.
    """
    steps = sorted({step for curve in curves for step, _ in curve})
    points, band = [], []
    for step in steps[:: max(-(-len(steps) // MOST_POINTS), 1)]:
        values = [value for curve in curves if (value := _at(curve, step)) is not None]
        mean = fmean(values)
        points.append((step, mean))
        spread = pstdev(values) if len(values) > 1 else 0.0
        band.append((step, mean - spread, mean + spread))
    return {"points": points, "band": band}


def _at(curve: Sequence[Point], step: int) -> float | None:
    """The value at a step; None outside of the curve."""
    if not curve or not curve[0][0] <= step <= curve[-1][0]:
        return None
    place = bisect_right(curve, step, key=lambda point: point[0]) - 1
    (left, low), (right, high) = curve[place], curve[min(place + 1, len(curve) - 1)]
    return low if right == left else low + (high - low) * (step - left) / (right - left)


def line(name: str, color: int, curves: Sequence[Sequence[Point]]) -> dict[str, Any]:
    """A series for `static/js/chart.js`: of several curves with their band."""
    if len(curves) == 1:
        return {"name": name, "points": curves[0], "color": color}
    return {"name": f"{name} (mean of {len(curves)} seeds)", "color": color, **banded(curves)}
