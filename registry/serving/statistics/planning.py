"""How many units and days an A/B test takes, from the effect that it must not miss.

The units of a test with one look are multiplied by what its looks cost (the inflation factor of the group-sequential
design; Jennison and Turnbull, Group Sequential Methods, 1999, chapter 2), which for the spending of this package is a
few hundredths. On average a test ends earlier than planned.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from .arguments import require_count, require_finite, require_positive, require_share
from .moments import effective_size
from .spending import (
    NORMAL,
    Boundaries,
    boundaries,
    crossing_probabilities,
    equal_fractions,
)


@dataclass(frozen=True)
class Design:
    """The error rates of a test and how often it is looked at.

    ``alpha`` is two-sided; ``power`` is the probability to find the minimum effect where it exists; ``looks`` is the
    greatest number of looks, planned at equal distances (they may be taken at others: the boundaries follow).
    """

    alpha: float = 0.05
    power: float = 0.8
    looks: int = 28

    def __post_init__(self) -> None:
        require_share("alpha", self.alpha)
        require_count("looks", self.looks, 1)
        if not self.alpha < require_share("power", self.power):
            raise ValueError("power must be greater than alpha")

    @property
    def boundaries(self) -> Boundaries:
        """Those of the looks as planned. Raises ValueError for more than 100 looks."""
        return boundaries(equal_fractions(self.looks), self.alpha)

    @property
    def drift(self) -> float:
        """How many standard errors the minimum effect is at the planned information."""
        return _drift(self)

    @property
    def inflation(self) -> float:
        """Units at most, beside those of a test with one look and the same error rates."""
        return (self.drift / Design(self.alpha, self.power, 1).drift) ** 2

    def expected_share(self, effect: float) -> float:
        """The mean share of the planned units that is used, ``effect`` being a multiple of the minimum effect."""
        known = self.boundaries
        above, below = crossing_probabilities(known, self.drift * require_finite("effect", effect))
        ended = [high + low for high, low in zip(above, below, strict=True)]
        used = sum(share * fraction for share, fraction in zip(ended, known.fractions, strict=True))
        return used + (1 - sum(ended)) * known.fractions[-1]


@dataclass(frozen=True)
class Plan:
    """A planned test: what it looks for, and the units that takes.

    ``minimum_effect`` in the metric's unit; ``units_a`` and ``units_b`` at most; ``days`` at most (None where the
    traffic is unknown); ``usual_days`` those used on average when the effect is the minimum effect.
    """

    design: Design
    minimum_effect: float
    units_a: int
    units_b: int
    days: int | None = None
    usual_days: int | None = None

    def __post_init__(self) -> None:
        require_positive("minimum_effect", self.minimum_effect)
        require_count("units_a", self.units_a, 2)
        require_count("units_b", self.units_b, 2)

    @property
    def units(self) -> int:
        return self.units_a + self.units_b

    @property
    def effective_size(self) -> float:
        """n·m / (n + m) of the two arms: what information fractions are shares of."""
        return effective_size(self.units_a, self.units_b)


def plan_proportion(
    *,
    rate: float,
    minimum_effect: float,
    design: Design | None = None,
    share_b: float = 0.5,
    per_day: float | None = None,
) -> Plan:
    """Units for a yes/no metric.

    ``rate``: the share of yes in arm A, 0 to 1; ``minimum_effect``: the difference, as a share too (0.01 is one point);
    either sign of it will be found. ``share_b``: the share of the units that arm B gets; ``per_day``: units a day, both
    arms together. The arm B that varies more, of the two at that distance, is planned for.

    Raises ValueError for a rate outside (0, 1), or an effect that leads out of it on both sides.
    """
    require_share("rate", rate)
    require_positive("minimum_effect", minimum_effect)
    reached = [other for other in (rate - minimum_effect, rate + minimum_effect) if 0 < other < 1]
    if not reached:
        raise ValueError(f"minimum_effect must leave rate ± minimum_effect between 0 and 1, not {minimum_effect!r}")
    other = max(value * (1 - value) for value in reached)
    return _plan(rate * (1 - rate), other, minimum_effect, design, share_b, per_day)


def plan_mean(
    *,
    deviation: float,
    minimum_effect: float,
    design: Design | None = None,
    share_b: float = 0.5,
    per_day: float | None = None,
    correlation: float = 0.0,
) -> Plan:
    """Units for the mean of a number.

    ``deviation``: the standard deviation of a unit's outcome, and ``minimum_effect`` the difference of the means, both
    in the metric's unit; ``correlation``: that of the outcome with the covariate that the test will be adjusted by, -1
    to 1 (1 - correlation² of the variance is left). Others as for `plan_proportion`.

    Raises ValueError naming the argument.
    """
    require_positive("deviation", deviation)
    require_positive("minimum_effect", minimum_effect)
    if not -1 < require_finite("correlation", correlation) < 1:
        raise ValueError(f"correlation must lie between -1 and 1, not {correlation!r}")
    variance = deviation**2 * (1 - correlation**2)
    return _plan(variance, variance, minimum_effect, design, share_b, per_day)


def _plan(
    variance_a: float, variance_b: float, effect: float, design: Design | None, share_b: float, per_day: float | None
) -> Plan:
    design = design or Design()
    require_share("share_b", share_b)
    total = (design.drift / effect) ** 2 * (variance_a / (1 - share_b) + variance_b / share_b)
    units_a, units_b = (max(2, math.ceil(total * share)) for share in (1 - share_b, share_b))
    if per_day is None:
        return Plan(design, effect, units_a, units_b)
    require_positive("per_day", per_day)
    days = math.ceil((units_a + units_b) / per_day)
    usual = math.ceil((units_a + units_b) * design.expected_share(1.0) / per_day)
    return Plan(design, effect, units_a, units_b, days, usual)


@lru_cache(maxsize=64)
def _drift(design: Design) -> float:
    """The drift at which the design has its power: by halving, as power rises with it."""
    low, high = 0.0, 2 * (NORMAL.inv_cdf(1 - design.alpha / 2) + NORMAL.inv_cdf(design.power)) + 2
    for _ in range(40):
        middle = (low + high) / 2
        above, below = crossing_probabilities(design.boundaries, middle)
        low, high = (middle, high) if sum(above) + sum(below) < design.power else (low, middle)
        if high - low < 1e-8:
            break
    return (low + high) / 2
