"""Sums of a split that are carried on from tick to tick: what came since is added, what it replaced is taken away.

A tick must not read the whole log again. What can have changed between two windows are the requests that came, and those that
got a label: their values by the later window are added and those by the earlier one subtracted, unit by unit, in `numeric`,
so that the sums are those of the whole log, digit by digit, for late labels too. Ticks watch with them; a look that is
written down reads the log itself (`looks.read_sums`), and where it finds other sums than these, they are made anew: what a
database took in so late that a tick had missed it.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from registry.serving.statistics.moments import Moments

from .design import measure_of
from .guardrails import as_list, measure_for
from .judging import plain
from .models import Experiment, RunningSum
from .sums import (
    COUNTED,
    Measure,
    Window,
    capped,
    named_values,
    rows_of,
    touched_requests,
    unit_value,
    values_of,
    watched_statement,
)

UNITS = Measure(COUNTED)
AT_ONCE = 10_000  # requests, by their ids in a statement
NOTHING = Moments(0, 0.0, 0.0)


def carry_on(experiment: Experiment, window: Window) -> dict[str, Any]:
    """The sums up to this window, as `looks.read_sums` reads them, but for the covariate's. Whoever comes second waits."""
    assert experiment.variant_a_id is not None and experiment.variant_b_id is not None
    arms = [experiment.variant_a_id, experiment.variant_b_id]
    with transaction.atomic():
        locked = Experiment.objects.select_for_update(of=("self",)).get(pk=experiment.pk)
        before = _window_before(locked, window)
        for touched in _parts(before, window):
            _carry_on(experiment, before, window, arms, touched)
        locked.summed = {"until": window.until.isoformat(), "last_record": window.last_record}
        locked.save(update_fields=["summed"])
        return plain(_read(experiment, window, arms))


def forget(experiment: Experiment) -> None:
    """They will be made anew, if they are asked for again."""
    RunningSum.objects.filter(experiment=experiment).delete()
    Experiment.objects.filter(pk=experiment.pk).update(summed=None)


def agree(carried: Mapping[str, Any], read: Mapping[str, Any]) -> bool:
    """Whether sums that were carried on are those of the log."""
    same = all(carried[name] == read[name] for name in ("units", "guardrails"))
    return same and all(carried["outcomes"][arm] == read["outcomes"][arm][:3] for arm in "ab")


def _measures(experiment: Experiment) -> list[Measure]:
    return [UNITS, measure_of(experiment), *map(measure_for, experiment.guardrails)]


def _window_before(experiment: Experiment, window: Window) -> Window | None:
    seen = experiment.summed
    if seen is None:
        RunningSum.objects.filter(experiment=experiment).delete()
        return None
    until = datetime.fromisoformat(seen["until"])
    return Window(window.deployment, window.since, until, seen["last_record"], window.revision)


def _carry_on(
    experiment: Experiment, before: Window | None, now: Window, arms: Sequence[UUID], touched: Sequence[UUID] | None
) -> None:
    """Add what these requests are worth now, and take away what they were; all there are where ``before`` is None."""
    windows = [(now, 1)] if before is None else [(now, 1), (before, -1)]
    with watched_statement() as cursor:
        for position, measure in enumerate(_measures(experiment)):
            more = {"experiment": experiment.pk, "position": position, "touched": touched}
            for window, sign in windows:
                sql = _add(measure, touched=touched is not None)
                cursor.execute(sql, named_values(window, arms, measure) | more | {"sign": sign})


def _parts(before: Window | None, now: Window) -> Iterator[list[UUID] | None]:
    """The requests to be read, so many at once; None for all."""
    if before is None:
        yield None
        return
    touched = touched_requests(before, now)
    for start in range(0, len(touched), AT_ONCE):
        yield touched[start : start + AT_ONCE]


def _add(measure: Measure, *, touched: bool) -> str:
    """Keys have a row each. Units of one request add up to one row of a variant, whose unit is '', with their squares."""
    return f"""
        WITH {values_of(measure, touched=touched)},
        units AS (SELECT variant_id, unit, count(value) AS n, sum(value) AS s FROM read
                  WHERE value IS NOT NULL GROUP BY variant_id, unit),
        alone AS (SELECT variant_id, {capped(unit_value(measure, "s", "n"))} AS f FROM units WHERE NOT starts_with(unit, 'key ')),
        parts AS (
            SELECT variant_id, unit, n, s, 0::numeric AS q FROM units WHERE starts_with(unit, 'key ')
            UNION ALL SELECT variant_id, '', count(*), sum(f), sum(f * f) FROM alone GROUP BY variant_id
        )
        INSERT INTO serving_runningsum AS kept (experiment_id, measure, variant_id, unit, count, total, squares)
        SELECT %(experiment)s, %(position)s, variant_id, unit, %(sign)s * n, %(sign)s * s, %(sign)s * q FROM parts
        ON CONFLICT (experiment_id, measure, variant_id, unit) DO UPDATE
        SET count = kept.count + excluded.count, total = kept.total + excluded.total, squares = kept.squares + excluded.squares
    """  # noqa: S608 - made of constants


def _read(experiment: Experiment, window: Window, arms: Sequence[UUID]) -> dict[str, Any]:
    found = [
        _moments(experiment, position, measure, window, arms) for position, measure in enumerate(_measures(experiment))
    ]
    a, b = arms
    units, outcome, *guards = found
    counts = {arm: [units.get(arm, (NOTHING, 0))[0].count, units.get(arm, (NOTHING, 0))[1]] for arm in arms}
    sums = [{arm: as_list(one.get(arm, (NOTHING, 0))[0]) for arm in arms} for one in (outcome, *guards)]
    nothing = as_list(NOTHING)
    return {
        "units": {"a": counts[a], "b": counts[b]},
        "outcomes": {"a": sums[0][a], "b": sums[0][b]},
        "guardrails": [
            {"a": nothing if "limit" in one else read[a], "b": read[b]}
            for one, read in zip(experiment.guardrails, sums[1:], strict=True)
        ],
    }


def _moments(
    experiment: Experiment, position: int, measure: Measure, window: Window, arms: Sequence[UUID]
) -> dict[UUID, tuple[Moments, int]]:
    """By variant the moments of its units, and its requests (or labels)."""
    sql = f"""
        WITH units AS (SELECT variant_id, unit, count, total, squares, {capped(unit_value(measure, "total", "count"))} AS f
                       FROM serving_runningsum WHERE experiment_id = %(experiment)s AND measure = %(position)s AND count > 0)
        SELECT variant_id, sum(CASE WHEN unit = '' THEN count ELSE 1 END), sum(CASE WHEN unit = '' THEN total ELSE f END),
               sum(CASE WHEN unit = '' THEN squares ELSE f * f END), sum(count)
        FROM units GROUP BY variant_id
    """  # noqa: S608
    rows = rows_of(sql, named_values(window, arms, measure) | {"experiment": experiment.pk, "position": position})
    return {row[0]: (Moments(int(row[1]), float(row[2]), float(row[3])), int(row[4])) for row in rows}
