"""The curve of a metric with 100,000 points, downsampled in the database, beside fetching its raw rows.

python -m benchmarks.metric_series [--short]
"""

import time
from typing import Any

from .measuring import arguments, held_run, median, platform, report, spread, table

LIMIT_MS = 60
POINTS = 100_000
KEY = "train/loss"
SHOWN = 1000
FILL = """
INSERT INTO training_metricpoint (series_id, step, value, sequence, time)
SELECT %s, n, 1 / (1 + n / 1000.0) + random() / 10, n, now() FROM generate_series(1, %s) AS n
"""
RAW = "SELECT step, value FROM training_metricpoint WHERE series_id = %s ORDER BY step"


def fill(run: Any) -> Any:
    """A series with all its points, and PostgreSQL's statistics of them."""
    from django.db import connection

    from training.curves import summarise
    from training.models import MetricSeries

    series = MetricSeries.objects.create(run=run, key=KEY, last=0.1, minimum=0.0, maximum=1.1)
    with connection.cursor() as cursor:
        cursor.execute(FILL, [series.pk, POINTS])
        summarise(cursor, [series.pk], 1, POINTS)
        cursor.execute("VACUUM ANALYZE training_metricpoint")
    return series


def raw(series: Any) -> list[Any]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(RAW, [series.pk])
        return list(cursor.fetchall())


def main() -> None:
    repetitions = 15 if arguments(__doc__).short else 40
    with platform() as running, running.client() as client:
        from training.curves import downsampled

        run = held_run(running.upload(client, "small", table())["id"])
        series = fill(run)
        address, wanted = f"/runs/{run.pk}/metrics", {"keys": KEY, "max_points": SHOWN}
        work = {
            "raw": lambda: raw(series),
            "sql": lambda: downsampled(series, SHOWN),
            "api": lambda: client.get(address, params=wanted).raise_for_status().json()["series"][KEY],
        }
        taken: dict[str, list[float]] = {name: [] for name in work}
        shown = {}
        for repetition in range(repetitions + 2):
            for name, act in work.items():
                began = time.perf_counter()
                shown[name] = len(act())
                if repetition > 1:
                    taken[name].append((time.perf_counter() - began) * 1000)
        if not SHOWN / 2 < shown["sql"] == shown["api"] <= SHOWN:
            raise RuntimeError(f"points: {shown}")
        for name in ("sql", "api"):
            report(
                "metric_series", {"sql": "in the process", "api": "GET /runs/{id}/metrics"}[name], points=POINTS,
                shown=shown[name], repetitions=repetitions, milliseconds=median(taken[name], 1),
                spread=spread(taken[name], 1), raw_rows_milliseconds=median(taken["raw"], 1),
                ratio=median([one / other for one, other in zip(taken[name], taken["raw"], strict=True)]),
                limit=f"{LIMIT_MS} ms", passes=median(taken[name]) <= LIMIT_MS,
            )  # fmt: skip


if __name__ == "__main__":
    main()
