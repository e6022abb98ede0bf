"""Guardrails: is B doing harm? Looked at after every request if one likes, and right at any time it is stopped.

Two of them. `check_difference` compares an arm with another by a one-sided confidence sequence; it is asymptotic
(Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and asymptotic confidence sequences,
Annals of Statistics 2024) with the half-normal mixture of Howard, Ramdas, McAuliffe and Sekhon (Time-uniform,
nonparametric, nonasymptotic confidence sequences, Annals of Statistics 2021). `check_rate` holds one arm's failures to
a limit and is exact from the first request on (a mixture of likelihood ratios; Ville's inequality). A limit on a
latency is a rate: the share of requests that were slower.
"""

import math
from dataclasses import dataclass

from .arguments import require_count, require_finite, require_share
from .moments import Moments, effective_size, squared_error

ALPHA = 0.01
LEAST_UNITS = 100  # an arm, before the asymptotic sequence begins
LEAST_EVENTS = (
    20  # units of both arms whose outcome differs from the most frequent value: rare failures need many units
)
RATES = 64  # of the mixture over failure rates
REACH = 6.0  # in log-odds above the limit: 400 times the limit's odds


@dataclass(frozen=True)
class Guardrail:
    """``harm``: by how much B is worse, in the metric's unit; ``low``: it is at least that, at all times together.

    ``alarm``: ``low`` is above the tolerance, or the rate above its limit: roll back. ``evidence``: the logarithm of
    the e-process, an alarm from log(guardrails/alpha) on. ``harm`` and ``low`` are None before there is enough to tell.
    """

    alarm: bool
    evidence: float
    harm: float | None = None
    low: float | None = None


def check_difference(
    a: Moments,
    b: Moments,
    *,
    tuned_units: int,
    tolerance: float = 0.0,
    higher_is_worse: bool = True,
    alpha: float = ALPHA,
    guardrails: int = 1,
) -> Guardrail:
    """Is B worse than A by more than ``tolerance`` (metric's unit)?

    ``tuned_units``: the units an arm at which the sequence is to be narrowest, the same at every look: about where harm
    should be noticed. ``guardrails``: how many share ``alpha`` (Bonferroni). Silent below 100 units an arm, and below
    20 failures (or other outcomes) in both arms together.

    Raises ValueError naming the argument.
    """
    level = _level(alpha, guardrails)
    if require_finite("tolerance", tolerance) < 0:
        raise ValueError(f"tolerance must be at least 0, not {tolerance!r}")
    edge = edge_of_difference(a.count, b.count, tuned_units=tuned_units, alpha=alpha, guardrails=guardrails)
    if edge is None or not _enough(a, b):
        return Guardrail(False, 0.0)
    harm = (b.mean - a.mean) * (1 if higher_is_worse else -1)
    error = math.sqrt(squared_error(a) + squared_error(b))
    time = effective_size(a.count, b.count)
    evidence = _mixture((harm - tolerance) / error * math.sqrt(time), time, _prior(tuned_units / 2, level))
    return Guardrail(evidence >= level, evidence, harm, harm - error * edge)


def edge_of_difference(
    count_a: int, count_b: int, *, tuned_units: int, alpha: float = ALPHA, guardrails: int = 1
) -> float | None:
    """How many standard errors B must be worse than tolerated for an alarm; None below 100 units an arm."""
    require_count("tuned_units", tuned_units, 1)
    level = _level(alpha, guardrails)
    if min(count_a, count_b) < LEAST_UNITS:
        return None
    time = effective_size(count_a, count_b)
    return _edge(level, time, _prior(tuned_units / 2, level)) / math.sqrt(time)


def check_rate(failures: int, count: int, *, limit: float, alpha: float = ALPHA, guardrails: int = 1) -> Guardrail:
    """Is the failure rate above ``limit`` (a share)? Exact for any number of requests and any time of stopping.

    The likelihood of a mixture of rates above the limit beside that of the limit: while the true rate is at most the
    limit, no request is expected to raise it. ``low`` stays None. Raises ValueError naming the argument.
    """
    require_share("limit", limit)
    level = _level(alpha, guardrails)
    if require_count("failures", failures) > require_count("count", count):
        raise ValueError(f"failures must be at most count ({count}), not {failures}")
    evidence = _rate_evidence(failures, count, limit)
    harm = failures / count - limit if count else None
    return Guardrail(evidence >= level, evidence, harm, None)


def _level(alpha: float, guardrails: int) -> float:
    return math.log(require_count("guardrails", guardrails, 1) / require_share("alpha", alpha))


def _enough(a: Moments, b: Moments) -> bool:
    if squared_error(a) + squared_error(b) == 0:
        return False
    yes_or_no = all(math.isclose(arm.total, arm.squares) for arm in (a, b))
    yes, count = a.total + b.total, a.count + b.count
    return not yes_or_no or min(yes, count - yes) >= LEAST_EVENTS


def _prior(time: float, level: float) -> float:
    """The mixture's precision that makes the sequence about narrowest at a time (Howard et al. 2021, 3.5)."""
    return time / (2 * level + math.log(1 + 2 * level))


def _mixture(score: float, time: float, prior: float) -> float:
    """The logarithm of the mean of exp(l·score - l²·time/2) over half-normal l ≥ 0 with this precision."""
    root = score / math.sqrt(time + prior)
    return math.log(2) + (math.log(prior) - math.log(time + prior)) / 2 + _log_ratio(root)


def _log_ratio(value: float) -> float:
    """The logarithm of the normal distribution function times exp(value²/2), also where either is beyond any float."""
    if value > -30:
        return value**2 / 2 + math.log(math.erfc(-value / math.sqrt(2)) / 2)
    return -math.log(-value * math.sqrt(2 * math.pi))


def _edge(level: float, time: float, prior: float) -> float:
    """The score at which the mixture reaches the level, by halving."""
    low, high = 0.0, math.sqrt(2 * (level + math.log((time + prior) / prior)) * (time + prior)) + 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _mixture(middle, time, prior) < level else (low, middle)
    return high


def _rate_evidence(failures: int, count: int, limit: float) -> float:
    logs = []
    for rate in _rates_above(limit):
        per_failure, per_success = math.log(rate / limit), math.log1p(-rate) - math.log1p(-limit)
        logs.append(failures * per_failure + (count - failures) * per_success)
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / RATES)


def _rates_above(limit: float) -> list[float]:
    """Rates whose log-odds lie above the limit's by squares, so that most lie near it."""
    odds = math.log(limit) - math.log1p(-limit)
    return [1 / (1 + math.exp(-odds - REACH * ((number + 0.5) / RATES) ** 2)) for number in range(RATES)]
