"""The curve of a metric: at most as many points as are drawn, whatever the length of its history.

Beside the points themselves, the extremes of every 64 and every 4,096 successive steps are kept. Reading a curve
then costs a few thousand rows at most, and no peak gets lost.
"""

from typing import Any

from django.db import connection

from .models import MetricSeries, Run

NARROW, WIDE = 64, 4096

# min over ARRAY[value, step] is the least value at its first step; max over ARRAY[value, -step] the greatest at its first.
NARROW_BUCKETS = """
INSERT INTO training_metricbucket (series_id, width, start, least, least_step, greatest, greatest_step)
SELECT series_id, 64, start, low[1], low[2], high[1], -high[2]
  FROM (SELECT series_id, step / 64 * 64 AS start, min(ARRAY[value, step]) AS low, max(ARRAY[value, -step]) AS high
          FROM training_metricpoint
         WHERE series_id = ANY(%(series)s) AND step BETWEEN %(low)s AND %(high)s AND value IS NOT NULL
         GROUP BY 1, 2) AS found
"""
WIDE_BUCKETS = """
INSERT INTO training_metricbucket (series_id, width, start, least, least_step, greatest, greatest_step)
SELECT series_id, 4096, first, low[1], low[2], high[1], -high[2]
  FROM (SELECT series_id, start / 4096 * 4096 AS first, min(ARRAY[least, least_step]) AS low,
               max(ARRAY[greatest, -greatest_step]) AS high
          FROM training_metricbucket
         WHERE series_id = ANY(%(series)s) AND width = 64 AND start BETWEEN %(low)s AND %(high)s
         GROUP BY 1, 2) AS found
"""
REPLACE = """
ON CONFLICT (series_id, width, start) DO UPDATE
   SET least = excluded.least, least_step = excluded.least_step,
       greatest = excluded.greatest, greatest_step = excluded.greatest_step
"""

POINTS = """
SELECT step, value FROM training_metricpoint
 WHERE series_id = %(series)s AND value IS NOT NULL ORDER BY step {direction} LIMIT %(limit)s
"""
FROM_POINTS = """
SELECT step AS start, value AS least, step AS least_step, value AS greatest, step AS greatest_step
  FROM training_metricpoint WHERE series_id = %(series)s AND value IS NOT NULL
"""
FROM_BUCKETS = """
SELECT start, least, least_step, greatest, greatest_step
  FROM training_metricbucket WHERE series_id = %(series)s AND width = %(width)s
"""
EXTREMES = """
SELECT low[2], low[1], -high[2], high[1]
  FROM (SELECT min(ARRAY[least, least_step]) AS low, max(ARRAY[greatest, -greatest_step]) AS high
          FROM ({source}) AS source GROUP BY (start - %(first)s) / %(span)s) AS stretches
"""

Point = tuple[int, float]


def summarise(cursor: Any, series: list[int], first: int, last: int) -> None:
    """Bring the buckets up to date after points between two steps (both included) were written."""
    for statement, width in ((NARROW_BUCKETS, NARROW), (WIDE_BUCKETS, WIDE)):
        low, high = first // width * width, last // width * width + width - 1
        cursor.execute(statement + REPLACE, {"series": series, "low": low, "high": high})


def downsampled(series: MetricSeries, max_points: int) -> list[Point]:
    """[(step, value)] by step: all points if they are no more than ``max_points``, otherwise at most that many.

    Then they are the first, the last, and the least and greatest of every stretch of equal length.
    """
    with connection.cursor() as cursor:
        points = _points(cursor, series, "ASC", max_points + 1)
        if len(points) <= max_points:
            return points
        first, last = points[0], _points(cursor, series, "DESC", 1)[0]
        span = (last[0] - first[0]) // max(max_points // 2 - 1, 1) + 1
        return sorted({first, last, *_extremes(cursor, series, first[0], span)})


def _points(cursor: Any, series: MetricSeries, direction: str, limit: int) -> list[Point]:
    cursor.execute(POINTS.format(direction=direction), {"series": series.pk, "limit": limit})
    return [(int(step), float(value)) for step, value in cursor.fetchall()]


def _extremes(cursor: Any, series: MetricSeries, first: int, span: int) -> list[Point]:
    """Least and greatest of every ``span`` steps, from the widest buckets that are not wider."""
    width = WIDE if span >= WIDE else NARROW
    source = FROM_BUCKETS if span >= width else FROM_POINTS
    wanted = {"series": series.pk, "width": width, "first": first, "span": span}
    cursor.execute(EXTREMES.format(source=source), wanted)
    rows = cursor.fetchall()
    return [(int(step), float(value)) for row in rows for step, value in (row[:2], row[2:])]


def curves(run: Run, keys: list[str] | None, max_points: int) -> dict[str, list[Point]]:
    """The run's metrics by key, each downsampled; those that have one final value and no curve are left out."""
    series = MetricSeries.objects.filter(run=run).order_by("key")
    if keys:
        series = series.filter(key__in=keys)
    drawn = {one.key: downsampled(one, max_points) for one in series}
    return {key: points for key, points in drawn.items() if points}
