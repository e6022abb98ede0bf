"""What the prediction log says of each variant, reduced to sums by PostgreSQL: a row of Python for a variant, not a request.

Sums are taken in `numeric`, which is exact whatever the order of the rows: the same log gives the same digits again. A
window is closed: by the time of a request, by the number of its record (what a database that was away takes late comes
after it), and by the labels there were.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Max
from django.utils import timezone

from registry.serving.models import PredictionRecord
from registry.serving.statistics.covariate import CovariateMoments
from registry.serving.statistics.moments import Moments

from .models import Experiment

SETTLED = timedelta(seconds=5)  # after that a request's record, and a label, are in the database as a rule
FARTHEST = 1e100  # no outcome counts more: its square must be a number too
SLOW = "slow"
COUNTED = "requests"  # a request's value is 1: units and requests are counted
TELLING = "telling"  # the same without requests that say nothing of the variant that answered
LONGEST = "60s"  # of one statement; a log that takes longer is no longer watched, and the scheduler's log says so
SET = "SELECT set_config('enable_nestloop', %s, true), set_config('statement_timeout', %s, true)"
OF_LABELS = {Experiment.Metric.ACCURACY, Experiment.Metric.ABSOLUTE_ERROR, Experiment.Metric.NUMBER}


@dataclass(frozen=True)
class Measure:
    """What is read of a request, and how those of a unit become its outcome.

    ``cap`` and ``missing_as_zero`` as in an experiment; ``least``: what an outcome counts at least, by default -``cap``;
    ``milliseconds``: the limit of `SLOW`; ``by_request``: every request is a unit of its own, whatever its key.
    """

    kind: str
    cap: float | None = None
    missing_as_zero: bool = False
    milliseconds: float | None = None
    by_request: bool = False
    least: float | None = None


@dataclass(frozen=True)
class Window:
    """The requests of a deployment from ``since`` until before ``until``, with records up to ``last_record``.

    ``revision``: those that an earlier one of the deployment assigned do not count, as an inference process goes on with
    it until it has loaded what the next one needs. A record that names none counts.
    """

    deployment: UUID
    since: datetime
    until: datetime
    last_record: int
    revision: int = 0
    shadows: bool = False

    def with_shadows(self) -> "Window":
        """The same with the copies that shadows got; those that were dropped are none."""
        return replace(self, shadows=True)


@dataclass(frozen=True)
class Units:
    """How many units a variant answered, and how many requests."""

    units: int
    requests: int


def window_until_now(deployment: UUID, since: datetime, revision: int = 0) -> Window:
    """Up to what has settled: later records and labels may still be on their way."""
    rows = PredictionRecord.objects.filter(deployment=deployment)
    newest = [
        rows.filter(role=role).aggregate(last=Max("id"))["last"] or 0 for role in ("live", "shadow")
    ]  # by an index each
    return Window(deployment, since, timezone.now() - SETTLED, max(newest), revision)


def count_units(measure: Measure, window: Window, variants: Sequence[UUID]) -> dict[UUID, Units]:
    """Of every variant, also of those that answered nothing. The measure is of `COUNTED` or `TELLING`."""
    sql = f"""
        WITH {values_of(measure)}
        SELECT variant_id, count(DISTINCT unit), count(*) FROM read WHERE value IS NOT NULL GROUP BY variant_id
    """  # noqa: S608 - made of this module's own pieces
    found = {row[0]: Units(row[1], row[2]) for row in rows_of(sql, named_values(window, variants, measure))}
    return {variant: found.get(variant, Units(0, 0)) for variant in variants}


def outcomes(measure: Measure, window: Window, variants: Sequence[UUID]) -> dict[UUID, Moments]:
    """The moments of the units' outcomes, of every variant."""
    sql = f"""
        WITH {_outcomes(measure)}
        SELECT variant_id, count(*), sum(outcome), sum(outcome * outcome) FROM outcomes GROUP BY variant_id
    """  # noqa: S608
    found = {row[0]: _moments(*row[1:]) for row in rows_of(sql, named_values(window, variants, measure))}
    return {variant: found.get(variant, Moments(0, 0.0, 0.0)) for variant in variants}


