"""From the call that submits a run to its first metric row in PostgreSQL, with a warm idle worker.

Beside it, interleaved, what a cold process costs: `python -m dlplatform.engine` on the job directory of such a
run, until its first metric line.

    python -m benchmarks.submit_to_first_step [--short]
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.live import ROOT

from .measuring import arguments, median, platform, report, spread, table

LIMIT_MS = 250
FIRST_POINT = """
SELECT 1 FROM training_metricseries s JOIN training_metricpoint p ON p.series_id = s.id WHERE s.run_id = %s LIMIT 1
"""
STAGES = """
SELECT (SELECT extract(epoch FROM started_at) FROM training_run WHERE id = %(run)s),
       (SELECT extract(epoch FROM min(time)) FROM training_runevent WHERE run_id = %(run)s AND type = 'progress'),
       (SELECT extract(epoch FROM min(time)) FROM training_runevent WHERE run_id = %(run)s AND type = 'started'),
       (SELECT extract(epoch FROM min(p.time)) FROM training_metricseries s
          JOIN training_metricpoint p ON p.series_id = s.id WHERE s.run_id = %(run)s)
"""
STAGE_NAMES = ("claimed", "engine", "ready_to_train", "first_metric")
WANTED = {"task": "classification", "target": "label", "config": {"epochs": 3}}


def submitted(client: httpx.Client, database: psycopg.Connection[Any], version: str) -> tuple[float, str, float]:
    """Milliseconds until the first point is in the table, the run, and when it was submitted."""
    wall, began = time.time(), time.perf_counter()
    answer = client.post("/runs", json={"dataset_version": version, **WANTED})
    run = answer.raise_for_status().json()["id"]
    while database.execute(FIRST_POINT, [run]).fetchone() is None:
        if time.perf_counter() - began > 60:
            raise RuntimeError(f"run {run} reported no metric within a minute")
        time.sleep(0.002)
    return (time.perf_counter() - began) * 1000, run, wall


def cold(template: Path) -> float:
    """The same job in a process of its own, until its first metric line."""
    with tempfile.TemporaryDirectory() as name:
        job = Path(name) / "job"
        shutil.copytree(template, job)
        began = time.perf_counter()
        engine = subprocess.Popen([sys.executable, "-m", "dlplatform.engine", str(job)], cwd=ROOT)
        try:
            spool = job / "events.jsonl"
            while not spool.exists() or b'"type":"metric"' not in spool.read_bytes():
                if engine.poll() not in (None, 0):
                    raise RuntimeError((spool.read_text() if spool.exists() else "") or "the engine failed")
                time.sleep(0.005)
            return (time.perf_counter() - began) * 1000
        finally:
            engine.kill()
            engine.wait()


def job_template(version: str, folder: Path) -> Path:
    """A job directory of the same data and settings, as the worker would write it."""
    from datasets.models import DatasetVersion
    from dlplatform.objects.store import ObjectStore

    row = DatasetVersion.objects.select_related("dataset").get(pk=version)
    store = ObjectStore("datasets", row.dataset.organization_id)
    names = [f"data/part-{index:05d}.parquet" for index in range(len(row.parts))]
    for name, part in zip(names, row.parts, strict=True):
        store.fetch(part["sha256"], folder / name)
    columns = [{"name": column["name"], "type": column["type"]} for column in row.columns]
    spec = {
        "format": 1, "run": "cold", "attempt": 1, "task": "classification", "target": "label", "columns": columns,
        "features": None, "data": names, "config": WANTED["config"], "lineage": {},
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def main() -> None:
    repetitions = 15 if arguments(__doc__).short else 25
    with platform() as running, running.client() as client, tempfile.TemporaryDirectory() as scratch:
        from django.conf import settings

        version = running.upload(client, "small", table())["id"]
        template = job_template(version, Path(scratch) / "template")
        warm, cold_ones, stages = [], [], []
        with psycopg.connect(settings.DATABASE_URL, autocommit=True) as database:
            for repetition in range(repetitions + 1):
                milliseconds, run, wall = submitted(client, database, version)
                running.finished(client, run)
                found = database.execute(STAGES, {"run": run}).fetchone()
                if repetition:  # the first one also warms the web process
                    warm.append(milliseconds)
                    stages.append([(float(moment) - wall) * 1000 for moment in found])
                if repetition % 5 == 1:
                    cold_ones.append(cold(template))
                time.sleep(0.3)
        report(
            "submit_to_first_step", "500 rows, 4 columns", repetitions=repetitions, milliseconds=median(warm, 1),
            spread=spread(warm, 1), stages={
                name: median([stage[index] for stage in stages], 1) for index, name in enumerate(STAGE_NAMES)
            },
            cold_process_milliseconds=median(cold_ones, 1), ratio=median([median(cold_ones) / one for one in warm], 1),
            limit=f"{LIMIT_MS} ms", passes=median(warm) <= LIMIT_MS,
        )  # fmt: skip


if __name__ == "__main__":
    main()
