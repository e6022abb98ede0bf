"""Both versions on the same requests: A answers everybody, B is its shadow, and a label that comes judges both.

What makes a request hard is hard for both, so that the difference takes far fewer labels than two separate arms
(`statistics.paired`). Nobody ever gets an answer of B before it is promoted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from registry.serving.statistics.paired import paired_verdict

from . import guardrails
from .design import measure_of, metric_of, plan_of
from .guardrails import as_list, from_list
from .judging import Results, per_day, plain, variants_of
from .models import Experiment
from .readings import Answered, InPairs, Reading

Sums = Mapping[str, Any]


def readings(experiment: Experiment) -> list[Reading]:
    """A guardrail reads requests, not keys: copies have none."""
    a, b = arms = variants_of(experiment)
    return [
        Answered(arms, with_copies=True), InPairs(a, b, measure_of(experiment)),
        *guardrails.readings(experiment.guardrails, a, b, by_request=True, with_copies=True),
    ]  # fmt: skip


def sums_of(experiment: Experiment, found: Sequence[Any]) -> dict[str, Any]:
    """{units, differences, labelled, means, guardrails}.

    ``differences``: of the units, B less A; ``labelled``: requests that A answered and that have a label, and how many of them
    have no answer of B; ``means``: of the labels that judged both.
    """
    a, b = variants_of(experiment)
    units, both, *guards = found
    return {
        "units": {"a": [units[a].units, units[a].requests], "b": [units[b].units, units[b].requests]},
        "differences": as_list(both.differences),
        "labelled": {
            "requests": both.requests, "dropped": both.dropped, "failed": both.failed, "absent": both.absent,
        },
        "means": {"a": both.mean_a, "b": both.mean_b},
        "guardrails": guardrails.sums_of(guards, a, b),
    }  # fmt: skip


def judge(experiment: Experiment, sums: Sums, until: datetime, earlier: Sequence[Results]) -> Results:
    """As `judging.judge_look`; no split can be off, and ``copies`` says what the pairs lack."""
    ended = earlier[-1]["verdict"] if earlier and earlier[-1]["verdict"]["ended"] else None
    return plain(
        {
            "verdict": ended or _verdict(experiment, sums, until, earlier),
            "balance": {"alarm": False, "sentence": "", "p_value": None, "tested": []},
            "guardrails": judge_guardrails(experiment, sums),
            "variance_left": None,
            "copies": {"sentence": told_of_copies(sums)},
        }
    )


def _verdict(experiment: Experiment, sums: Sums, until: datetime, earlier: Sequence[Results]) -> dict[str, Any]:
    differences = from_list(sums["differences"])
    return asdict(
        paired_verdict(
            differences, plan=plan_of(experiment), metric=metric_of(experiment),
            looks=[one["verdict"]["fraction"] for one in earlier], per_day=per_day(experiment, differences.count, until),
        )
    )  # fmt: skip


def judge_guardrails(experiment: Experiment, sums: Sums) -> list[dict[str, Any]]:
    return guardrails.judge(experiment.guardrails, sums["guardrails"], tuned_units=max(1, experiment.units_b // 4))


def told_of_copies(sums: Sums) -> str:
    """How many labelled requests lack an answer of B, and why. A verdict is one on the others."""
    labelled = sums["labelled"]
    reasons = [
        f"{labelled[name]:,} {said}"
        for name, said in (
            ("dropped", "copies were dropped, as B was too slow for them"),
            ("failed", "failed at B"),
            ("absent", "copies are not written down (yet)"),
        )
        if labelled[name]
    ]
    lacking = labelled["dropped"] + labelled["failed"] + labelled["absent"]
    if not reasons:
        return f"All {labelled['requests']:,} requests with a label have an answer of both."
    share = 100 * lacking / max(1, labelled["requests"])
    return (
        f"{lacking:,} of {labelled['requests']:,} requests with a label ({share:.3g} %) have no answer of B and are in no "
        f"pair: {', '.join(reasons)}."
    )
