"""What jobs on versions share: the lease, packages out of the store, the rows of a dataset version, answers to them."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.models import DatasetVersion
from datasets.services import local_parts
from dlplatform.engine.errors import EngineError
from dlplatform.engine.predict import Predictor
from dlplatform.engine.schema import Column
from dlplatform.engine.table import Table, read_table
from dlplatform.jobs import Job

from . import graphs
from .models import ModelVersion
from .packages import package_files, safe_target
from .services import object_store

RENEW_SECONDS = 1.0
MOST_ROWS = 100_000
BATCH_ROWS = 4096
Array = np.ndarray[Any, Any]


class Stopped(Exception):
    """Somebody asked to cancel, or the worker is stopping."""


class Workbench:
    """One claimed job on some versions of a model, and the rows that they are tried on."""

    def __init__(self, job: Job, versions: Sequence[ModelVersion], data: DatasetVersion | None) -> None:
        self.job = job
        self.versions = versions
        self.data = data
        self.cancelled = False
        self._draining = False
        self._renewed = time.monotonic()
        signal.signal(signal.SIGTERM, self._drain)

    def _drain(self, _signal: int, _frame: Any) -> None:
        self._draining = True

    def beat(self, fraction: float, phase: str) -> None:
        """Keep the lease and tell how far it is, once a second; raises Stopped when asked to stop."""
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self._renewed = time.monotonic()
            self.cancelled = self.job.renew() or self.cancelled
            self.job.write(progress=fraction, phase=phase)
        if self.cancelled or self._draining:
            raise Stopped

    def give_back(self) -> None:
        """After Stopped: end as cancelled, or return to the queue for another worker."""
        if self.cancelled:
            self.job.finish("cancelled", phase="")
        else:
            self.job.release(charge=False, progress=0.0, phase="")

    def fetch(self, version: ModelVersion, folder: Path, fraction: float) -> Path:
        """The version's files in a folder, which is returned; an adapter's base beside them."""
        graphs.require_ours(version)
        store = object_store(version.model.organization_id)
        for path, entry in package_files(version):
            store.fetch(entry["sha256"], safe_target(folder, path))
            self.beat(fraction, "fetching")
        return folder

    def target(self) -> Column | None:
        """The column that all versions predict, where the data has it."""
        assert self.data is not None
        names = {version.signature.get("target") for version in self.versions}
        types = {column["name"]: column["type"] for column in self.data.columns}
        name = names.pop() if len(names) == 1 else None
        return Column(name, types[name]) if name and name in types else None

    def _columns(self, data: DatasetVersion) -> list[Column]:
        """What the versions read and the target, as the data has them."""
        types = {column["name"]: column["type"] for column in data.columns}
        wanted: dict[str, str] = {}
        for version in self.versions:
            for column in version.signature.get("inputs", []):
                if column["name"] not in types:
                    raise EngineError("bad_data", f"The data has no column “{column['name']}”.")
                if wanted.setdefault(column["name"], column["type"]) != column["type"]:
                    raise EngineError("bad_data", f"The versions read “{column['name']}” as different types.")
        target = self.target()
        if target is not None and target.name in types:
            wanted.setdefault(target.name, target.type)
        return [Column(name, type_) for name, type_ in wanted.items()]

    def table(self, data: DatasetVersion | None = None) -> Table:
        """Rows, those that the job names by default, evenly thinned out where they are more than a hundred thousand."""
        data = data or self.data
        assert data is not None
        table = read_table(local_parts(data), self._columns(data))
        if table.rows > MOST_ROWS:
            table = table.take(np.linspace(0, table.rows - 1, MOST_ROWS).astype(np.int64))
        return table

    def predictions(self, package: Path, table: Table, fraction: float) -> tuple[list[str] | None, Array]:
        """(classes or None, (n, K)) of one package; its model is gone again when this returns."""
        predictor = Predictor(package)
        inputs = {column["name"] for column in predictor.description["inputs"]}
        rows = Table({name: values for name, values in table.columns.items() if name in inputs}, table.rows)
        parts = []
        for first in range(0, table.rows, BATCH_ROWS):
            chosen = np.arange(first, min(first + BATCH_ROWS, table.rows))
            parts.append(predictor.predict_table(rows.take(chosen)))
            self.beat(fraction, "predicting")
        classes = predictor.description["output"].get("classes")
        return [str(name) for name in classes] if classes else None, np.concatenate(parts)
