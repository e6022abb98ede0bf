"""Looks at running experiments: taken when they are due or asked for, acted upon, and computed again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction

from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry.serving.statistics.covariate import CovariateMoments
from registry.serving.statistics.moments import Moments
from registry.serving.statistics.spending import LEAST_STEP, MOST_LOOKS
from registry.serving.statistics.verdict import NEARLY_ALL, Outcome

from . import bandits, guardrails, judging, pairs
from .agreement import same
from .design import measure_of
from .guardrails import as_list
from .holding import PAST
from .judging import Results, fraction_of, judge_look, plain, variants_of
from .models import Experiment, Look
from .readings import Answered, Outcomes, Reading
from .running import carry_on
from .services import decide, keep, locked_holding, move_traffic, promote, stop_experiment
from .sums import Window, outcomes_with_past, window_until_now

A_DAY = timedelta(days=1)
REPLAYED = 120  # looks, the newest; only bandits take more
ACTED_UPON = {Outcome.B_BETTER: promote, Outcome.B_WORSE: keep}


def look_now(*, actor: User, experiment: Experiment) -> Look:
    """Take a look between those that are due. Raises Conflict when it runs no more, or when there is nothing new."""
    require(actor, "deploy", experiment.deployment)
    if experiment.state != Experiment.State.RUNNING:
        raise Conflict(f"Experiment {experiment.number} is {experiment.state}.", code=f"is_{experiment.state}")
    window = window_of(experiment)
    return record_look(experiment, window, read_sums(experiment, window), Look.Kind.ASKED, actor)


def window_of(experiment: Experiment) -> Window:
    assert experiment.started_at is not None
    return window_until_now(experiment.deployment_id, experiment.started_at, experiment.revision)


def read_sums(experiment: Experiment, window: Window) -> dict[str, Any]:
    """What a look is made of, from the log. No lock is held: a large log takes seconds, and requests go on."""
    found = [one.read(window) for one in READINGS[experiment.mode](experiment)]
    sums = SUMS[experiment.mode](experiment, found)
    return plain(sums | _past_of(experiment, window) if experiment.covariate else sums)


def carried_sums(experiment: Experiment, window: Window) -> dict[str, Any]:
    """The same from what ticks carry on, but for the covariate's. Raises Conflict when it has ended."""
    found = carry_on(experiment, window, READINGS[experiment.mode])
    return plain(SUMS[experiment.mode](experiment, found))


def agree(carried: Mapping[str, Any], read: Mapping[str, Any]) -> bool:
    """Whether sums that were carried on are those of the log."""
    return all(_without_past(name, read[name]) == found for name, found in carried.items())


def judge(
    experiment: Experiment, sums: dict[str, Any], until: datetime, earlier: Sequence[Results], back: str = ""
) -> Results:
    """What a look says, by the experiment's mode; see `judging.judge_look`, and `bandits.judge` for ``back``."""
    if experiment.mode == Experiment.Mode.BANDIT:
        return bandits.judge(experiment, sums, until, earlier, back)
    return JUDGES[experiment.mode](experiment, sums, until, earlier)


def before(experiment: Experiment, last: Look | None) -> list[Results]:
    """The results that a further look takes into account: of all looks there are, of a bandit those of the ``last``."""
    if experiment.mode == Experiment.Mode.BANDIT:
        return [last.results] if last else []
    return [one.results for one in experiment.taken.all()]


def judge_guardrails(experiment: Experiment, sums: dict[str, Any], last: Look | None) -> list[dict[str, Any]]:
    """What its guardrails say, by the experiment's mode; of a bandit after this ``last`` look."""
    if experiment.mode == Experiment.Mode.BANDIT:
        return bandits.judge_guardrails(experiment, sums, last.results if last else None)
    return GUARDRAILS[experiment.mode](experiment, sums)


def _split_readings(experiment: Experiment) -> list[Reading]:
    a, b = arms = variants_of(experiment)
    return [Answered(arms), Outcomes(arms, measure_of(experiment)), *guardrails.readings(experiment.guardrails, a, b)]


def _split_sums(experiment: Experiment, found: Sequence[Any]) -> dict[str, Any]:
    a, b = variants_of(experiment)
    units, outcome, *guards = found
    return {
        "units": {"a": [units[a].units, units[a].requests], "b": [units[b].units, units[b].requests]},
        "outcomes": {"a": as_list(outcome[a]), "b": as_list(outcome[b])},
        "guardrails": guardrails.sums_of(guards, a, b),
    }


def _past_of(experiment: Experiment, window: Window) -> dict[str, Any]:
    """The outcomes with what the same keys did before the start."""
    a, b = arms = variants_of(experiment)
    past = outcomes_with_past(measure_of(experiment), window, arms, past_since=window.since - PAST)
    return {"outcomes": {"a": _with_past(past[a]), "b": _with_past(past[b])}}


READINGS: dict[str, Callable[[Experiment], list[Reading]]] = {
    Experiment.Mode.SPLIT: _split_readings, Experiment.Mode.BANDIT: bandits.readings, Experiment.Mode.PAIRED: pairs.readings,
}  # fmt: skip
SUMS: dict[str, Callable[[Experiment, Sequence[Any]], dict[str, Any]]] = {
    Experiment.Mode.SPLIT: _split_sums, Experiment.Mode.BANDIT: bandits.sums_of, Experiment.Mode.PAIRED: pairs.sums_of,
}  # fmt: skip
JUDGES: dict[str, Callable[..., Results]] = {
    Experiment.Mode.SPLIT: judge_look, Experiment.Mode.PAIRED: pairs.judge,
}  # fmt: skip
GUARDRAILS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    Experiment.Mode.SPLIT: judging.judge_guardrails, Experiment.Mode.PAIRED: pairs.judge_guardrails,
}  # fmt: skip


