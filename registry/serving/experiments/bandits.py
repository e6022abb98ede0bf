"""Bandits on deployments, of two to ten versions: the weights follow what the versions earn, by Thompson sampling.

The probability that a version is the best one is integrated, not sampled (`statistics.bandit`), and a request's variant is
then drawn by the weights as always: so the same sums give the same weights again, and the log of each request names the
probability that it was drawn with. A reward is a request's, not a key's, since a key may change its version on a move.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from dlplatform.api import Conflict
from registry.serving.assignment import BUCKETS, buckets_by_weight
from registry.serving.statistics.bandit import (
    BetaArm,
    estimate_value_of_sums,
    expected_losses,
    probabilities_best,
    with_floor,
)

from . import guardrails
from .arms import DIGITS, first_shares, variants_by_letter
from .design import SHARES
from .judging import Results, plain
from .models import Experiment, Look
from .readings import Answered, ByPropensity, Reading
from .sums import Measure, Window

LEAST_MOVE = 0.02  # of the traffic; a smaller one waits: each is a change in the deployment's log, and moves keys
LEAST_PAUSE = timedelta(minutes=1)  # between two moves
TUNED_UNITS = 1000
ADDED = ("expected_regret", "regret_ahead", "out")  # the moves of the first bandits do not tell them


def measure_of(experiment: Experiment) -> Measure:
    """A request's outcome, between 0 and the cap (of shares 1)."""
    least = None if experiment.cap is None else 0.0
    return Measure(
        experiment.metric, cap=experiment.cap, missing_as_zero=experiment.missing_as_zero, by_request=True, least=least
    )


def readings(experiment: Experiment) -> list[Reading]:
    variants = tuple(variants_by_letter(experiment).values())
    return [
        Answered(variants),
        ByPropensity(variants, measure_of(experiment)),
        *guardrails.readings(experiment.guardrails, *variants),
    ]


def sums_of(experiment: Experiment, found: Sequence[Any]) -> dict[str, Any]:
    """{units, outcomes, propensities, guardrails} of each arm.

    ``propensities``: [probability, requests, total] for all requests of an arm that were drawn with one probability.
    """
    variants = variants_by_letter(experiment)
    units, by_propensity, *guards = found
    read = {arm: by_propensity[variant] for arm, variant in variants.items()}
    return {
        "units": {arm: [units[variant].units, units[variant].requests] for arm, variant in variants.items()},
        "outcomes": {arm: _together(parts) for arm, parts in read.items()},
        "propensities": {arm: [[p, one.count, one.total] for p, one in parts] for arm, parts in read.items()},
        "guardrails": guardrails.sums_of(guards, *variants.values()),
    }


def _together(parts: Sequence[tuple[float, Any]]) -> list[float]:
    return [sum(getattr(one, name) for _, one in parts) for name in ("count", "total", "squares")]


def judge(
    experiment: Experiment, sums: Mapping[str, Any], until: datetime, earlier: Sequence[Results], back: str = ""
) -> Results:
    """Who shall get how much, and what that has cost; a pure function of the sums and of who was out at the look before.

    In the shape of other looks' results. ``earlier``: the results of the looks before; the last one counts. ``back``: the arm
    that is put back by this look.
    """
    last = earlier[-1] if earlier else None
    returned = _returned(last, sums, back)
    found = _judge_guardrails(experiment, sums, returned)
    before = [arm for arm in out_of(last) if arm != back]
    harmed = fresh_alarms(found, before)
    out = sorted({*before, *(one["arm"] for one in harmed if "arm" in one)})
    told = _bandit(experiment, sums, out) | ({"returned": returned} if returned else {})
    verdict = {
        "outcome": "moving", "sentence": _sentence(experiment, told, harmed, back), "ended": False, "fraction": 0.0, "gain": None,
        "low": None, "high": None, "observed": None, "z": None, "edge": None, "days": None,
    }  # fmt: skip
    return plain(
        {
            "verdict": verdict,
            "balance": {"alarm": False, "sentence": "", "p_value": None, "tested": []},
            "guardrails": found,
            "variance_left": None,
            "bandit": told,
        }
    )


