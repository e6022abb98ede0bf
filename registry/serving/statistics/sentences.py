"""Verdicts in words."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verdict import Metric, Outcome


def sentence_of(
    outcome: "Outcome",
    gain: float | None,
    interval: tuple[float, float] | None,
    minimum: float,
    metric: "Metric",
    days: int | None,
) -> str:
    """One or two sentences for whoever asked for the test; numbers in the metric's unit, proportions in points."""
    if outcome == "unbalanced":
        return (
            "The units did not arrive in the arms as assigned, so there is no verdict: find the cause and start again."
        )
    if gain is None or interval is None:
        what = "too few outcomes, or outcomes too much alike, for an interval"
        if outcome == "undecided":
            return f"The test has ended with {what}."
        return f"Not enough data: {_more(days)}. So far there are {what}."
    told = _Told(metric, interval)
    between = f"interval {told.number(interval[0])} to {told.number(interval[1])}"
    least = told.amount(minimum)
    return {
        "b_better": f"B is better by {told.amount(gain)}, {between}; promote.",
        "b_worse": f"B is worse by {told.amount(-gain)}, {between} (negative: worse); keep A.",
        "no_difference": f"No difference of the size you asked for ({least}), {between}; choose by cost.",
        "undecided": f"All that was planned has been used, and a difference of {least} is neither shown nor excluded, "
        f"{between}; keep A.",
        "not_enough": f"Not enough data: {_more(days)}. So far the difference lies between "
        f"{told.number(interval[0])} and {told.amount(interval[1])}.",
    }[str(outcome)]


def _more(days: int | None) -> str:
    if days is None:
        return "go on"
    return f"{days} days more at most" if days > 1 else "1 day more at most"


class _Told:
    """Numbers with as many digits as their interval is worth: two of its half width."""

    def __init__(self, metric: "Metric", interval: tuple[float, float]):
        self.scale = 100 if metric.in_points else 1
        self.unit = " points" if metric.in_points else f" {metric.unit}" if metric.unit else ""
        half = self.scale * (interval[1] - interval[0]) / 2
        self.digits = min(12, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 3

    def number(self, value: float) -> str:
        told = f"{self.scale * value:,.{self.digits}f}"
        return told if any(digit in told for digit in "123456789") else told.lstrip("-")

    def amount(self, value: float) -> str:
        return self.number(value) + self.unit
