"""Guardrails on every version beside A: what they are, what is read for them, what they say. Alarms hold at every moment."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from registry.serving.statistics.guardrails import ALPHA, Guardrail, check_difference, check_rate
from registry.serving.statistics.moments import Moments

from .arms import LETTERS, refused
from .models import Experiment
from .readings import NOTHING, Outcomes, Reading
from .sums import SLOW, Measure

MOST = 10
RATES = (Experiment.Metric.ERRORS, SLOW)
KINDS = (*Experiment.Metric.values, SLOW)
LONGEST = 3_600_000.0  # milliseconds
NAMES = {
    Experiment.Metric.ERRORS: "failed requests", SLOW: "requests slower than {milliseconds:g} ms",
    Experiment.Metric.LATENCY: "milliseconds", Experiment.Metric.ACCURACY: "accuracy",
    Experiment.Metric.ABSOLUTE_ERROR: "absolute error", Experiment.Metric.NUMBER: "the number sent as feedback",
}  # fmt: skip


def checked(guardrails: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The guardrails as they are stored. Raises ValidationError naming `guardrails.<position>.<field>`."""
    if len(guardrails) > MOST:
        raise refused("guardrails", f"Give at most {MOST} guardrails: they share one rate of false alarms.")
    return [_checked(dict(one), f"guardrails.{position}") for position, one in enumerate(guardrails)]


def _checked(given: dict[str, Any], place: str) -> dict[str, Any]:
    kind = given.get("kind")
    if kind not in KINDS:
        raise refused(f"{place}.kind", f"Choose one of: {', '.join(KINDS)}.")
    limit, tolerance, milliseconds = given.get("limit"), given.get("tolerance"), given.get("milliseconds")
    if (limit is None) == (tolerance is None):
        raise refused(f"{place}.tolerance", "Give a tolerance beside A, or a limit for B alone; one of them.")
    if limit is not None and kind not in RATES:
        raise refused(f"{place}.limit", "Only failures and slow requests have a limit; give a tolerance.")
    if limit is not None and not 0 < limit < 1:
        raise refused(f"{place}.limit", "Give a share between 0 and 1.")
    if tolerance is not None and not 0 <= tolerance <= 1e12:
        raise refused(f"{place}.tolerance", "Give a number from 0 on.")
    if (kind == SLOW) != (milliseconds is not None) or not 0 < (milliseconds or 1) <= LONGEST:
        raise refused(f"{place}.milliseconds", "Slow requests need a limit in milliseconds; nothing else has one.")
    kept = {name: given[name] for name in ("kind", "limit", "tolerance", "milliseconds") if given.get(name) is not None}
    if kind == Experiment.Metric.NUMBER:
        kept["higher_is_better"] = bool(given.get("higher_is_better", True))
    return kept


def readings(
    guardrails: Sequence[Mapping[str, Any]], a: UUID, *others: UUID, by_request: bool = False, with_copies: bool = False
) -> list[Reading]:
    """The sums behind each guardrail.

    A limit is held by requests, not by keys, and by the others alone: nothing of A is read for it. ``by_request``: nor is
    anything else.
    """
    return [
        Outcomes(others if "limit" in one else (a, *others), measure_for(one, by_request=by_request), with_copies)
        for one in guardrails
    ]


def sums_of(found: Sequence[Mapping[UUID, Moments]], a: UUID, *others: UUID) -> list[dict[str, Any]]:
    """What these readings found, as it is stored: {a, b, …}, [count, total, squares] each."""
    variants = dict(zip(LETTERS, (a, *others), strict=False))
    return [{arm: as_list(arms.get(variant, NOTHING)) for arm, variant in variants.items()} for arms in found]


def measure_for(one: Mapping[str, Any], *, by_request: bool = False) -> Measure:
    """What a guardrail reads."""
    return Measure(one["kind"], milliseconds=one.get("milliseconds"), by_request=by_request or "limit" in one)