def outcomes_with_past(
    measure: Measure, window: Window, variants: Sequence[UUID], *, past_since: datetime
) -> dict[UUID, CovariateMoments]:
    """Beside the outcomes of keys, what the same keys' requests were worth before the window, whoever answered them.

    A key without a past, and a request without a key, gets the mean of all pasts: a constant, which biases nothing.
    """
    sql = f"""
        WITH {_outcomes(measure)},
        earlier AS ({_earlier()}), earlier_labels AS ({_labels("%(since)s")}),
        earlier_read AS ({_read(measure, "earlier", "earlier_labels")}),
        past AS (SELECT unit, {_outcome(measure)} AS x FROM earlier_read WHERE value IS NOT NULL GROUP BY unit),
        mean AS (SELECT coalesce(avg(x), 0) AS x FROM past),
        paired AS (SELECT variant_id, outcome AS y, coalesce(past.x, mean.x) AS x
                   FROM outcomes CROSS JOIN mean LEFT JOIN past USING (unit))
        SELECT variant_id, count(*), sum(y), sum(y * y), sum(x), sum(x * x), sum(x * y) FROM paired GROUP BY variant_id
    """  # noqa: S608
    found = {}
    for variant, count, y, yy, x, xx, xy in rows_of(
        sql, named_values(window, variants, measure) | {"past": past_since}
    ):
        found[variant] = CovariateMoments(_moments(count, y, yy), _moments(count, x, xx), float(xy))
    nothing = Moments(0, 0.0, 0.0)
    return {variant: found.get(variant, CovariateMoments(nothing, nothing, 0.0)) for variant in variants}


def outcomes_by_propensity(
    measure: Measure, window: Window, variants: Sequence[UUID]
) -> dict[UUID, list[tuple[float, Moments]]]:
    """Of every variant by the probability with which it was chosen, rising; records that name none are left out."""
    sql = f"""
        WITH {_outcomes(measure, "variant_id, propensity")}
        SELECT variant_id, propensity, count(*), sum(outcome), sum(outcome * outcome)
        FROM outcomes WHERE propensity > 0 GROUP BY variant_id, propensity ORDER BY propensity
    """  # noqa: S608
    found: dict[UUID, list[tuple[float, Moments]]] = {variant: [] for variant in variants}
    for variant, propensity, *sums in rows_of(sql, named_values(window, variants, measure)):
        found[variant].append((propensity, _moments(*sums)))
    return found


@dataclass(frozen=True)
class Pairs:
    """Of the labelled requests that A answered, how B's copies did.

    ``differences``: moments of the units, B's value less A's; ``mean_a``, ``mean_b``: of the labels that judged both (None
    without); ``requests`` that A answered and a label judges, of which B has no answer to ``dropped``, ``failed`` and
    ``absent``.
    """

    differences: Moments
    mean_a: float | None
    mean_b: float | None
    requests: int
    dropped: int
    failed: int
    absent: int


def pairs(measure: Measure, window: Window, live: UUID, shadow: UUID) -> Pairs:
    """Both versions on the same requests, judged by the same labels; of a unit the mean of its differences."""
    sql = f"""
        WITH {differences_of(measure)},
        differences AS (SELECT unit, {capped("avg(b - a)")} AS d FROM both_read WHERE b IS NOT NULL GROUP BY unit),
        summed AS (SELECT count(*) AS units, coalesce(sum(d), 0) AS total, coalesce(sum(d * d), 0) AS squares FROM differences)
        SELECT units, total, squares, avg(a) FILTER (WHERE b IS NOT NULL), avg(b), count(DISTINCT request_id),
               count(DISTINCT request_id) FILTER (WHERE lacking = 'dropped'),
               count(DISTINCT request_id) FILTER (WHERE lacking = 'failed'),
               count(DISTINCT request_id) FILTER (WHERE lacking = 'absent')
        FROM summed LEFT JOIN both_read ON true GROUP BY units, total, squares
    """  # noqa: S608
    named = named_values(window, [live], measure) | {"shadow": shadow}
    units, total, squares, a, b, requests, dropped, failed, absent = rows_of(sql, named)[0]
    a, b = (None if mean is None else float(mean) for mean in (a, b))
    return Pairs(_moments(units, total, squares), a, b, requests, dropped, failed, absent)


# --- the pieces of SQL: constants alone, every value is a parameter --------------------------------------


def values_of(measure: Measure, *, touched: bool = False) -> str:
    """The values of all requests of a window as `read`; ``touched``: of those that are named alone."""
    return f"""answered AS ({_answered(measure.by_request, touched)}),
        labels AS ({_labels("%(until)s", touched)}),
        read AS ({_read(measure, "answered", "labels")})"""


