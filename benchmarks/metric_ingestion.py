"""Metric points from an engine's spool into rows that the API returns, beside COPY of the same rows.

The spool is read by the monitor as the worker does it: parsed, numbered under the lease, summarised, published.
Beside it, interleaved, PostgreSQL's COPY of ready-made lines into a table with the same columns and indexes.

    python -m benchmarks.metric_ingestion [--short]
"""

import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import psycopg

from .measuring import arguments, held_run, median, platform, report, spread, table

LIMIT = 50_000
KEYS = ("train/loss", "validation/loss", "validation/accuracy", "learning_rate")
LINES = 50_000
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
BARE = "CREATE TABLE benchmark_points (LIKE training_metricpoint INCLUDING INDEXES)"


COPY = "COPY benchmark_points (series_id, step, value, sequence, time) FROM STDIN"


def values_of(step: int) -> list[float]:
    return [1 / (1 + step), 1.1 / (1 + step), 1 - 1 / (1 + step), 0.001]


def write_spool(path: Path) -> None:
    """As the engine's EventWriter does, without its clock."""
    with path.open("wb") as out:
        for step in range(1, LINES + 1):
            line = {
                "sequence": step,
                "time": (BEGAN + timedelta(milliseconds=step)).isoformat(),
                "type": "metric",
                "step": step,
                "epoch": step // 100,
                "values": dict(zip(KEYS, values_of(step), strict=True)),
            }
            out.write(orjson.dumps(line) + b"\n")


def bare_rows() -> list[str]:
    """The same points as lines of COPY."""
    return [
        f"{series}\t{step}\t{value!r}\t{step}\t{(BEGAN + timedelta(milliseconds=step)).isoformat()}\n"
        for step in range(1, LINES + 1)
        for series, value in enumerate(values_of(step), 1)
    ]


def through_monitor(run: Any, folder: Path) -> float:
    from training.monitor import Monitor

    began = time.perf_counter()
    Monitor(run, folder).ship()
    return time.perf_counter() - began


def through_copy(database: psycopg.Connection[Any], rows: list[str]) -> float:
    database.execute("TRUNCATE benchmark_points")
    began = time.perf_counter()
    with database.transaction(), database.cursor() as cursor, cursor.copy(COPY) as copy:
        copy.write("".join(rows))
    return time.perf_counter() - began


def main() -> None:
    repetitions = 3 if arguments(__doc__).short else 7
    points = LINES * len(KEYS)
    with platform() as running, running.client() as client, tempfile.TemporaryDirectory() as name:
        from django.conf import settings

        version = running.upload(client, "small", table())["id"]
        write_spool(Path(name) / "events.jsonl")
        rows = bare_rows()
        ours, bare = [], []
        with psycopg.connect(settings.DATABASE_URL, autocommit=True) as database:
            database.execute(BARE)
            for _ in range(repetitions):
                run = held_run(version)
                ours.append(through_monitor(run, Path(name)))
                bare.append(through_copy(database, rows))
                answer = client.get(f"/runs/{run.pk}/metrics", params={"max_points": 100}).raise_for_status()
                last = {key: curve[-1] for key, curve in answer.json()["series"].items()}
                if last != {key: [LINES, value] for key, value in zip(KEYS, values_of(LINES), strict=True)}:
                    raise RuntimeError(f"the API answers {last}")
                run.delete()
        speed = [points / seconds for seconds in ours]
        report(
            "metric_ingestion", f"{len(KEYS)} keys x {LINES} steps", repetitions=repetitions,
            points_per_second=median(speed, 0), spread=spread(speed, 0),
            copy_points_per_second=median([points / seconds for seconds in bare], 0),
            ratio=median([one / other for one, other in zip(bare, ours, strict=True)]),
            limit=f"{LIMIT} points/s", passes=median(speed) >= LIMIT,
        )  # fmt: skip


if __name__ == "__main__":
    main()