def judge_guardrails(
    experiment: Experiment, sums: Mapping[str, Any], last: Results | None = None
) -> list[dict[str, Any]]:
    """``last``: the results of the last look, which tells what was put back."""
    return _judge_guardrails(experiment, sums, _returned(last, sums))


def _judge_guardrails(
    experiment: Experiment, sums: Mapping[str, Any], returned: Mapping[str, Any]
) -> list[dict[str, Any]]:
    return guardrails.judge(experiment.guardrails, sums["guardrails"], tuned_units=TUNED_UNITS, returned=returned)


def _returned(last: Results | None, sums: Mapping[str, Any], back: str = "") -> dict[str, Any]:
    """By arm that was put back until now, and ``back``: how often, and the sums of its guardrails when it was the last time."""
    before = dict(last["bandit"].get("returned", {})) if last else {}
    if back:
        times = before.get(back, {"times": 0})["times"] + 1
        before[back] = {"times": times, "guardrails": [read[back] for read in sums["guardrails"]]}
    return before


def out_of(results: Results | None) -> list[str]:
    """The arms that guardrails have taken out by this look, and nobody has put back; their alarms do not end."""
    return list(results["bandit"].get("out", ())) if results else []


def require_out(last: Look | None, arm: str) -> None:
    """Raise Conflict where no guardrail has taken this arm out by the ``last`` look."""
    if last is None or arm not in out_of(last.results):
        raise Conflict(f"{arm.upper()} is not out: no guardrail has taken it out of this bandit.", code="not_out")


def fresh_alarms(found: Sequence[Results], out: Sequence[str]) -> list[Results]:
    """Alarms of guardrails on versions that still answer."""
    return [one for one in found if one["alarm"] and one.get("arm") not in out]


def goes_on(results: Results) -> bool:
    """Whether somebody beside A still answers: an alarm has taken out some of several, or there is none."""
    told = results["bandit"]
    if len(told["shares"]) > 2:
        return len(out_of(results)) < len(told["shares"]) - 1
    return not guardrails.alarmed(results["guardrails"])


def _bandit(experiment: Experiment, sums: Mapping[str, Any], out: Sequence[str]) -> dict[str, Any]:
    """{shares, best, means, values, requests, regret, regret_of_even, expected_regret, regret_ahead, out}; by arm, but for the
    regrets of all and ``out``; means, values and regrets in the metric's unit.

    ``means``: of the posterior; ``values``: if that arm had always been taken, by inverse propensities; ``regret``: lost by
    having asked the others too, had the best mean been known from the start. ``expected_regret``: what a request is expected
    to lose where that arm answers, and ``regret_ahead`` where the traffic goes by these shares. ``out`` have no part in who is
    the best, and no traffic.
    """
    bound = experiment.cap or 1.0
    rewards = {arm: _rewards(experiment, parts, bound) for arm, parts in sorted(sums["propensities"].items())}
    arms = {arm: _posterior(parts) for arm, parts in rewards.items()}
    known = {arm: one for arm, one in arms.items() if arm not in out}
    nothing = dict.fromkeys(arms, 0.0)
    best = dict(zip(known, probabilities_best(list(known.values())), strict=True))
    shares = nothing | _shares(best, experiment.floor)
    count = {arm: sum(part[1] for part in parts) for arm, parts in rewards.items()}
    top = max(one.mean for one in known.values())
    gaps = {arm: max(0.0, (top - one.mean) * bound) for arm, one in arms.items()}
    lost = {arm: one * bound for arm, one in zip(known, expected_losses(list(known.values())), strict=True)}
    return {
        "shares": shares,
        "best": nothing | best,
        "requests": count,
        "means": {arm: _in_unit(experiment, one.mean, bound) for arm, one in arms.items()},
        "values": {
            arm: _in_unit(experiment, estimate_value_of_sums(parts), bound) if parts else None
            for arm, parts in rewards.items()
        },
        "regret": sum(count[arm] * gap for arm, gap in gaps.items()),
        "regret_of_even": sum(count.values()) / len(arms) * sum(gaps.values()),
        "expected_regret": dict.fromkeys(arms) | lost,
        "regret_ahead": sum(shares[arm] * one for arm, one in lost.items()),
        "out": list(out),
    }


