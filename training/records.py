"""What a run reports, into PostgreSQL and out again: events and metric points under one numbering.

Writing happens in one transaction that also moves ``last_sequence`` and ``spool_sequence`` under the lease, so
that replaying a spool changes nothing and a worker that lost its lease writes nothing.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from dlplatform.jobs import LeaseLost

from .curves import summarise
from .models import Run, RunEvent

NULL = r"\N"
COPY_POINTS = "COPY {table} (series_id, step, value, sequence, time) FROM STDIN"
COPY_EVENTS = "COPY training_runevent (run_id, sequence, type, time, payload) FROM STDIN"
TEMPORARY = """
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_points
    (series_id bigint, step bigint, value double precision, sequence bigint, time timestamptz)
ON COMMIT DELETE ROWS
"""
PUBLISH_POINTS = """
INSERT INTO training_metricpoint (series_id, step, value, sequence, time)
SELECT series_id, step, value, sequence, time FROM incoming_points
ON CONFLICT (series_id, step) DO NOTHING
"""
CLAIM_NUMBERS = """
UPDATE training_run
   SET last_sequence = last_sequence + %s, spool_sequence = %s, heartbeat_at = now()
 WHERE id = %s AND lease_epoch = %s AND state IN ('preparing', 'running') AND spool_sequence = %s
RETURNING last_sequence
"""
PUBLISH_SERIES = """
INSERT INTO training_metricseries (run_id, key, last, minimum, maximum)
SELECT %s, * FROM unnest(%s::text[], %s::float8[], %s::float8[], %s::float8[])
ON CONFLICT (run_id, key) DO UPDATE
   SET last = excluded.last,
       minimum = least(training_metricseries.minimum, excluded.minimum),
       maximum = greatest(training_metricseries.maximum, excluded.maximum)
RETURNING key, id, (SELECT max(step) FROM training_metricpoint WHERE series_id = training_metricseries.id)
"""


@dataclass
class Summary:
    """Of one metric within one batch: its values' ends, its steps, and whether those only ever grow."""

    first_step: int
    last: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    last_step: int = -1
    ascending: bool = True

    def add(self, step: int, value: float | None) -> None:
        self.ascending = self.ascending and step > self.last_step
        self.last_step = step
        if value is None:
            return
        self.last = value
        self.minimum = value if self.minimum is None or value < self.minimum else self.minimum
        self.maximum = value if self.maximum is None or value > self.maximum else self.maximum


@dataclass(frozen=True)
class Known:
    """A series as the database has it: its number and its greatest step so far."""

    number: int
    last_step: int


def append_spool(run: Run, lines: list[dict[str, Any]]) -> int:
    """Write spool lines (in order, all newer than ``run.spool_sequence``); the run's new last sequence.

    Raises LeaseLost when the lease, or the position in the spool, is no longer ours.
    """
    if not lines:
        return run.last_sequence
    newest = int(lines[-1]["sequence"])
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(CLAIM_NUMBERS, [len(lines), newest, run.pk, run.lease_epoch, run.spool_sequence])
        row = cursor.fetchone()
        if row is None:
            raise LeaseLost(str(run.pk))
        last = int(row[0])
        numbered = list(zip(range(last - len(lines) + 1, last + 1), lines, strict=True))
        _copy_points(cursor, run, [pair for pair in numbered if pair[1]["type"] == "metric"])
        _copy_events(cursor, run, [pair for pair in numbered if pair[1]["type"] != "metric"])
    run.spool_sequence, run.last_sequence = newest, last
    return last


def _copy_points(cursor: Any, run: Run, numbered: list[tuple[int, dict[str, Any]]]) -> None:
    if not numbered:
        return
    summaries: dict[str, Summary] = {}
    for _, line in numbered:
        step = int(line["step"])
        for key, value in line["values"].items():
            if key not in summaries:
                summaries[key] = Summary(step)
            summaries[key].add(step, _finite(value))
    known = _publish_series(cursor, run, summaries)
    rows = "".join(_point_lines(numbered, known))
    if all(one.ascending and one.first_step > known[key].last_step for key, one in summaries.items()):
        _copy(cursor, "training_metricpoint", rows)
    else:  # a step that is there already stays as it is; asking for each costs half of the speed
        cursor.execute(TEMPORARY)
        _copy(cursor, "incoming_points", rows)
        cursor.execute(PUBLISH_POINTS)
    steps = [int(line["step"]) for _, line in numbered]
    summarise(cursor, [one.number for one in known.values()], min(steps), max(steps))


def _copy(cursor: Any, table: str, rows: str) -> None:
    with _copying(cursor, COPY_POINTS.format(table=table)) as copy:
        copy.write(rows)


