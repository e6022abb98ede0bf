"""A bandit on yes/no rewards, for whoever wants little regret rather than a verdict.

Thompson sampling (Thompson, On the likelihood that one unknown probability exceeds another, Biometrika 1933; Chapelle
and Li, An empirical evaluation of Thompson sampling, NeurIPS 2011): each arm is taken with the probability that it is
the best, given what is known. That probability is integrated rather than sampled, mixed with a floor for every arm, and
logged with each choice, so that what the arms are worth can be estimated from the log without bias (`estimate_value`;
Horvitz and Thompson 1952).
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arguments import require_finite, require_positive

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

FLOOR = 0.05
POINTS = 1200  # an arm
REACH = 60.0  # standard deviations of a posterior that are integrated over


@dataclass(frozen=True)
class BetaArm:
    """What is known of an arm's reward rate: a Beta distribution; (1, 1) knows nothing.

    Raises ValueError for parameters below 1, where the density has poles.
    """

    successes: float = 1.0
    failures: float = 1.0

    def __post_init__(self) -> None:
        for name in ("successes", "failures"):
            if require_finite(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1 (1 is the prior's share), not {getattr(self, name)!r}")

    def after(self, rewarded: bool) -> "BetaArm":
        return BetaArm(self.successes + rewarded, self.failures + (not rewarded))

    @property
    def mean(self) -> float:
        return self.successes / (self.successes + self.failures)

    @property
    def deviation(self) -> float:
        total = self.successes + self.failures
        return math.sqrt(self.successes * self.failures / (total**2 * (total + 1)))


@dataclass(frozen=True)
class Choice:
    """The index of the arm taken, and the probability with which it was: both belong into the log."""

    arm: int
    propensity: float


def propensities(arms: Sequence[BetaArm], *, floor: float = FLOOR) -> tuple[float, ...]:
    """The probability with which each arm is taken: floor + (1 - floor·arms)·P(it is the best). They add up to 1.

    Raises ValueError without arms, or for a floor below 0 or above 1 / arms.
    """
    if not arms:
        raise ValueError("arms must not be empty")
    return with_floor(probabilities_best(arms), floor)


def with_floor(best: Sequence[float], floor: float) -> tuple[float, ...]:
    """The same from the probabilities to be the best, where these are known already. Raises ValueError."""
    if not 0 <= require_finite("floor", floor) <= 1 / len(best):
        raise ValueError(f"floor must lie between 0 and {1 / len(best):.4g} for {len(best)} arms, not {floor!r}")
    return tuple(floor + (1 - floor * len(best)) * share for share in best)


def probabilities_best(arms: Sequence[BetaArm]) -> tuple[float, ...]:
    """P(arm i has the highest rate), by the trapezoid rule on points that lie where each posterior does."""
    import numpy as np

    _, below = _distributions(arms)
    shares = []
    for index in range(len(arms)):
        others = np.prod(np.delete(below, index, axis=0), axis=0)
        shares.append(float(((others[1:] + others[:-1]) / 2 * np.diff(below[index])).sum()))
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def expected_losses(arms: Sequence[BetaArm]) -> tuple[float, ...]:
    """What a choice of arm i is expected to lose: E[the highest rate] - E[rate i], from the posteriors.

    The highest of independent rates is below x where all of them are: its mean is 1 less the integral of that product.
    Raises ValueError without arms.
    """
    import numpy as np

    points, below = _distributions(arms)
    every = np.prod(below, axis=0)
    highest = 1 - float(((every[1:] + every[:-1]) / 2 * np.diff(points)).sum())
    return tuple(max(0.0, highest - arm.mean) for arm in arms)


def _distributions(arms: Sequence[BetaArm]) -> tuple["Array", "Array"]:
    """Points over [0, 1], and of each arm P(rate < point) there. Raises ValueError without arms."""
    import numpy as np

    if not arms:
        raise ValueError("arms must not be empty")
    points = np.unique(np.concatenate([_points(arm) for arm in arms]))
    widths = np.diff(points)
    densities = np.array([_density(arm, points) for arm in arms])
    pieces = (densities[:, 1:] + densities[:, :-1]) / 2 * widths
    below = np.concatenate([np.zeros((len(arms), 1)), pieces.cumsum(1)], axis=1)
    below /= below[:, -1:]
    return points, below


def choose(shares: Sequence[float], randomness: random.Random) -> Choice:
    """Draw an arm with these probabilities (from `propensities`); the same seed draws the same arms.

    Raises ValueError for shares that do not add up to 1.
    """
    if not shares or not math.isclose(math.fsum(shares), 1.0, abs_tol=1e-9) or min(shares) < 0:
        raise ValueError("shares must be at least 0 and add up to 1")
    arm = randomness.choices(range(len(shares)), weights=shares)[0]
    return Choice(arm, shares[arm])


def estimate_value(rewards: Iterable[tuple[float, float]]) -> float:
    """The mean reward of an arm if it had always been taken, from the log of its choices: (reward, propensity) each.

    Raises ValueError as `estimate_value_of_sums`.
    """
    return estimate_value_of_sums((propensity, 1, reward) for reward, propensity in rewards)


def estimate_value_of_sums(sums: Iterable[tuple[float, int, float]]) -> float:
    """The same from (propensity, choices, sum of their rewards), for all choices with one propensity together.

    Self-normalised: sum of reward / propensity over the sum of 1 / propensity. Raises ValueError for an empty log and
    for propensities outside (0, 1].
    """
    weighted = weights = 0.0
    for propensity, count, total in sums:
        if require_positive("propensity", propensity) > 1:
            raise ValueError(f"propensity must be at most 1, not {propensity!r}")
        weighted += total / propensity
        weights += count / propensity
    if not weights:
        raise ValueError("rewards must not be empty")
    return weighted / weights


def _points(arm: BetaArm) -> "Array":
    """Dense about the mean and ever sparser outwards: skewed posteriors have tails of dozens of standard deviations."""
    import numpy as np

    outwards = math.asinh(REACH)
    points: Array = arm.mean + arm.deviation * np.sinh(np.linspace(-outwards, outwards, POINTS))
    return np.concatenate([[0.0, 1.0], points[(points > 0) & (points < 1)]])


def _density(arm: BetaArm, points: "Array") -> "Array":
    """The Beta density up to a factor; its largest value is 1."""
    import numpy as np

    a, b = arm.successes - 1, arm.failures - 1
    inside = np.clip(points, 1e-300, 1.0)
    logs = a * np.log(inside) + b * np.log1p(-np.clip(points, 0.0, 1 - 1e-16)) if a or b else np.zeros(len(points))
    density: Array = np.exp(logs - logs.max())
    return density
