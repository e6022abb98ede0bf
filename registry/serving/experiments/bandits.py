"""Bandits on deployments: the weights follow what the versions earn, by Thompson sampling.

The probability that a version is the better one is integrated, not sampled (`statistics.bandit`), and a request's variant is
then drawn by the weights as always: so the same sums give the same weights again, and the log of each request names the
probability that it was drawn with. A reward is a request's, not a key's, since a key may change its version on a move.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from registry.serving.statistics.bandit import (
    FLOOR,
    BetaArm,
    estimate_value_of_sums,
    probabilities_best,
    propensities,
)

from . import guardrails
from .design import SHARES
from .judging import Results, plain, variants_of
from .models import Experiment, Look
from .readings import Answered, ByPropensity, Reading
from .sums import Measure, Window

LEAST_MOVE = 0.02  # of the traffic; a smaller one waits: each is a change in the deployment's log, and moves keys
LEAST_PAUSE = timedelta(minutes=1)  # between two moves
DIGITS = 4  # of a share: a deployment has ten thousand buckets
TUNED_UNITS = 1000


def measure_of(experiment: Experiment) -> Measure:
    """A request's outcome, between 0 and the cap (of shares 1)."""
    least = None if experiment.cap is None else 0.0
    return Measure(
        experiment.metric, cap=experiment.cap, missing_as_zero=experiment.missing_as_zero, by_request=True, least=least
    )


def readings(experiment: Experiment) -> list[Reading]:
    a, b = arms = variants_of(experiment)
    return [
        Answered(arms),
        ByPropensity(arms, measure_of(experiment)),
        *guardrails.readings(experiment.guardrails, a, b),
    ]


def sums_of(experiment: Experiment, found: Sequence[Any]) -> dict[str, Any]:
    """{units, outcomes, propensities, guardrails} of each arm.

    ``propensities``: [probability, requests, total] for all requests of an arm that were drawn with one probability.
    """
    a, b = variants_of(experiment)
    units, by_propensity, *guards = found
    read = {"a": by_propensity[a], "b": by_propensity[b]}
    return {
        "units": {"a": [units[a].units, units[a].requests], "b": [units[b].units, units[b].requests]},
        "outcomes": {arm: _together(parts) for arm, parts in read.items()},
        "propensities": {arm: [[p, one.count, one.total] for p, one in parts] for arm, parts in read.items()},
        "guardrails": guardrails.sums_of(guards, a, b),
    }


def _together(parts: Sequence[tuple[float, Any]]) -> list[float]:
    return [sum(getattr(one, name) for _, one in parts) for name in ("count", "total", "squares")]


def judge(experiment: Experiment, sums: Mapping[str, Any], until: datetime, earlier: Sequence[Results]) -> Results:
    """Who shall get how much, and what that has cost; a pure function of the sums. In the shape of other looks' results."""
    told = _bandit(experiment, sums)
    sentence = _sentence(experiment, told)
    verdict = {
        "outcome": "moving", "sentence": sentence, "ended": False, "fraction": 0.0, "gain": None, "low": None, "high": None,
        "observed": None, "z": None, "edge": None, "days": None,
    }  # fmt: skip
    return plain(
        {
            "verdict": verdict,
            "balance": {"alarm": False, "sentence": "", "p_value": None, "tested": []},
            "guardrails": judge_guardrails(experiment, sums),
            "variance_left": None,
            "bandit": told,
        }
    )


def judge_guardrails(experiment: Experiment, sums: Mapping[str, Any]) -> list[dict[str, Any]]:
    return guardrails.judge(experiment.guardrails, sums["guardrails"], tuned_units=TUNED_UNITS)


