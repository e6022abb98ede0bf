"""Less variance by a covariate that the test cannot have changed: a unit's past, or what the model in shadow scored.

CUPED (Deng, Xu, Kohavi and Walker, Improving the sensitivity of online controlled experiments by utilizing
pre-experiment data, WSDM 2013): from each outcome y, theta·(x - mean of x) is taken away; the difference of the means
keeps its expectation and loses the share correlation² of its variance.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .arguments import require_finite
from .moments import Moments


@dataclass(frozen=True)
class CovariateMoments:
    """One arm's outcomes and covariates: moments of either, and the sum of their products (product of their units).

    Raises ValueError when the counts differ, or for a product sum that no values can have.
    """

    outcome: Moments
    covariate: Moments
    products: float

    def __post_init__(self) -> None:
        require_finite("products", self.products)
        if self.outcome.count != self.covariate.count:
            raise ValueError("covariate must have as many values as outcome")
        limit = self.outcome.squares * self.covariate.squares
        if self.products**2 > limit * (1 + 1e-9):
            raise ValueError("products must be at most the root of the two sums of squares multiplied")

    @classmethod
    def of(cls, outcomes: Iterable[float], covariates: Iterable[float]) -> "CovariateMoments":
        pairs = list(zip(outcomes, covariates, strict=True))
        products = math.fsum(y * x for y, x in pairs)
        return cls(Moments.of(y for y, _ in pairs), Moments.of(x for _, x in pairs), products)

    def __add__(self, other: "CovariateMoments") -> "CovariateMoments":
        return CovariateMoments(
            self.outcome + other.outcome, self.covariate + other.covariate, self.products + other.products
        )

    @property
    def _centred_products(self) -> float:
        count = self.outcome.count
        return self.products - self.outcome.total * self.covariate.total / count if count else 0.0

    @property
    def _centred_squares(self) -> float:
        count = self.covariate.count
        return max(0.0, self.covariate.squares - self.covariate.total**2 / count) if count else 0.0


@dataclass(frozen=True)
class Adjusted:
    """Both arms after the adjustment, ``theta`` (outcome's unit per covariate's), and what it saved.

    ``variance_left``: the squared standard error of the difference beside that without adjustment, 1 where the
    covariate tells nothing.
    """

    a: Moments
    b: Moments
    theta: float
    variance_left: float


def adjust(a: CovariateMoments, b: CovariateMoments) -> Adjusted:
    """Both arms' moments with the covariate taken out, theta pooled within the arms.

    The centre is the mean covariate over both arms, so the adjusted outcomes keep the level of the plain ones. A
    covariate that never varies changes nothing. Raises ValueError for an arm of fewer than two units.
    """
    for name, arm in (("a", a), ("b", b)):
        if arm.outcome.count < 2:
            raise ValueError(f"{name} must have at least 2 units to be adjusted")
    spread = a._centred_squares + b._centred_squares
    theta = (a._centred_products + b._centred_products) / spread if spread else 0.0
    centre = (a.covariate.total + b.covariate.total) / (a.covariate.count + b.covariate.count)
    adjusted_a, adjusted_b = _without(a, theta, centre), _without(b, theta, centre)
    before = a.outcome.variance / a.outcome.count + b.outcome.variance / b.outcome.count
    after = adjusted_a.variance / adjusted_a.count + adjusted_b.variance / adjusted_b.count
    return Adjusted(adjusted_a, adjusted_b, theta, after / before if before else 1.0)


def _without(arm: CovariateMoments, theta: float, centre: float) -> Moments:
    """The moments of y - theta·(x - centre), from sums about the means, which lose fewer digits."""
    count = arm.outcome.count
    mean = arm.outcome.mean - theta * (arm.covariate.mean - centre)
    about = arm.outcome.variance * (count - 1) - 2 * theta * arm._centred_products + theta**2 * arm._centred_squares
    return Moments(count, mean * count, max(0.0, about) + mean**2 * count)