def differences_of(measure: Measure, *, touched: bool = False) -> str:
    """Every label of A's requests as `both_read`: what it says of each version, or why there is nothing to say of B."""
    named = TOUCHED if touched else ""
    return f"""answered AS ({_answered(measure.by_request, touched)}), copies AS ({COPIES} {named}),
        labels AS ({_labels("%(until)s", touched)}),
        ours AS ({_read(measure, "answered", "labels")}), theirs AS ({_read(measure, "copies", "labels")}),
        both_read AS (
            SELECT ours.request_id, ours.unit, ours.value AS a, theirs.value AS b,
                   CASE WHEN copies.error IS NULL THEN 'absent' WHEN theirs.value IS NOT NULL THEN ''
                        WHEN copies.error = '{PredictionRecord.DROPPED}' THEN 'dropped' ELSE 'failed' END AS lacking
            FROM ours LEFT JOIN theirs USING (request_id, index) LEFT JOIN copies USING (request_id)
            WHERE ours.value IS NOT NULL
        )"""  # noqa: S608


def _outcomes(measure: Measure, by: str = "variant_id") -> str:
    return f"""{values_of(measure)},
        outcomes AS (SELECT {by}, unit, {_outcome(measure)} AS outcome
                     FROM read WHERE value IS NOT NULL GROUP BY {by}, unit)"""  # noqa: S608


def _unit(by_request: bool) -> str:
    """Keys and request ids cannot be taken for one another."""
    return "request_id::text" if by_request else "CASE WHEN key <> '' THEN 'key ' || key ELSE request_id::text END"


TOUCHED = "AND request_id = ANY(%(touched)s)"


def touched_requests(before: Window, now: Window) -> list[UUID]:
    """Requests whose values may differ between two windows: they, a shadow's copy or a label came between."""
    named = {
        "deployment": now.deployment, "until": before.until, "last": before.last_record, "now": now.until,
        "now_last": now.last_record, "roles": ["live", "shadow"] if now.shadows else ["live"],
    }  # fmt: skip
    return [row[0] for row in rows_of(BETWEEN, named)]


BETWEEN = """
    SELECT request_id FROM serving_predictionrecord
    WHERE deployment_id = %(deployment)s AND role = ANY(%(roles)s) AND id > %(last)s AND id <= %(now_last)s AND at < %(now)s
    UNION SELECT request_id FROM serving_predictionrecord
    WHERE deployment_id = %(deployment)s AND role = ANY(%(roles)s) AND at >= %(until)s AND at < %(now)s AND id <= %(now_last)s
    UNION SELECT request_id FROM serving_feedback
    WHERE deployment_id = %(deployment)s AND at > %(until)s AND at <= %(now)s
    UNION SELECT request_id FROM serving_supersededlabel
    WHERE deployment_id = %(deployment)s AND at > %(until)s AND at <= %(now)s AND replaced_at > %(until)s
"""


def _answered(by_request: bool, touched: bool = False) -> str:
    return f"""SELECT request_id, variant_id, propensity, {_unit(by_request)} AS unit, predictions, milliseconds, error
        FROM serving_predictionrecord
        WHERE deployment_id = %(deployment)s AND variant_id = ANY(%(variants)s)
          AND (role = 'live' OR %(shadows)s AND role = 'shadow' AND error <> '{PredictionRecord.DROPPED}')
          AND at >= %(since)s AND at < %(until)s AND id <= %(last)s
          AND (revision IS NULL OR revision >= %(revision)s) {TOUCHED if touched else ""}"""  # noqa: S608


def _earlier() -> str:
    return f"""SELECT request_id, variant_id, {_unit(False)} AS unit, predictions, milliseconds, error
        FROM serving_predictionrecord
        WHERE deployment_id = %(deployment)s AND role = 'live' AND key <> ''
          AND at >= %(past)s AND at < %(since)s AND id <= %(last)s"""  # noqa: S608


def _labels(moment: str, touched: bool = False) -> str:
    """As they were at a moment: those given until then, unless they were replaced until then."""
    return f"""SELECT request_id, index, label FROM serving_feedback
        WHERE deployment_id = %(deployment)s AND at <= {moment} {TOUCHED if touched else ""}
        UNION ALL
        SELECT request_id, index, label FROM serving_supersededlabel
        WHERE deployment_id = %(deployment)s AND at <= {moment} AND replaced_at > {moment} {TOUCHED if touched else ""}"""  # noqa: S608