@contextmanager
def _copying(cursor: Any, statement: str) -> Iterator[Any]:
    """COPY whose errors are Django's, as those of every other statement: Django wraps calls, not what follows them."""
    with connection.wrap_database_errors, cursor.copy(statement) as copy:
        yield copy


def _publish_series(cursor: Any, run: Run, summaries: dict[str, Summary]) -> dict[str, Known]:
    found = summaries.values()
    cursor.execute(
        PUBLISH_SERIES,
        [
            run.pk, list(summaries), [one.last for one in found], [one.minimum for one in found],
            [one.maximum for one in found],
        ],
    )  # fmt: skip
    return {key: Known(number, -1 if last is None else last) for key, number, last in cursor.fetchall()}


def _point_lines(numbered: list[tuple[int, dict[str, Any]]], known: dict[str, Known]) -> Iterable[str]:
    """Rows in COPY's text form; every part is a number or a time of our own, so nothing needs escaping."""
    numbers = {key: one.number for key, one in known.items()}
    for sequence, line in numbered:
        step, rest = int(line["step"]), f"{sequence}\t{_time(line)}\n"
        for key, value in line["values"].items():
            number = _finite(value)
            text = NULL if number is None else repr(number)
            yield f"{numbers[key]}\t{step}\t{text}\t{rest}"


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _time(line: dict[str, Any]) -> str:
    return datetime.fromisoformat(line["time"]).isoformat()


def _copy_events(cursor: Any, run: Run, numbered: list[tuple[int, dict[str, Any]]]) -> None:
    if not numbered:
        return
    with _copying(cursor, COPY_EVENTS) as copy:
        for sequence, line in numbered:
            payload = {name: value for name, value in line.items() if name not in ("sequence", "time", "type")}
            copy.write_row([run.pk, sequence, line["type"], line["time"], clean_json(payload)])


CONTROLS = {number: None for number in range(32) if chr(number) not in "\n\t"}


def clean_json(payload: Any) -> str:
    """JSON text that PostgreSQL takes: it has no NUL in text, and a log must not carry terminal escapes."""
    text = orjson.dumps(payload).decode()
    return orjson.dumps(_without_controls(payload)).decode() if "\\u00" in text else text


def _without_controls(value: Any) -> Any:
    if isinstance(value, str):
        return value.translate(CONTROLS)
    if isinstance(value, dict):
        return {key: _without_controls(one) for key, one in value.items()}
    return [_without_controls(one) for one in value] if isinstance(value, list) else value


def append_event(run: Run, type_: str, **payload: Any) -> int:
    """Number and write one event of the platform's own (a change of state). Call inside a transaction."""
    Run.objects.filter(pk=run.pk).update(last_sequence=F("last_sequence") + 1)
    run.last_sequence = Run.objects.values_list("last_sequence", flat=True).get(pk=run.pk)
    RunEvent.objects.create(run=run, sequence=run.last_sequence, type=type_, time=timezone.now(), payload=payload)
    return run.last_sequence


# --- out ----------------------------------------------------------------------------------------------

EVENTS_AFTER = """
(SELECT sequence, type, time, payload FROM training_runevent
  WHERE run_id = %(run)s AND sequence > %(after)s ORDER BY sequence LIMIT %(limit)s)
UNION ALL
(SELECT p.sequence, 'metric', min(p.time),
        jsonb_build_object('step', p.step, 'values', jsonb_object_agg(s.key, p.value))
   FROM training_metricseries s JOIN training_metricpoint p ON p.series_id = s.id
  WHERE s.run_id = %(run)s AND p.sequence > %(after)s
  GROUP BY p.sequence, p.step ORDER BY p.sequence LIMIT %(limit)s)
ORDER BY sequence LIMIT %(limit)s
"""


def events_after(run: UUID, after: int, limit: int = 2000) -> list[dict[str, Any]]:
    """Events with a greater sequence, in order: {"type", "sequence", "time", …payload}."""
    with connection.cursor() as cursor:
        cursor.execute(EVENTS_AFTER, {"run": run, "after": after, "limit": limit})
        rows = cursor.fetchall()
    return [
        {"type": type_, "sequence": sequence, "time": time.isoformat(), **_loaded(payload)}
        for sequence, type_, time, payload in rows
    ]


def _loaded(payload: Any) -> dict[str, Any]:
    return orjson.loads(payload) if isinstance(payload, str | bytes) else payload


def log_lines(run: UUID, after: int, limit: int) -> list[RunEvent]:
    return list(RunEvent.objects.filter(run_id=run, type="log", sequence__gt=after).order_by("sequence")[:limit])
