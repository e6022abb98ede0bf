"""Finished networks to make variants of; each process of the suite trains them once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlplatform.engine import package
from dlplatform.engine.dataset import Dataset
from dlplatform.engine.optimizing.plan import Plan
from dlplatform.engine.optimizing.rows import split_again, targets_of
from dlplatform.engine.optimizing.work import make_variant
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.schema import Column
from dlplatform.engine.table import read_table
from tests.unit.engine.conftest import mixed_columns, write_job

WIDE = {"architecture": "mlp", "folds": 1, "epochs": 6, "threads": 1, "params": {"layers": 2, "width": 64}}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished package with its rows."""

    package: Path
    loaded: package.Package
    rows: Dataset

    def variant(self, folder: Path, *passes: str, **settings: Any) -> Predictor:
        return make_variant(self.package, self.loaded, Plan(passes, **settings), self.rows, folder)


def trained(folder: Path, config: dict[str, Any], rows: int = 240, **more: Any) -> Trained:
    job = write_job(folder, mixed_columns(rows), config=config, **more)
    assert run_job(job) == 0, (job / "events.jsonl").read_text()[-2000:]
    return read_back(job)


def read_back(job: Path) -> Trained:
    loaded = package.load(job / "output")
    spec = json.loads((job / "spec.json").read_text())
    types = {column["name"]: column["type"] for column in spec["columns"]}
    targets = targets_of(loaded.description, types)
    columns = {name: Column(name, types[name]) for name in types}
    table = read_table([job / name for name in spec["data"]], list(columns.values()))
    return Trained(job / "output", loaded, split_again(loaded.description, loaded.preprocessor, table, targets, bytes))


@pytest.fixture(scope="session")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("perceptron") / "job", WIDE)


@pytest.fixture(scope="session")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = {"epochs": 4, "threads": 1, "folds": 2, "params": {"members": 4, "width": 32}}
    return trained(tmp_path_factory.mktemp("ensemble") / "job", config)


@pytest.fixture(scope="session")
def exact_graph(perceptron: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "made"
    perceptron.variant(folder, "onnx")
    return folder


def described(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description, and make the manifest agree: whoever breaks a package may know that much."""
    path = folder / "model.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    (folder / "manifest.json").unlink(missing_ok=True)
