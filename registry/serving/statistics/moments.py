"""What an arm's outcomes are reduced to: count, sum and sum of squares. They add up, so a day's can be stored alone."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .arguments import require_count, require_finite

ROUNDING = 1e-9


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of one arm.

    ``count`` units, ``total`` the sum of their outcomes and ``squares`` the sum of the squared outcomes, in the
    metric's unit and its square; for a yes/no metric the outcome is 1 or 0, so both sums are the number of successes. A
    metric whose mean is large beside its spread (a timestamp) should be shifted by a constant first: the variance is a
    difference of the two sums.

    Raises ValueError for sums that no outcomes can have.
    """

    count: int
    total: float
    squares: float

    def __post_init__(self) -> None:
        require_count("count", self.count)
        require_finite("total", self.total)
        require_finite("squares", self.squares)
        least = self.total**2 / self.count if self.count else 0.0
        if self.squares < least - ROUNDING * max(1.0, abs(least)):
            raise ValueError("squares must be at least total² / count: no outcomes have these sums")
        if not self.count and (self.total or self.squares):
            raise ValueError("total and squares must be 0 where count is 0")

    @classmethod
    def of(cls, values: Iterable[float]) -> "Moments":
        known = [float(value) for value in values]
        return cls(len(known), math.fsum(known), math.fsum(value * value for value in known))

    @classmethod
    def of_proportion(cls, successes: int, count: int) -> "Moments":
        require_count("successes", successes)
        if successes > require_count("count", count):
            raise ValueError(f"successes must be at most count ({count}), not {successes}")
        return cls(count, float(successes), float(successes))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """In the metric's unit. Raises ValueError when there are no outcomes."""
        if not self.count:
            raise ValueError("count must be at least 1 for a mean")
        return self.total / self.count

    @property
    def variance(self) -> float:
        """The unbiased sample variance. Raises ValueError for fewer than two outcomes."""
        if self.count < 2:
            raise ValueError("count must be at least 2 for a variance")
        return max(0.0, self.squares - self.total**2 / self.count) / (self.count - 1)


def squared_error(arm: Moments) -> float:
    """The squared standard error of an arm's mean."""
    return arm.variance / arm.count


def effective_size(first: int, second: int) -> float:
    """n·m / (n + m): to what the precision of a difference of two means is proportional, whatever the split."""
    return first * second / (first + second) if first + second else 0.0
