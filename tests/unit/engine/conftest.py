"""Job directories for the engine's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.engine.warm_engines import Engine

ROOT = Path(__file__).resolve().parents[3]
ARROW = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "category": pa.string(),
    "text": pa.string(),
    "datetime": pa.timestamp("us", tz="UTC"),
    "image": pa.string(),
}
Columns = dict[str, tuple[str, list[Any]]]
# Small enough that a run takes about a second.
QUICK = {"epochs": 3, "threads": 1, "folds": 2, "params": {"members": 4, "width": 16}}


def write_job(
    job_dir: Path,
    table: Columns,
    task: str = "classification",
    target: str | list[str] = "y",
    config: dict[str, Any] | None = None,
    parts: int = 1,
    **overrides: Any,
) -> Path:
    """Write ``spec.json`` and the data. ``table``: name → (type, values)."""
    (job_dir / "data").mkdir(parents=True)
    arrow = pa.table({name: pa.array(values, ARROW[type_]) for name, (type_, values) in table.items()})
    edges = np.linspace(0, arrow.num_rows, parts + 1).astype(int)
    names = []
    for part in range(parts):
        names.append(f"data/part-{part:05d}.parquet")
        pq.write_table(arrow.slice(edges[part], edges[part + 1] - edges[part]), job_dir / names[-1])
    spec = {
        "format": 1,
        "run": "0c1c9a52-0000-0000-0000-000000000000",
        "attempt": 1,
        "task": task,
        "target": target,
        "columns": [{"name": name, "type": type_} for name, (type_, _) in table.items()],
        "features": None,
        "data": names,
        "config": QUICK if config is None else config,
        "lineage": {"dataset": "made for a test"},
        **overrides,
    }
    (job_dir / "spec.json").write_text(json.dumps(spec))
    return job_dir


def mixed_columns(rows: int = 200, seed: int = 0) -> Columns:
    """A table with every column type, missing values everywhere, and a target that depends on it."""
    random = np.random.default_rng(seed)
    number, integer = random.normal(size=rows), random.integers(0, 50, rows)
    colour = random.choice(["red", "green", "blue"], rows)
    flag = random.random(rows) < 0.5
    when = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=int(hour)) for hour in random.integers(0, 9000, rows)]
    text = [f"{word} item {number}" for word, number in zip(random.choice(["good", "bad"], rows), integer, strict=True)]
    score = number + (colour == "red") + 0.05 * integer + flag + np.array(["good" in each for each in text])

    def holes(values: Any, share: float = 0.1) -> list[Any]:
        hidden = random.random(rows) < share
        return [None if hide else value for value, hide in zip(list(values), hidden, strict=True)]

    return {
        "number": ("number", holes(number.tolist())),
        "integer": ("integer", holes(integer.tolist())),
        "flag": ("boolean", holes(flag.tolist())),
        "colour": ("category", holes(colour.tolist())),
        "when": ("datetime", holes(when)),
        "note": ("text", holes(text)),
        "y": ("category", np.where(score > np.median(score), "high", "low").tolist()),
        "z": ("number", score.tolist()),
    }


def classification_columns(rows: int = 200, seed: int = 0) -> Columns:
    return {name: values for name, values in mixed_columns(rows, seed).items() if name != "z"}


def regression_columns(rows: int = 200, seed: int = 0) -> Columns:
    return {name: values for name, values in mixed_columns(rows, seed).items() if name != "y"}


def read_spool(job_dir: Path, type_: str | None = None) -> list[dict[str, Any]]:
    from dlplatform.engine.events import read_events

    events, _ = read_events(job_dir / "events.jsonl")
    return [event for event in events if type_ is None or event["type"] == type_]


def start_engine(job_dir: Path) -> Engine:
    """The engine on a job directory, in a process of its own."""
    return Engine(job_dir)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Path]:
    """Make a job directory from columns; see `write_job`."""

    def make(table: Columns, name: str = "job", **settings: Any) -> Path:
        return write_job(tmp_path / name, table, **settings)

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished job for each task."""
    from dlplatform.engine.run import run_job

    root = tmp_path_factory.mktemp("trained")
    jobs = {
        "classification": write_job(root / "c", classification_columns()),
        "regression": write_job(root / "r", regression_columns(), task="regression", target="z"),
    }
    for job_dir in jobs.values():
        assert run_job(job_dir) == 0
    return jobs


# What several processes have to equal, and what all of them are started with.
TOGETHER = {
    "epochs": 4,
    "threads": 1,
    "folds": 2,
    "batch_size": 16,
    "early_stopping": False,
    "checkpoint_seconds": 0.05,
    "importance": False,
    "params": {"members": 4, "width": 16, "dropout": 0.2},
}


@pytest.fixture(scope="session")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``by_two(strategy, epochs)``: the job that two processes of one machine trained undisturbed, once for all tests."""
    made: dict[tuple[str, int], Path] = {}

    def trained(strategy: str, epochs: int = 4) -> Path:
        if (strategy, epochs) not in made:
            config = {**TOGETHER, "devices": 2, "strategy": strategy, "epochs": epochs}
            folder = tmp_path_factory.mktemp("by-two") / "job"
            made[strategy, epochs] = write_job(folder, mixed_columns(120), config=config)
            assert start_engine(folder).wait(timeout=240) == 0, read_spool(folder)[-3:]
        return made[strategy, epochs]

    return trained
