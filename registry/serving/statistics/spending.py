"""Group-sequential boundaries: how far apart two arms must be at each look, so that looking often costs little.

The error rate is spent by the function of Lan and DeMets (Discrete sequential boundaries for clinical trials,
Biometrika 1983) whose boundaries are like those of O'Brien and Fleming (Biometrics 1979): almost nothing early, almost
all at the planned end. Each boundary is solved for at the information that a look really has, by the recursion of
Armitage, McPherson and Rowe (Repeated significance tests on accumulating data, JRSS A 1969) with Gauss-Legendre
integration.

The scale: an information fraction t is the share of the planned information that a look has; above 1 where more came
than was planned. The score at t is a Brownian motion with a drift, z·√t, where z is the difference in standard errors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from .arguments import require_count, require_finite, require_share

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

NORMAL = NormalDist()
FARTHEST = 8.0  # standard errors; beyond lies 1e-15, which is less than the integration can tell
LEAST_STEP = 1e-4  # between two looks, of the planned information
MOST_LOOKS = 100
NODES = 12  # of each panel, which is at most two standard deviations of a step wide


def obrien_fleming_spent(fraction: float, alpha: float) -> float:
    """The share of ``alpha`` (two-sided) that may have been spent at an information fraction; both sides together."""
    require_share("alpha", alpha)
    if fraction <= 0:
        return 0.0
    edge = -NORMAL.inv_cdf(alpha / 4)
    return min(alpha, 4 * NORMAL.cdf(-edge / math.sqrt(min(fraction, 1.0))))


@dataclass(frozen=True)
class Boundaries:
    """``fractions[k]``: look k's information; ``edges[k]``: the |z| at which it decides; ``spent[k]``: error up to it."""

    fractions: tuple[float, ...]
    edges: tuple[float, ...]
    spent: tuple[float, ...]


def boundaries(fractions: Sequence[float], alpha: float = 0.05, *, last: bool = False) -> Boundaries:
    """The two-sided symmetric boundaries at looks with these information fractions.

    With ``last`` the last look spends all that is left, though it has less than the planned information (the test
    ended early for a reason that has nothing to do with its outcomes). No look decides below the edge 8.

    Raises ValueError for fractions that do not rise by at least 1e-4, for more than 100 looks, and for an ``alpha``
    outside (0, 1).
    """
    return _boundaries(_checked(fractions), require_share("alpha", alpha), last)


def equal_fractions(looks: int) -> tuple[float, ...]:
    """Looks at equal distances up to the planned information."""
    require_count("looks", looks, 1)
    return tuple((look + 1) / looks for look in range(looks))


