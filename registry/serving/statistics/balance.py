"""Whether the units arrive in the arms as they were meant to: the alarm of a sample-ratio mismatch.

A test whose assignment is off compares different people, and its verdict is worth nothing (Fabijan et al., Diagnosing
sample ratio mismatch in online controlled experiments, KDD 2019). Two tests share the error rate of 0.1 %:

- about when a sixteenth, an eighth, a quarter, half and all of the planned units have come, a chi-square test, whose
  error rate is spent as O'Brien and Fleming's boundaries do: nearly all of it at the planned end, where the power of a
  plain chi-square test is kept;
- at every look, a mixture martingale of the counts (Lindon and Malek, Anytime-valid inference for multinomial count
  data, NeurIPS 2022), valid however often it is looked at, which takes a hundredth of the error rate: a broken split
  is told within hundreds of units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .arguments import require_count, require_positive, require_share
from .spending import obrien_fleming_spent

ALPHA = 0.001
ALWAYS_SHARE = 0.01  # of alpha, for the test at every look
LATEST_EARLY = 0.6  # of the plan; a chi-square test later than that would cost the last one its power
CONCENTRATION = 500.0  # of the mixture: mismatches of some points are looked for


@dataclass(frozen=True)
class Balance:
    """``alarm``, why in ``sentence``, and what to hand over as ``tested`` at the next look.

    ``p_value`` that of the chi-square test, None at looks where it was not due; ``tested`` the totals at which it was
    made.
    """

    alarm: bool
    sentence: str
    p_value: float | None
    tested: tuple[int, ...]


def check_balance(
    counts: Sequence[int],
    *,
    planned: int,
    weights: Sequence[float] | None = None,
    tested: Sequence[int] = (),
    alpha: float = ALPHA,
) -> Balance:
    """Compare the units in each arm with what the weights promised (equal ones if none are given).

    ``planned``: the units of all arms at the end of the test; ``tested``: from the `Balance` before. False alarms over
    the whole test, at any number of looks: at most ``alpha``. An alarm stands: units that arrive later do not heal it.

    Raises ValueError for fewer than two arms, weights that are not positive or not as many as the arms, and totals in
    ``tested`` that do not rise or lie above the present one.
    """
    shares = _shares(counts, weights)
    total = sum(counts)
    require_count("planned", planned, 1)
    require_share("alpha", alpha)
    if any(late <= early for early, late in pairwise((0, *tested, total + 1))):
        raise ValueError("tested must rise, up to the units there are now")
    always = mixture_evidence(counts, weights=shares) >= -math.log(alpha * ALWAYS_SHARE)
    last = tested[-1] if tested else 0
    if not _due(total, last, planned):
        return Balance(always, _sentence(counts, shares, always), None, tuple(tested))
    rest = alpha * (1 - ALWAYS_SHARE)
    spent, allowed = (obrien_fleming_spent(units / planned, rest) for units in (last, total))
    p_value = chi_square_p(counts, weights=shares)
    alarm = always or p_value < allowed - spent
    return Balance(alarm, _sentence(counts, shares, alarm), p_value, (*tested, total))


def mixture_evidence(counts: Sequence[int], *, weights: Sequence[float] | None = None) -> float:
    """The logarithm of an e-process: it reaches log(1/alpha) at any time with a probability of at most alpha.

    The likelihood of the counts under shares drawn from a Dirichlet distribution around the weights, beside that under
    the weights themselves.
    """
    shares = _shares(counts, weights)
    evidence = math.lgamma(CONCENTRATION) - math.lgamma(CONCENTRATION + sum(counts))
    for count, share in zip(counts, shares, strict=True):
        prior = CONCENTRATION * share
        evidence += math.lgamma(prior + count) - math.lgamma(prior) - count * math.log(share)
    return evidence


def chi_square_p(counts: Sequence[int], *, weights: Sequence[float] | None = None) -> float:
    """The p-value of Pearson's test that the counts come from the weights, looked at once; 1 without units."""
    shares = _shares(counts, weights)
    total = sum(counts)
    if not total:
        return 1.0
    expected = [total * share for share in shares]
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    return chi_square_tail(statistic, len(counts) - 1)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """How probable a chi-square variable of ``degrees`` of freedom is above ``statistic``, by its finite series."""
    require_count("degrees", degrees, 1)
    if statistic <= 0:
        return 1.0
    half = statistic / 2
    if degrees % 2:
        tail, term = math.erfc(math.sqrt(half)), math.sqrt(half) * math.exp(-half) / math.gamma(1.5)
        first = 1.5
    else:
        tail, term = 0.0, math.exp(-half)
        first = 1.0
    for number in range(degrees // 2):
        tail += term
        term *= half / (first + number)
    return min(1.0, tail)


def _due(total: int, last: int, planned: int) -> bool:
    """Whether another halving of the plan has been passed since the last chi-square test, or the plan is full."""
    if total >= planned:
        return last < planned
    if not total or total > LATEST_EARLY * planned:
        return False
    return not last or math.floor(math.log2(planned / total)) < math.floor(math.log2(planned / last))


def _shares(counts: Sequence[int], weights: Sequence[float] | None) -> list[float]:
    if len(counts) < 2:
        raise ValueError("counts must be those of at least two arms")
    for count in counts:
        require_count("counts", count)
    weights = weights if weights is not None else [1.0] * len(counts)
    if len(weights) != len(counts):
        raise ValueError(f"weights must be as many as counts ({len(counts)}), not {len(weights)}")
    total = math.fsum(require_positive("weights", weight) for weight in weights)
    return [weight / total for weight in weights]


def _sentence(counts: Sequence[int], shares: Sequence[float], alarm: bool) -> str:
    total = sum(counts)
    seen = " / ".join(f"{100 * count / total if total else 0:.2f}" for count in counts)
    meant = " / ".join(f"{100 * share:.2f}" for share in shares)
    if alarm:
        return (
            f"The arms hold {seen} % of {total:,} units where {meant} % were meant, which chance does not explain: "
            "find out what loses or adds units before believing any verdict."
        )
    return f"The arms hold {seen} % of {total:,} units where {meant} % were meant; chance explains that."
