"""What an A/B test says at a look: an outcome, an interval that holds at all looks together, and a sentence.

The interval is the repeated confidence interval of the group-sequential test (Jennison and Turnbull, Interim analyses:
the repeated confidence interval approach, JRSS B 1989): over all looks, it misses the true difference with a
probability of at most alpha, so it may be drawn over time. Where the test has ended, the estimate is the
median-unbiased one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from .arguments import require_finite, require_positive
from .moments import Moments, effective_size, squared_error
from .planning import Plan
from .proportions import newcombe
from .sentences import sentence_of
from .spending import LEAST_STEP, Boundaries, boundaries, median_unbiased_drift

LEAST_UNITS = 30  # an arm; below, a mean is not near enough to normal
LEAST_OF_EACH = 10  # yes and no, an arm, of a proportion
NEARLY_ALL = 1 - 2 * LEAST_STEP  # of the plan: where a test is that has used all of it and cannot say anything
FEW = "(From fewer than ten of a kind in an arm, by a score interval; before the end they decide nothing.)"


class Outcome(StrEnum):
    B_BETTER = "b_better"
    B_WORSE = "b_worse"
    NO_DIFFERENCE = "no_difference"  # none as large as the minimum effect
    UNDECIDED = "undecided"  # all that was planned has been used, and the interval leaves both open
    NOT_ENOUGH = "not_enough"
    UNBALANCED = "unbalanced"  # the units did not arrive as assigned: no verdict


@dataclass(frozen=True)
class Metric:
    """How to read the primary metric.

    ``proportion``: outcomes are 0 or 1, told in points of a hundred; ``share``: they lie between 0 and 1, as that of the
    rows of a unit that were right, and are told so too; else ``unit`` follows every number ("ms").
    ``higher_is_better``: False for errors and latencies.
    """

    proportion: bool = True
    higher_is_better: bool = True
    unit: str = ""
    share: bool = False

    @property
    def in_points(self) -> bool:
        return self.proportion or self.share


@dataclass(frozen=True)
class Verdict:
    """What is known at a look.

    ``gain``: by how much B is better than A, and ``low`` to ``high`` its interval, all in the metric's unit (a
    proportion as a share), positive where B is better; None where there are too few units to tell. ``observed``: the
    plain difference of the means, as signed; ``gain`` is the same until the test has ended. ``z``: the difference in
    standard errors; ``edge``: the |z| that decides at this look; ``fraction``: the information of this look as a share
    of the plan, to be handed over in ``looks`` at the next one. ``days``: those still needed at most, None if unknown
    or none. ``ended``: nothing that comes later may change the outcome.
    """

    outcome: Outcome
    sentence: str
    ended: bool
    fraction: float
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    observed: float | None = None
    z: float | None = None
    edge: float | None = None
    days: int | None = None


@dataclass(frozen=True)
class Comparison:
    """A difference B - A with its standard error, and the units behind it: what both kinds of test come down to.

    ``size``: effective units (`effective_size`, or the pairs of a paired comparison), ``enough``: whether they
    suffice for a normal approximation. ``few``: the two proportions whose difference it is, for when they do not.
    """

    difference: float
    error: float
    size: float
    enough: bool
    few: tuple[Moments, Moments] | None = None


def verdict(
    a: Moments,
    b: Moments,
    *,
    plan: Plan,
    metric: Metric | None = None,
    looks: Sequence[float] = (),
    per_day: float | None = None,
    last: bool = False,
    balanced: bool = True,
) -> Verdict:
    """Judge two arms.

    ``looks``: the fractions of the verdicts before this one. A look within a ten-thousandth of the plan from the last
    one is that look taken again. ``per_day``: units that arrive a day, both arms together; ``last``: the test ends now,
    for a reason that has nothing to do with its outcomes; ``balanced``: False withholds the verdict (`check_balance`).
    After a verdict that has ended the test, no further one counts.

    Raises ValueError for looks that do not rise up to this one or that had reached the end of the plan, more than 100
    looks, and outcomes of a proportion that are not 0 or 1.
    """
    metric = metric or Metric()
    if metric.proportion:
        _require_proportions(a=a, b=b)
    comparison = compare(a, b, metric)
    return judge(
        comparison, plan=plan, planned_size=plan.effective_size, metric=metric, looks=looks,
        days=_days(a.count + b.count, plan.units, per_day), last=last, balanced=balanced,
    )  # fmt: skip


def compare(a: Moments, b: Moments, metric: Metric) -> Comparison:
    """The difference of two independent arms' means, with the variance of each arm (Welch)."""
    size = effective_size(a.count, b.count)
    if min(a.count, b.count) < 2:
        return Comparison(0.0, 0.0, size, False)
    error = math.sqrt(squared_error(a) + squared_error(b))
    enough = error > 0 and all(_enough(arm, metric) for arm in (a, b))
    return Comparison(b.mean - a.mean, error, size, enough, few=(a, b) if metric.in_points else None)


