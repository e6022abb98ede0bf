"""Sums that are carried on from tick to tick: what came since is added, what it replaced is taken away.

A tick must not read the whole log again. What can have changed between two windows are the requests and copies that came, and
those that got a label: their values by the later window are added and those by the earlier one subtracted, unit by unit, in
`numeric`, so that the sums are those of the whole log, digit by digit, for late labels too. Sums and the window that they are
of are written in one transaction, under the lock of their holder's row. Ticks watch with them; what is written down or acted
upon is read from the log itself, and where that has other sums than these, they are made anew: what a database took in so
late that a tick had missed it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from django.db import transaction

from dlplatform.api import Conflict

from .holding import Holder, name_of
from .models import Experiment, Rollout, RunningSum
from .readings import Reading, Row
from .sums import Window, capped, rows_of, touched_requests, unit_value, watched_statement

HolderOf = TypeVar("HolderOf", Experiment, Rollout)
AT_ONCE = 10_000  # requests, by their ids in a statement


def carry_on(holder: HolderOf, window: Window, readings_of: Callable[[HolderOf], list[Reading]]) -> list[Any]:
    """What each reading finds up to this window; or up to a later one, where another tick has been there already.

    The readings are those of the row as it is locked: a canary may have gone on to another step meanwhile. Whoever comes
    second waits. Raises Conflict when the holder has ended.
    """
    with transaction.atomic():
        locked = type(holder)._default_manager.select_for_update(of=("self",)).get(pk=holder.pk)
        if not locked.holds:
            raise Conflict(f"{name_of(locked)} is {locked.state}.", code=f"is_{locked.state}")
        readings = readings_of(locked)
        before, now = _window_before(locked, window), window
        if before is None or before.until < window.until:
            now = window if before is None else replace(window, last_record=max(before.last_record, window.last_record))
            for touched in _parts(before, now, readings):
                _exchange(locked, before, now, readings, touched)
            locked.summed = {"until": now.until.isoformat(), "last_record": now.last_record}
            locked.save(update_fields=["summed"])
        return [one.told(_rows(locked, position, one, now)) for position, one in enumerate(readings)]


def forget(holder: Holder) -> None:
    """They will be made anew, if they are asked for again."""
    RunningSum.objects.filter(holder=holder.pk).delete()
    type(holder)._default_manager.filter(pk=holder.pk).update(summed=None)


def _window_before(holder: Holder, window: Window) -> Window | None:
    seen = holder.summed
    if seen is None:
        RunningSum.objects.filter(holder=holder.pk).delete()
        return None
    return replace(window, until=datetime.fromisoformat(seen["until"]), last_record=seen["last_record"])


def _exchange(
    holder: Holder, before: Window | None, now: Window, readings: Sequence[Reading], touched: Sequence[UUID] | None
) -> None:
    """Add what these requests are worth now, and take away what they were; all there are where ``before`` is None."""
    windows = [(now, 1)] if before is None else [(now, 1), (before, -1)]
    with watched_statement() as cursor:
        for position, one in enumerate(readings):
            more = {"holder": holder.pk, "position": position, "touched": touched}
            for window, sign in windows:
                cursor.execute(_add(one, touched=touched is not None), one.named(window) | more | {"sign": sign})


def _parts(before: Window | None, now: Window, readings: Sequence[Reading]) -> Iterator[list[UUID] | None]:
    """The requests to be read, so many at once; None for all."""
    if before is None:
        yield None
        return
    touched = touched_requests(before, replace(now, shadows=any(one.with_copies for one in readings)))
    for start in range(0, len(touched), AT_ONCE):
        yield touched[start : start + AT_ONCE]


def _add(reading: Reading, *, touched: bool) -> str:
    return f"""
        WITH {reading.parts(touched=touched)}
        INSERT INTO serving_runningsum AS kept (holder, measure, variant_id, part, unit, count, total, squares)
        SELECT %(holder)s, %(position)s, variant_id, part, unit, %(sign)s * n, %(sign)s * s, %(sign)s * q FROM parts
        ON CONFLICT (holder, measure, variant_id, part, unit) DO UPDATE
        SET count = kept.count + excluded.count, total = kept.total + excluded.total, squares = kept.squares + excluded.squares
    """  # noqa: S608 - made of constants


def _rows(holder: Holder, position: int, reading: Reading, window: Window) -> list[Row]:
    """By variant and part the moments of the units."""
    sql = f"""
        WITH units AS (SELECT variant_id, part, unit, count, total, squares,
                              {capped(unit_value(reading.measure, "total", "count"))} AS f
                       FROM serving_runningsum WHERE holder = %(holder)s AND measure = %(position)s AND count > 0)
        SELECT variant_id, part, sum(CASE WHEN unit = '' THEN count ELSE 1 END), sum(CASE WHEN unit = '' THEN total ELSE f END),
               sum(CASE WHEN unit = '' THEN squares ELSE f * f END), sum(count), sum(total) / sum(count)
        FROM units GROUP BY variant_id, part
    """  # noqa: S608
    rows = rows_of(sql, reading.named(window) | {"holder": holder.pk, "position": position})
    return [
        Row(variant, part, int(units), float(total), float(squares), int(values), float(mean))
        for variant, part, units, total, squares, values, mean in rows
    ]