def _with_past(moments: CovariateMoments) -> list[float]:
    covariate: Moments = moments.covariate
    return [*as_list(moments.outcome), covariate.total, covariate.squares, moments.products]


def _without_past(name: str, sums: Any) -> Any:
    return {arm: one[:3] for arm, one in sums.items()} if name == "outcomes" else sums


def due(experiment: Experiment, window: Window, sums: dict[str, Any], last: Look | None) -> bool:
    """By the outcomes there are, not by what they say; and once a day. After an alarm of the split nothing more is to be seen."""
    if experiment.mode == Experiment.Mode.BANDIT:
        return bandits.due(experiment, window, sums, last)
    if last and last.results["balance"]["alarm"]:
        return False
    fraction = fraction_of(experiment, sums)
    seen = last.results["verdict"]["fraction"] if last else 0.0
    used_up = fraction >= 1 and seen < NEARLY_ALL  # looked at then without an outcome, it is looked at once a day
    if used_up or (fraction < 1 and fraction - seen >= 1 / experiment.looks):
        return True
    since = last.until if last else window.since
    return window.until - since >= A_DAY and fraction - seen >= LEAST_STEP


@transaction.atomic
def record_look(
    experiment: Experiment, window: Window, sums: dict[str, Any], kind: str, actor: User | None = None, *,
    back: str = "", reason: str = "",
) -> Look:  # fmt: skip
    """Judge what was read and act upon it, unless somebody else looked meanwhile. Raises Conflict.

    ``back``: the arm of a bandit that is put back by it, for a ``reason``; called by `returns`.
    """
    locked = locked_holding(experiment, decided=kind == Look.Kind.HARM)
    moving = locked.mode == Experiment.Mode.BANDIT
    last = locked.taken.last()
    if back:
        bandits.require_out(last, back)
    if window.until <= window.since or (last and window.until <= last.until):
        raise Conflict("Nothing new has been written down yet; look again in a few seconds.", code="nothing_new")
    number = last.number + 1 if last else 1
    if not moving and number >= MOST_LOOKS and kind != Look.Kind.HARM and fraction_of(locked, sums) < 1:
        raise Conflict(f"{MOST_LOOKS - 1} looks are taken; the last one is that at the end.", code="looks_used_up")
    try:
        earlier = before(locked, last)
        results = judge(locked, sums, window.until, earlier, back)
    except ValueError as error:
        raise Conflict(f"There are fewer outcomes than at the look before ({error}).", code="fewer_outcomes") from None
    revision = _move(locked, results, actor if back else None, reason) if moving else None
    look: Look = Look.objects.create(
        experiment=locked, revision=revision, number=number, kind=kind, until=window.until, last_record=window.last_record,
        sums=sums, results=results, taken_by=actor, arm=back, reason=reason,
    )  # fmt: skip
    _act(locked, results)
    return look


def _move(experiment: Experiment, results: Results, actor: User | None, reason: str) -> int | None:
    """Have the traffic follow, unless nobody is left beside A; the deployment's revision with it."""
    if not bandits.goes_on(results):
        return None
    said = results["verdict"]["sentence"]
    return move_traffic(
        actor=actor, experiment=experiment, shares=results["bandit"]["shares"],
        reason=f"{reason} – {said}" if reason else said,
    )  # fmt: skip


def _act(experiment: Experiment, results: Results) -> None:
    """Harm goes before any verdict; of a bandit's several versions it takes out its own alone."""
    moving = experiment.mode == Experiment.Mode.BANDIT
    harm = guardrails.alarmed(results["guardrails"])
    if harm and not (moving and bandits.goes_on(results)):
        stop_experiment(actor=None, experiment=experiment, reason=" ".join(harm), harm=True)
        return
    told = results["verdict"]
    if not told["ended"] or experiment.state == Experiment.State.DECIDED:
        return
    decide(experiment=experiment, outcome=told["outcome"], conclusion=told["sentence"])
    if experiment.promotes and (act := ACTED_UPON.get(told["outcome"])):
        act(actor=None, experiment=experiment, reason="by its verdict")


@dataclass(frozen=True)
class Replayed:
    """Whether a look's results come out of its stored sums again (see `agreement.same`), and its sums out of the log to the
    digit."""

    number: int
    results_agree: bool
    sums_agree: bool


def replay(experiment: Experiment) -> list[Replayed]:
    """Compute every look again (of a bandit the newest). Sums disagree once retention has taken rows of the log.

    Of a bandit, what was done to the deployment must agree as well.
    """
    moving = experiment.mode == Experiment.Mode.BANDIT
    found: list[Replayed] = []
    earlier: list[Results] = []
    taken = list(reversed(experiment.taken.order_by("-number")[: REPLAYED + 1]))
    if len(taken) > REPLAYED:
        earlier.append(taken.pop(0).results)  # what the first of them went on from
    for look in taken:
        again = judge(experiment, look.sums, look.until, earlier, look.arm)
        done = not moving or bandits.agrees(experiment, look)
        again = bandits.as_told_then(again, look.results) if moving else again
        earlier.append(again)
        assert experiment.started_at is not None
        window = Window(
            experiment.deployment_id, experiment.started_at, look.until, look.last_record, experiment.revision
        )
        sums_agree = read_sums(experiment, window) == look.sums
        found.append(Replayed(look.number, done and same(again, look.results), sums_agree))
    return found
