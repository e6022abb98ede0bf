"""Labelled quality compared on the same requests: the live model and its shadow both answered, one label judges both.

What makes a request hard is hard for both, so the difference varies far less than two separate arms do, and every label
serves both models. Where both gave the same answer, neither is righter, whatever the label would be: only requests with
different answers need one. For right and wrong answers this is McNemar's comparison (Note on the sampling error of the
difference between correlated proportions or percentages, Psychometrika 1947): only the requests that one model alone
got right tell anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import require_count, require_finite, require_positive
from .moments import Moments
from .planning import Design, Plan
from .verdict import LEAST_OF_EACH, LEAST_UNITS, Comparison, Metric, Verdict, judge


@dataclass(frozen=True)
class PairedAnswers:
    """How many labelled requests both models, only A, only B, and neither of them answered rightly.

    ``alike``: requests without a label to which both gave the same answer, so that their difference is 0 all the same.
    They must be all the requests of their time, not a choice among them, as must those with different answers.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    alike: int = 0

    def __post_init__(self) -> None:
        for name in ("both", "only_a", "only_b", "neither", "alike"):
            require_count(name, getattr(self, name))

    @property
    def count(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither + self.alike

    @property
    def differences(self) -> Moments:
        """Moments of B's answer less A's: 1, 0 or -1 a request."""
        return Moments(self.count, float(self.only_b - self.only_a), float(self.only_a + self.only_b))


@dataclass(frozen=True)
class LabelsNeeded:
    """Labels for the power of a design: by pairs, and by splitting the labelled requests between both models.

    ``differing``: by pairs, when only requests with different answers are labelled.
    """

    paired: int
    split: int
    differing: int

    @property
    def saving(self) -> float:
        """How many times fewer labels pairs need."""
        return self.split / self.paired


def mcnemar_p(answers: PairedAnswers) -> float:
    """The exact two-sided p-value that both models are right equally often, looked at once; 1 without disagreement."""
    disagreements = answers.only_a + answers.only_b
    fewer = min(answers.only_a, answers.only_b)
    if not disagreements:
        return 1.0
    whole = math.lgamma(disagreements + 1) - disagreements * math.log(2)
    logs = (whole - math.lgamma(k + 1) - math.lgamma(disagreements - k + 1) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def plan_pairs(*, deviation: float, minimum_effect: float, design: Design | None = None) -> Plan:
    """Labelled requests for a paired comparison; both arms of the plan are the same requests.

    ``deviation``: the standard deviation of the difference of the two models on one request (for right and wrong
    answers the root of the share of requests that one model alone gets right, about), in the unit of
    ``minimum_effect``. Raises ValueError naming the argument.
    """
    require_positive("deviation", deviation)
    require_positive("minimum_effect", minimum_effect)
    design = design or Design()
    pairs = max(2, math.ceil((design.drift * deviation / minimum_effect) ** 2))
    return Plan(design, minimum_effect, pairs, pairs)


def paired_verdict(
    differences: Moments,
    *,
    plan: Plan,
    metric: Metric | None = None,
    looks: Sequence[float] = (),
    per_day: float | None = None,
    last: bool = False,
) -> Verdict:
    """Judge the differences B - A of labelled requests, group-sequentially as `verdict` does.

    ``plan`` from `plan_pairs`; ``per_day``: labels a day. A proportion or share needs ten requests that one model alone
    got right, any other metric thirty requests. Raises ValueError as `verdict` does.
    """
    metric = metric or Metric()
    days = None
    if per_day is not None:
        days = max(1, math.ceil((plan.units_b - differences.count) / require_positive("per_day", per_day)))
    comparison = _comparison(differences, metric)
    return judge(
        comparison, plan=plan, planned_size=plan.units_b, metric=metric, looks=looks, days=days, last=last
    )  # fmt: skip


def labels_needed(
    *,
    variance_a: float,
    variance_b: float,
    variance_difference: float,
    effect: float,
    design: Design | None = None,
    share_differing: float = 1.0,
) -> LabelsNeeded:
    """Labels for the difference ``effect``, from the variances of the models' scores and of their difference.

    Splitting halves the labelled requests between the models. ``share_differing``: the share of requests that get
    different answers (0 to 1), where a score depends on the answer alone. Raises ValueError naming the argument.
    """
    for name, value in (("variance_a", variance_a), ("variance_b", variance_b)):
        if require_finite(name, value) < 0:
            raise ValueError(f"{name} must be at least 0, not {value!r}")
    require_positive("variance_difference", variance_difference)
    if require_positive("share_differing", share_differing) > 1:
        raise ValueError(f"share_differing must be at most 1, not {share_differing!r}")
    factor = ((design or Design()).drift / require_positive("effect", abs(effect))) ** 2
    paired = factor * variance_difference
    split = 2 * factor * (variance_a + variance_b)
    return LabelsNeeded(math.ceil(paired), math.ceil(split), math.ceil(paired * share_differing))


def _comparison(differences: Moments, metric: Metric) -> Comparison:
    if differences.count < 2:
        return Comparison(0.0, 0.0, differences.count, False)
    error = math.sqrt(differences.variance / differences.count)
    enough = error > 0 and differences.count >= LEAST_UNITS
    if metric.in_points:
        enough = enough and differences.squares >= LEAST_OF_EACH
    few = _gains_and_losses(differences) if metric.in_points else None
    return Comparison(differences.mean, error, differences.count, enough, few)


def _gains_and_losses(differences: Moments) -> tuple[Moments, Moments]:
    """Requests that A alone, and that B alone got right: their shares' difference is that of the models.

    Where both are few they are as good as independent: their covariance is the product of the two shares.
    """
    losses, gains = (max(0.0, (differences.squares + sign * differences.total) / 2) for sign in (-1, 1))
    return Moments(differences.count, losses, losses), Moments(differences.count, gains, gains)
