"""What a look says: a pure function of the experiment as it was frozen, of sums, and of what the looks before said."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

from registry.serving.statistics.balance import check_balance
from registry.serving.statistics.covariate import CovariateMoments, adjust
from registry.serving.statistics.moments import Moments, effective_size
from registry.serving.statistics.verdict import Verdict, verdict

from . import guardrails
from .design import metric_of, plan_of
from .guardrails import from_list
from .models import Experiment

Results = dict[str, Any]
LEAST_DAYS = 1 / 24  # after the start; before, units a day are a guess


def judge_look(experiment: Experiment, sums: Mapping[str, Any], until: datetime, earlier: Sequence[Results]) -> Results:
    """{verdict, balance, guardrails, variance_left}, as plain JSON.

    ``earlier``: the results of the looks before, in order; a verdict that has ended stands. Raises ValueError where there are fewer outcomes than before.
    """
    balance = check_balance(
        [sums["units"][arm][0] for arm in "ab"], planned=plan_of(experiment).units,
        weights=[1 - experiment.share, experiment.share], tested=earlier[-1]["balance"]["tested"] if earlier else (),
    )  # fmt: skip
    off = balance.alarm or any(one["balance"]["alarm"] for one in earlier)
    a, b, left = arms_of(experiment, sums)
    ended = earlier[-1]["verdict"] if earlier and earlier[-1]["verdict"]["ended"] else None
    return plain(
        {
            "verdict": ended or asdict(_verdict(experiment, a, b, until, earlier, balanced=not off)),
            "balance": asdict(balance) | {"alarm": off},
            "guardrails": judge_guardrails(experiment, sums),
            "variance_left": left,
        }
    )


def judge_guardrails(experiment: Experiment, sums: Mapping[str, Any]) -> list[dict[str, Any]]:
    return guardrails.judge(
        experiment.guardrails, sums["guardrails"], tuned_units=max(1, plan_of(experiment).units // 8)
    )


def fraction_of(experiment: Experiment, sums: Mapping[str, Any]) -> float:
    """How much of the plan's information there is; a bandit has no plan."""
    if experiment.mode == Experiment.Mode.BANDIT:
        return 0.0
    if experiment.mode == Experiment.Mode.PAIRED:
        return float(sums["differences"][0] / plan_of(experiment).units_b)
    counts = [int(sums["outcomes"][arm][0]) for arm in "ab"]
    return effective_size(*counts) / plan_of(experiment).effective_size


def arms_of(experiment: Experiment, sums: Mapping[str, Any]) -> tuple[Moments, Moments, float | None]:
    """Both arms' moments, with the covariate taken out where there is one, and the variance that leaves."""
    a, b = (sums["outcomes"][arm] for arm in "ab")
    if not experiment.covariate or min(a[0], b[0]) < 2:
        return from_list(a[:3]), from_list(b[:3]), None
    found = adjust(*(CovariateMoments(from_list(one[:3]), from_list([one[0], *one[3:5]]), one[5]) for one in (a, b)))
    return found.a, found.b, found.variance_left


def _verdict(
    experiment: Experiment, a: Moments, b: Moments, until: datetime, earlier: Sequence[Results], *, balanced: bool
) -> Verdict:
    return verdict(
        a, b, plan=plan_of(experiment), metric=metric_of(experiment), balanced=balanced,
        looks=[one["verdict"]["fraction"] for one in earlier], per_day=per_day(experiment, a.count + b.count, until),
    )  # fmt: skip


def variants_of(experiment: Experiment) -> tuple[UUID, UUID]:
    """A and B of one that was started."""
    assert experiment.variant_a_id is not None and experiment.variant_b_id is not None
    return experiment.variant_a_id, experiment.variant_b_id


def per_day(experiment: Experiment, units: int, until: datetime) -> float | None:
    """Units that came a day since the start; None of the first hour."""
    assert experiment.started_at is not None
    days = (until - experiment.started_at).total_seconds() / 86400
    return units / days if units and days >= LEAST_DAYS else None


def plain(results: Any) -> Any:
    """As it will be read from the database: what is compared with it must have gone the same way."""
    return json.loads(json.dumps(results))
