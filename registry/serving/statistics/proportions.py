"""Intervals of proportions from few outcomes, where a normal approximation of the difference does not hold.

Wilson's score interval (Probable inference, the law of succession, and statistical inference, JASA 1927), and Newcombe's of a
difference made of two of these (Interval estimation for the difference between independent proportions: comparison of eleven
methods, Statistics in Medicine 1998, method 10): with no failure at all it still says how many there may be. Fagerland,
Lydersen and Laake (Recommended confidence intervals for two independent binomial proportions, Statistical Methods in Medical
Research 2015) recommend it among three.
"""

import math

from .moments import Moments

NORMAL_95 = 1.959964  # of a two-sided interval of 95 %


def wilson(successes: float, count: int, z: float = NORMAL_95) -> tuple[float, float]:
    """The score interval of a proportion, within 0 and 1."""
    share = successes / count
    centre = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, (centre - reach) / (1 + z * z / count)), min(1.0, (centre + reach) / (1 + z * z / count))


def newcombe(a: Moments, b: Moments, z: float = NORMAL_95) -> tuple[float, float]:
    """The interval of the difference B - A of two independent proportions.

    Outcomes between 0 and 1 (the share of a unit's rows that were right) vary less than those that are 0 or 1: for them it is
    on the safe side.
    """
    (low_a, high_a), (low_b, high_b) = (wilson(arm.total, arm.count, z) for arm in (a, b))
    difference = b.mean - a.mean
    low = difference - math.hypot(b.mean - low_b, high_a - a.mean)
    high = difference + math.hypot(high_b - b.mean, a.mean - low_a)
    return low, high
