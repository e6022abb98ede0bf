"""How long answers took, from the prediction log: percentiles over time, computed in the database."""

from typing import Any

from django.db import connection

from .models import Deployment, Variant

LOOKED_AT = 20_000  # records, the newest first
BUCKETS = 60
UNITS = ((2 * 86_400, 3_600, "hours"), (7_200, 60, "minutes"), (0, 1, "seconds"))

PERCENTILES = """
WITH newest AS (
    SELECT variant_id, extract(epoch FROM at)::float8 AS at, milliseconds
    FROM serving_predictionrecord
    WHERE deployment_id = %s AND role = 'live' AND error = ''
    ORDER BY id DESC LIMIT %s
), span AS (
    SELECT min(at) AS first, max(at) AS last, greatest((max(at) - min(at)) / %s, 1) AS width FROM newest
)
SELECT variant_id, floor((at - first) / width) AS bucket, min(last - first), min(width),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY milliseconds),
       percentile_cont(0.99) WITHIN GROUP (ORDER BY milliseconds)
FROM newest, span GROUP BY variant_id, bucket ORDER BY variant_id, bucket
"""


def latency_charts(deployment: Deployment) -> list[dict[str, Any]]:
    """A chart for the page: the median and the 99th percentile of every variant, in milliseconds, over the time that the
    newest records span; none before there are two points of a variant."""
    with connection.cursor() as cursor:
        cursor.execute(PERCENTILES, [deployment.pk, LOOKED_AT, BUCKETS])
        rows = cursor.fetchall()
    names = {row.pk: str(row) for row in Variant.objects.filter(deployment=deployment).select_related("version__model")}
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row[1:])
    telling = {variant: points for variant, points in found.items() if len(points) > 1}
    if not telling:
        return []
    span = max(point[1] for points in telling.values() for point in points)
    _, size, unit = next(one for one in UNITS if span >= one[0])
    series = [
        {"name": f"{names[variant]} {name}", "points": [_point(point, size, place) for point in points]}
        for variant, points in telling.items()
        for name, place in (("median", 3), ("99 %", 4))
    ]
    x = f"{unit}, 0 is the newest request"
    return [{"kind": "line", "title": "Milliseconds to the answer", "x": x, "tools": True, "series": series}]


def _point(row: Any, size: int, place: int) -> list[float]:
    """The middle of a bucket, before the newest request, and its percentile."""
    bucket, span, width = row[0], row[1], row[2]
    return [round((min((bucket + 0.5) * width, span) - span) / size, 3), round(row[place], 3)]