def _shares(best: Mapping[str, float], floor: float) -> dict[str, float]:
    """Of the traffic, in whole buckets of a deployment; they add up to 1."""
    wanted = dict(zip(best, with_floor(list(best.values()), floor), strict=True))
    return {arm: round(count / BUCKETS, DIGITS) for arm, count in buckets_by_weight(wanted).items()}


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


def _sentence(experiment: Experiment, told: Mapping[str, Any], harmed: Sequence[Results], back: str) -> str:
    """What was put back, what an alarm has taken out, and who is ahead."""
    put_back = [f"{back.upper()} is put back, and its guardrails begin anew."] if back else []
    taken = [f"{one['arm'].upper()} is taken out: {one['sentence']}" for one in harmed if "arm" in one]
    return " ".join([*put_back, *taken, _standing(experiment, told)])


def _standing(experiment: Experiment, told: Mapping[str, Any]) -> str:
    if not any(told["requests"].values()):
        return "Nothing was earned yet."
    ahead = max(told["best"], key=lambda arm: (told["best"][arm], arm))
    two = len(told["best"]) == 2
    arms = ", ".join(
        f"{arm.upper()}{' (out)' if arm in told['out'] else ''} {_amount(experiment, mean)} in {told['requests'][arm]:,} requests"
        for arm, mean in told["means"].items()
    )
    return (
        f"{ahead.upper()} is the {'better' if two else 'best'} one with a probability of {100 * told['best'][ahead]:.3g} %, "
        f"and gets {100 * told['shares'][ahead]:.3g} % of the traffic: {arms}. Asking the other {'one' if two else 'ones'} "
        f"too has cost about {told['regret']:,.3g} so far, where {'halves' if two else 'even shares'} would have cost "
        f"{told['regret_of_even']:,.3g}."
    )


def _amount(experiment: Experiment, value: float) -> str:
    return f"{100 * value:.3g} %" if experiment.metric in SHARES else f"{value:,.4g}"


def due(experiment: Experiment, window: Window, sums: Mapping[str, Any], last: Look | None) -> bool:
    """Whether the traffic is to be moved: by enough, and not within a minute of the last move."""
    wanted = _bandit(experiment, sums, out_of(last.results if last else None))["shares"]
    now = last.results["bandit"]["shares"] if last else first_shares(list(wanted), experiment.share)
    paused = last is None or window.until - last.until >= LEAST_PAUSE
    moved = sum(abs(share - now[arm]) for arm, share in wanted.items()) / 2
    return paused and round(moved, DIGITS + 2) >= LEAST_MOVE


def agrees(experiment: Experiment, look: Look) -> bool:
    """Whether the deployment's log says that the traffic was moved as this look says."""
    if look.revision is None:
        return not goes_on(look.results)
    change = experiment.deployment.changes.filter(revision=look.revision).first()
    if change is None:
        return False
    weights = {one["id"]: one["weight"] for one in change.after["variants"]}
    done = {arm: weights.get(str(variant)) for arm, variant in variants_by_letter(experiment).items()}
    return bool(done == look.results["bandit"]["shares"])


def as_told_then(again: Results, stored: Results) -> Results:
    """Results that were computed again, without what looks did not tell yet when this one was taken."""
    kept = {name: one for name, one in again["bandit"].items() if name in stored["bandit"] or name not in ADDED}
    return again | {"bandit": kept}