def judge(
    guardrails: Sequence[Mapping[str, Any]], sums: Sequence[Mapping[str, Any]], *, tuned_units: int,
    returned: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """What each says of each version beside A: {alarm, evidence, harm, low, sentence} beside its definition, and its
    ``arm`` where there are several. A pure function.

    ``returned``: arms that were put back, {times, guardrails}: their sums until then, which count no more. Each sequence that
    is begun anew has half the rate of false alarms of the one before, so that all of them together have that of the first.
    """
    found = []
    for position, (one, read) in enumerate(zip(guardrails, sums, strict=True)):
        others = [arm for arm in sorted(read) if arm != "a"]
        for arm in others:
            named = {"arm": arm} if len(others) > 1 else {}
            sharing, back = len(guardrails) * len(others), (returned or {}).get(arm)
            if back:
                sharing *= 2 ** back["times"]
                read = {**read, arm: _since(read[arm], back["guardrails"][position])}
            found.append(_judged(one, read, arm, tuned_units, sharing, anew=back is not None) | named)
    return found


def _since(now: Sequence[float], then: Sequence[float]) -> list[float]:
    """Nothing where a tick has read its sums before the return, which came between."""
    return [max(0.0, one - before) for one, before in zip(now, then, strict=True)]


def _judged(
    one: Mapping[str, Any], read: Mapping[str, Any], arm: str, tuned_units: int, count: int, *, anew: bool
) -> dict[str, Any]:
    a, b = from_list(read["a"]), from_list(read[arm])
    if "limit" in one:
        found = check_rate(round(b.total), b.count, limit=one["limit"], guardrails=count)
    else:
        found = check_difference(
            a, b, tuned_units=tuned_units, tolerance=one["tolerance"], higher_is_worse=_higher_is_worse(one),
            guardrails=count,
        )  # fmt: skip
    told = {"alarm": found.alarm, "evidence": found.evidence, "harm": found.harm, "low": found.low}
    return {
        **one,
        **told,
        "sentence": _sentence(one, found, a, b, arm.upper(), " since it was put back" if anew else ""),
    }


def _higher_is_worse(one: Mapping[str, Any]) -> bool:
    return not one.get("higher_is_better", one["kind"] == Experiment.Metric.ACCURACY)


def _sentence(one: Mapping[str, Any], found: Guardrail, a: Moments, b: Moments, letter: str, since: str) -> str:
    name = NAMES[one["kind"]].format(**one)
    if not b.count:
        return f"{_capital(name)}: nothing was seen of {letter}{since or ' yet'}."
    said = f"{_capital(name)}: {_told(one, b.mean)} at {letter}"
    if "limit" in one:
        return f"{said} of {b.count:,} requests{since}, limit {_told(one, one['limit'])}{_end(found, bool(since))}"
    beside = f", {_told(one, a.mean)} at A" if a.count else ""
    return f"{said}{beside}; {letter} may be worse by {_told(one, one['tolerance'])}{_end(found)}"


def _end(found: Guardrail, anew: bool = False) -> str:
    """``anew``: its arm was put back before, for which there may be as many false alarms again, however often it is."""
    if not found.alarm:
        return "."
    return f": more than chance explains (at most {100 * ALPHA * (1 + anew):g} % of sound tests raise an alarm)."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _told(one: Mapping[str, Any], value: float) -> str:
    if one["kind"] in (*RATES, Experiment.Metric.ACCURACY):
        return f"{100 * value:.3g} %"
    return f"{value:.4g}"


def alarmed(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentences of those that raised an alarm."""
    return [one["sentence"] for one in results if one["alarm"]]


def as_list(arm: Moments) -> list[float]:
    return [arm.count, arm.total, arm.squares]


def from_list(stored: Sequence[Any]) -> Moments:
    return Moments(int(stored[0]), float(stored[1]), float(stored[2]))