def _bandit(experiment: Experiment, sums: Mapping[str, Any]) -> dict[str, Any]:
    """{shares, best, means, values, requests, regret, regret_of_even}; means, values and regrets in the metric's unit.

    ``means``: of the posterior; ``values``: if that arm had always been taken, by inverse propensities; ``regret``: lost by
    having asked the other one too, had the better mean been known from the start.
    """
    bound = experiment.cap or 1.0
    rewards = {arm: _rewards(experiment, sums["propensities"][arm], bound) for arm in "ab"}
    arms = {arm: _posterior(parts) for arm, parts in rewards.items()}
    best = probabilities_best(list(arms.values()))
    b = round(propensities(list(arms.values()), floor=FLOOR)[1], DIGITS)
    count = {arm: sum(part[1] for part in parts) for arm, parts in rewards.items()}
    gap = abs(arms["b"].mean - arms["a"].mean) * bound
    worse = "a" if arms["b"].mean > arms["a"].mean else "b"
    return {
        "shares": {"a": round(1 - b, DIGITS), "b": b},
        "best": dict(zip("ab", best, strict=True)),
        "requests": count,
        "means": {arm: _in_unit(experiment, one.mean, bound) for arm, one in arms.items()},
        "values": {
            arm: _in_unit(experiment, estimate_value_of_sums(parts), bound) if parts else None
            for arm, parts in rewards.items()
        },
        "regret": count[worse] * gap,
        "regret_of_even": sum(count.values()) / 2 * gap,
    }


def _rewards(experiment: Experiment, parts: Sequence[Sequence[float]], bound: float) -> list[tuple[float, int, float]]:
    """(probability, requests, rewards): each reward from 0 to 1, the more the better."""
    higher = experiment.higher_is_better
    return [(p, int(n), min(n, max(0.0, total / bound if higher else n - total / bound))) for p, n, total in parts]


def _posterior(parts: Sequence[tuple[float, int, float]]) -> BetaArm:
    """From a uniform prior. Rewards between 0 and 1 count as a share of a success."""
    count, total = sum(part[1] for part in parts), sum(part[2] for part in parts)
    return BetaArm(1 + total, 1 + max(0.0, count - total))


def _in_unit(experiment: Experiment, reward: float, bound: float) -> float:
    return bound * (reward if experiment.higher_is_better else 1 - reward)


def _sentence(experiment: Experiment, told: Mapping[str, Any]) -> str:
    if not any(told["requests"].values()):
        return "Nothing was earned yet."
    better = "a" if told["best"]["a"] > told["best"]["b"] else "b"
    arms = ", ".join(
        f"{arm.upper()} {_amount(experiment, told['means'][arm])} in {told['requests'][arm]:,} requests" for arm in "ab"
    )
    return (
        f"{better.upper()} is the better one with a probability of {100 * told['best'][better]:.3g} %, and gets "
        f"{100 * told['shares'][better]:.3g} % of the traffic: {arms}. Asking the other one too has cost about "
        f"{told['regret']:,.3g} so far, where halves would have cost {told['regret_of_even']:,.3g}."
    )


def _amount(experiment: Experiment, value: float) -> str:
    return f"{100 * value:.3g} %" if experiment.metric in SHARES else f"{value:,.4g}"


def due(experiment: Experiment, window: Window, sums: Mapping[str, Any], last: Look | None) -> bool:
    """Whether the traffic is to be moved: by enough, and not within a minute of the last move."""
    now = last.results["bandit"]["shares"]["b"] if last else experiment.share
    wanted = _bandit(experiment, sums)["shares"]["b"]
    paused = last is None or window.until - last.until >= LEAST_PAUSE
    return paused and abs(wanted - now) >= LEAST_MOVE


def agrees(experiment: Experiment, look: Look) -> bool:
    """Whether the deployment's log says that the traffic was moved as this look says."""
    if look.revision is None:
        return look.kind == Look.Kind.HARM
    change = experiment.deployment.changes.filter(revision=look.revision).first()
    if change is None:
        return False
    weights = {one["id"]: one["weight"] for one in change.after["variants"]}
    shares = look.results["bandit"]["shares"]
    return {"a": weights.get(str(experiment.variant_a_id)), "b": weights.get(str(experiment.variant_b_id))} == shares