def _read(measure: Measure, of: str, labels: str) -> str:
    """A value of every request, or of every label where it is read of these."""
    if measure.kind not in OF_LABELS:
        return f"SELECT of.*, {VALUES[measure.kind]} AS value FROM {of} AS of"  # noqa: S608
    value, join = VALUES[measure.kind], "JOIN"
    if measure.missing_as_zero:
        value, join = f"coalesce({value}, 0)", "LEFT JOIN"
    return f"SELECT of.*, l.index, {value} AS value FROM {of} AS of {join} {labels} AS l USING (request_id)"  # noqa: S608


def _outcome(measure: Measure) -> str:
    """Of a unit: the sum of a number that was sent as feedback, the mean of everything else."""
    return capped("sum(value)" if measure.kind == Experiment.Metric.NUMBER else "avg(value)")


def unit_value(measure: Measure, total: str, count: str) -> str:
    """The same of a sum and a count: PostgreSQL's mean is their quotient."""
    return total if measure.kind == Experiment.Metric.NUMBER else f"{total} / {count}"


def capped(value: str) -> str:
    """Within the limits of a measure."""
    return f"greatest(%(least)s::numeric, least(%(cap)s::numeric, {value}))"


COPIES = """SELECT request_id, variant_id, predictions, milliseconds, error FROM serving_predictionrecord
        WHERE deployment_id = %(deployment)s AND role = 'shadow' AND variant_id = %(shadow)s
          AND at >= %(since)s AND at < %(until)s AND id <= %(last)s"""
TEXT_OF_LABEL = "CASE jsonb_typeof(l.label) WHEN 'boolean' THEN initcap(l.label #>> '{}') ELSE l.label #>> '{}' END"
SAYS_SOMETHING = f"of.error NOT IN {PredictionRecord.SAYS_NOTHING}"
PREDICTED = "of.predictions -> l.index::int"
VALUES = {
    Experiment.Metric.ACCURACY: f"""CASE WHEN jsonb_typeof({PREDICTED} -> 'label') = 'string'
        THEN ({PREDICTED} ->> 'label' = {TEXT_OF_LABEL})::int::numeric END""",
    Experiment.Metric.ABSOLUTE_ERROR: f"""CASE WHEN jsonb_typeof({PREDICTED} -> 'value') = 'number'
        AND jsonb_typeof(l.label) = 'number' THEN abs(({PREDICTED} ->> 'value')::numeric - (l.label #>> '{{}}')::numeric) END""",
    Experiment.Metric.NUMBER: """CASE jsonb_typeof(l.label) WHEN 'number' THEN (l.label #>> '{}')::numeric
        WHEN 'boolean' THEN (l.label #>> '{}')::boolean::int::numeric END""",
    Experiment.Metric.LATENCY: "CASE WHEN of.error = '' THEN of.milliseconds::numeric END",
    Experiment.Metric.ERRORS: f"CASE WHEN {SAYS_SOMETHING} THEN (of.error <> '')::int::numeric END",
    COUNTED: "1::numeric",
    TELLING: f"CASE WHEN {SAYS_SOMETHING} THEN 1::numeric END",
    SLOW: f"CASE WHEN {SAYS_SOMETHING} THEN (of.error <> '' OR of.milliseconds > %(milliseconds)s)::int::numeric END",
}


def named_values(window: Window, variants: Sequence[UUID], measure: Measure | None = None) -> dict[str, Any]:
    """The parameters of all pieces."""
    cap = (measure and measure.cap) or FARTHEST
    return {
        "deployment": window.deployment, "variants": list(variants), "since": window.since, "until": window.until,
        "last": window.last_record, "revision": window.revision, "shadows": window.shadows, "cap": cap,
        "least": -cap if measure is None or measure.least is None else measure.least,
        "milliseconds": measure.milliseconds if measure else None,
    }  # fmt: skip


def rows_of(sql: str, named: dict[str, Any]) -> list[Any]:
    """All rows. Without nested loops: what PostgreSQL expects of sums of sums is a guess, and a wrong one would be squared."""
    with watched_statement() as cursor:
        cursor.execute(sql, named)
        return list(cursor.fetchall())


@contextmanager
def watched_statement() -> Iterator[Any]:
    """A cursor without nested loops, in a transaction, whose statements give up after `LONGEST`."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout')")
        before = cursor.fetchone()[0]
        cursor.execute(SET, ["off", LONGEST])
        yield cursor
        cursor.execute(SET, ["on", before])


def _moments(count: int, total: Any, squares: Any) -> Moments:
    return Moments(count, float(total), float(squares))