def judge(
    comparison: Comparison,
    *,
    plan: Plan,
    planned_size: float,
    metric: Metric,
    looks: Sequence[float] = (),
    days: int | None = None,
    last: bool = False,
    balanced: bool = True,
) -> Verdict:
    """The verdict on a difference, whatever it is one of. Arguments and errors as for `verdict`.

    Few outcomes of a proportion decide nothing before the end, and there by a score interval at the same boundary. Where
    nothing can be said at the end of the plan, the test goes on.
    """
    fraction = comparison.size / require_positive("planned_size", planned_size)
    if not balanced:
        return _blank(Outcome.UNBALANCED, fraction, None, plan, metric)
    ends = last or fraction >= 1
    if fraction < LEAST_STEP or not (comparison.enough or comparison.few):
        return _nothing_to_say(fraction, days, plan, metric, last=last)
    known = _boundaries(fraction, looks, plan, last)
    if not comparison.enough:
        return _judge_few(comparison, known, plan, metric, days, ends=ends)
    edge = known.edges[-1]
    sign = 1 if metric.higher_is_better else -1
    observed = gain = sign * comparison.difference
    z = observed / comparison.error
    low, high = observed - edge * comparison.error, observed + edge * comparison.error
    outcome = _outcome(z, edge, (low, high), plan.minimum_effect, ends)
    ended = outcome != Outcome.NOT_ENOUGH
    if ended:
        gain = median_unbiased_drift(known, z) * comparison.error * math.sqrt(known.fractions[-1])
    left = None if ended else days
    sentence = sentence_of(outcome, gain, (low, high), plan.minimum_effect, metric, left)
    return Verdict(outcome, sentence, ended, known.fractions[-1], gain, low, high, observed, z, edge, left)


def _judge_few(
    comparison: Comparison, known: Boundaries, plan: Plan, metric: Metric, days: int | None, *, ends: bool
) -> Verdict:
    """By Newcombe's interval, as wide as the boundary of this look."""
    assert comparison.few is not None
    low, high = newcombe(*comparison.few, z=known.edges[-1])
    gain = comparison.difference if metric.higher_is_better else -comparison.difference
    interval = (low, high) if metric.higher_is_better else (-high, -low)
    outcome = _outcome_of_few(interval, plan.minimum_effect) if ends else Outcome.NOT_ENOUGH
    left = None if ends else days
    sentence = f"{sentence_of(outcome, gain, interval, plan.minimum_effect, metric, left)} {FEW}"
    return Verdict(outcome, sentence, ends, known.fractions[-1], gain, *interval, gain, None, known.edges[-1], left)


def _outcome_of_few(interval: tuple[float, float], minimum: float) -> Outcome:
    low, high = interval
    if low > 0 or high < 0:
        return Outcome.B_BETTER if low > 0 else Outcome.B_WORSE
    return Outcome.NO_DIFFERENCE if -minimum < low and high < minimum else Outcome.UNDECIDED


def _nothing_to_say(fraction: float, days: int | None, plan: Plan, metric: Metric, *, last: bool) -> Verdict:
    """Not even at the end of the plan: then it goes on, as a look that is not yet the last."""
    if last:
        return _blank(Outcome.UNDECIDED, fraction, None, plan, metric)
    return _blank(Outcome.NOT_ENOUGH, min(fraction, NEARLY_ALL), days if fraction < 1 else None, plan, metric)


def _outcome(z: float, edge: float, interval: tuple[float, float], minimum: float, ends: bool) -> Outcome:
    if abs(z) >= edge:
        return Outcome.B_BETTER if z > 0 else Outcome.B_WORSE
    if -minimum < interval[0] and interval[1] < minimum:
        return Outcome.NO_DIFFERENCE
    return Outcome.UNDECIDED if ends else Outcome.NOT_ENOUGH


def _boundaries(fraction: float, looks: Sequence[float], plan: Plan, last: bool) -> Boundaries:
    """Those of the looks up to this one. Looks that hardly differ are one; those at next to nothing are none."""
    earlier = [require_finite("looks", look) for look in looks]
    if any(late < early for early, late in pairwise((0.0, *earlier))) or (
        earlier and earlier[-1] > fraction + LEAST_STEP
    ):
        raise ValueError(f"looks must rise up to this one, which has the fraction {fraction:.4g}")
    taken: list[float] = []
    for look in (*earlier, fraction):
        if look - (taken[-1] if taken else 0.0) >= LEAST_STEP:
            taken.append(look)
    if any(look >= 1 for look in taken[:-1]):
        raise ValueError("looks must lie below 1: with the planned information the test had ended")
    return boundaries(taken, plan.design.alpha, last=last)


def _blank(outcome: Outcome, fraction: float, days: int | None, plan: Plan, metric: Metric) -> Verdict:
    sentence = sentence_of(outcome, None, None, plan.minimum_effect, metric, days)
    return Verdict(outcome, sentence, outcome == Outcome.UNDECIDED, fraction, days=days)


def _enough(arm: Moments, metric: Metric) -> bool:
    if metric.in_points:
        return min(arm.total, arm.count - arm.total) >= LEAST_OF_EACH
    return arm.count >= LEAST_UNITS


def _days(units: int, planned: int, per_day: float | None) -> int | None:
    if per_day is None:
        return None
    return max(1, math.ceil((planned - units) / require_positive("per_day", per_day)))


def _require_proportions(**arms: Moments) -> None:
    for name, arm in arms.items():
        if not math.isclose(arm.total, arm.squares, rel_tol=1e-9, abs_tol=1e-9) or not 0 <= arm.total <= arm.count:
            raise ValueError(f"{name} must hold outcomes of 0 and 1, so that total and squares are equal")