def crossing_probabilities(known: Boundaries, drift: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """How probable it is that the test ends at each look above, and below, when z is drift·√t on average."""
    require_finite("drift", drift)
    above, below = [], []
    for stage, fraction, edge in _stages(known.fractions, known.edges):
        level = edge * math.sqrt(fraction)
        above.append(stage.exit_above(fraction, level, drift))
        below.append(stage.exit_above(fraction, level, -drift))  # the stage is symmetric: below is above, mirrored
    return tuple(above), tuple(below)


def median_unbiased_drift(known: Boundaries, z: float) -> float:
    """The drift at which a test that ended at its last look is as likely to end higher as lower.

    Outcomes are ordered by look, then by z (Siegmund 1978; Tsiatis, Rosner and Mehta, Biometrics 1984). The plain
    estimate is too large in a test that ended early.
    """
    require_finite("z", z)
    fraction, side = known.fractions[-1], math.copysign(1.0, z)
    stages = list(_stages(known.fractions, known.edges))

    def higher(drift: float) -> float:
        earlier = sum(stage.exit_above(t, edge * math.sqrt(t), drift) for stage, t, edge in stages[:-1])
        return earlier + stages[-1][0].exit_above(fraction, abs(z) * math.sqrt(fraction), drift)

    plain = abs(z) / math.sqrt(fraction)
    spread = 8 / math.sqrt(fraction)
    return side * _root(lambda drift: higher(drift) - 0.5, plain - spread, plain + spread)


# --- the recursion ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """Where the score may be after a look that did not end the test, without drift: ``mass[i]`` at ``points[i]``."""

    time: float
    points: "Array"
    mass: "Array"

    def exit_above(self, time: float, level: float, drift: float = 0.0) -> float:
        """How probable a score above ``level`` at the next look is. A drift tilts the mass by its likelihood ratio."""
        import numpy as np

        step = time - self.time
        tilted = self.mass * np.exp(drift * self.points - drift**2 * self.time / 2)
        return float(tilted @ _upper_tail((level - self.points - drift * step) / math.sqrt(step)))

    def after(self, time: float, edge: float, finest: float) -> "_Stage":
        """The stage behind the next look, which ends the test where |z| reaches ``edge``."""
        import numpy as np

        step = time - self.time
        points, weights = _grid(min(edge, FARTHEST) * math.sqrt(time), math.sqrt(finest))
        distances = points[:, None] - self.points[None, :]
        density = np.exp(-(distances**2) / (2 * step)) @ self.mass / math.sqrt(2 * math.pi * step)
        return _Stage(time, points, weights * density)


def _start() -> _Stage:
    import numpy as np

    return _Stage(0.0, np.zeros(1), np.ones(1))


def _stages(fractions: Sequence[float], edges: Sequence[float]) -> list[tuple[_Stage, float, float]]:
    """Each look with the stage before it: (stage, fraction, edge)."""
    steps = _steps(fractions)
    known, stage = [], _start()
    for look, (fraction, edge) in enumerate(zip(fractions, edges, strict=True)):
        known.append((stage, fraction, edge))
        if look + 1 < len(fractions):
            stage = stage.after(fraction, edge, min(steps[look], steps[look + 1]))
    return known


@lru_cache(maxsize=256)
def _boundaries(fractions: tuple[float, ...], alpha: float, last: bool) -> Boundaries:
    steps = _steps(fractions)
    stage, edges, spent = _start(), [], []
    used = 0.0
    for look, fraction in enumerate(fractions):
        final = last and look + 1 == len(fractions)
        allowed = (alpha if final else obrien_fleming_spent(fraction, alpha)) / 2 - used
        edge = _edge(stage, fraction, allowed)
        used += stage.exit_above(fraction, edge * math.sqrt(fraction))
        edges.append(edge)
        spent.append(2 * used)
        if look + 1 < len(fractions):
            stage = stage.after(fraction, edge, min(steps[look], steps[look + 1]))
    return Boundaries(fractions, tuple(edges), tuple(spent))


def _edge(stage: _Stage, fraction: float, allowed: float) -> float:
    """The z above which the test ends with the allowed probability."""
    root = math.sqrt(fraction)

    def excess(edge: float) -> float:
        return stage.exit_above(fraction, edge * root) - allowed

    return FARTHEST if excess(FARTHEST) >= 0 else _root(excess, 0.0, FARTHEST)


def _root(function: Any, low: float, high: float) -> float:
    """Where a monotone function with a change of sign is zero, by halving."""
    rising = function(high) > function(low)
    for _ in range(60):
        middle = (low + high) / 2
        if (function(middle) > 0) == rising:
            high = middle
        else:
            low = middle
        if high - low < 1e-10:
            break
    return (low + high) / 2


def _grid(reach: float, scale: float) -> tuple["Array", "Array"]:
    """Points and weights of Gauss-Legendre panels over (-reach, reach), none wider than two of ``scale``."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    panels = max(8, math.ceil(reach / scale))
    half = reach / panels
    centres = -reach + half * (2 * np.arange(panels) + 1)
    return (centres[:, None] + half * nodes).ravel(), np.tile(half * weights, panels)


def _upper_tail(values: "Array") -> "Array":
    import numpy as np

    return np.array([math.erfc(value) for value in (values / math.sqrt(2)).tolist()]) / 2


def _steps(fractions: Sequence[float]) -> list[float]:
    return [late - early for early, late in zip((0.0, *fractions[:-1]), fractions, strict=True)]


def _checked(fractions: Sequence[float]) -> tuple[float, ...]:
    known = tuple(require_finite("fractions", value) for value in fractions)
    if not 1 <= len(known) <= MOST_LOOKS:
        raise ValueError(f"fractions must be those of 1 to {MOST_LOOKS} looks, not of {len(known)}")
    if min(_steps(known)) < LEAST_STEP * (1 - 1e-9):
        raise ValueError(f"fractions must rise from above 0 by at least {LEAST_STEP} a look")
    return known
