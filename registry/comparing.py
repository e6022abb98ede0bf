"""The work of a comparison: packages out of the store, tensors and answers side by side, one model in memory at a time."""

import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings

from datasets.services import local_parts
from dlplatform.engine.behaviour import Answers, compare_behaviour, labels_of
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.predict import Predictor
from dlplatform.engine.schema import Column
from dlplatform.engine.table import Table, read_table
from dlplatform.engine.weights import compare_weights
from dlplatform.jobs import LeaseLost
from dlplatform.objects.errors import CorruptObject, MissingObject

from .comparisons import failure
from .models import Comparison, ModelVersion
from .services import object_store

WEIGHTS = "model.safetensors"
RENEW_SECONDS = 1.0
MOST_ROWS = 100_000
BATCH_ROWS = 4096
Array = np.ndarray[Any, Any]


class Stopped(Exception):
    """Somebody asked to cancel, or the worker is stopping."""


class Comparing:
    """One claimed comparison."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.store = object_store(comparison.model.organization_id)
        self.cancelled = False
        self.draining = False
        self._renewed = time.monotonic()

    def work(self) -> None:
        signal.signal(signal.SIGTERM, self._drain)
        settings.JOB_PATH.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="compare-", dir=settings.JOB_PATH) as folder:
                result = self._compare(Path(folder))
            self.comparison.finish("succeeded", result=result, progress=1.0, phase="")
        except Stopped:
            self._give_back()
        except (EngineError, PackageError, MissingObject, CorruptObject) as error:
            told = failure("not_comparable", str(error), "Compare other versions, or choose data that both can read.")
            self.comparison.finish("failed", error=told, phase="")
        except LeaseLost:
            return

    def _drain(self, _signal: int, _frame: Any) -> None:
        self.draining = True

    def _give_back(self) -> None:
        if self.cancelled:
            self.comparison.finish("cancelled", phase="")
        else:
            self.comparison.release(charge=False, progress=0.0, phase="")

    def _beat(self, fraction: float, phase: str) -> None:
        """Keep the lease and tell how far it is, once a second; raises Stopped when asked to stop."""
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self._renewed = time.monotonic()
            self.cancelled = self.comparison.renew() or self.cancelled
            self.comparison.write(progress=fraction, phase=phase)
        if self.cancelled or self.draining:
            raise Stopped

    # --- what is compared ---------------------------------------------------------------------------

    def _compare(self, folder: Path) -> dict[str, Any]:
        comparison = self.comparison
        self._fetch(comparison.base, folder / "base", 0.0)
        self._fetch(comparison.head, folder / "head", 0.1)
        result: dict[str, Any] = {"weights": self._weights(folder)}
        if comparison.dataset_version is not None:
            result["behaviour"] = self._behaviour(folder)
        return result

    def _fetch(self, version: ModelVersion, folder: Path, done: float) -> None:
        for path, entry in version.tree.items():
            self.store.fetch(entry["sha256"], folder / path)
            self._beat(done, "fetching")

    def _weights(self, folder: Path) -> list[dict[str, Any]]:
        paths = [folder / side / WEIGHTS for side in ("base", "head")]
        if not all(path.exists() for path in paths):
            return []
        share = 0.3 if self.comparison.dataset_version_id else 0.8
        return compare_weights(*paths, beat=lambda done: self._beat(0.2 + share * done, "comparing weights"))

    def _behaviour(self, folder: Path) -> dict[str, Any]:
        table = self._table()
        base_classes, base = self._predicted(folder / "base", table, 0.5)
        head_classes, head = self._predicted(folder / "head", table, 0.7)
        self._beat(0.9, "comparing answers")
        target = self._target()
        if (base_classes is None) != (head_classes is None):
            raise EngineError("bad_data", "One version predicts classes, the other numbers.")
        if base_classes is None or head_classes is None:
            actual = table.columns[target.name] if target else np.full(table.rows, np.nan)
            answers = [Answers(values, np.abs(values - actual)) for values in (base[:, 0], head[:, 0])]
            return compare_behaviour(table, *answers, None)
        classes = [*base_classes, *(name for name in head_classes if name not in base_classes)]
        actual = labels_of(target, table.columns[target.name], classes) if target else np.full(table.rows, np.nan)
        codes = [
            np.array([classes.index(name) for name in names], np.float64)[values.argmax(1)]
            for names, values in ((base_classes, base), (head_classes, head))
        ]
        answers = [Answers(each, np.where(np.isnan(actual), np.nan, each != actual)) for each in codes]
        return compare_behaviour(table, *answers, classes)

    def _columns(self) -> list[Column]:
        """What both models read and the target, as the data has them."""
        comparison = self.comparison
        assert comparison.dataset_version is not None
        types = {column["name"]: column["type"] for column in comparison.dataset_version.columns}
        wanted: dict[str, str] = {}
        for version in (comparison.base, comparison.head):
            for column in version.signature.get("inputs", []):
                if column["name"] not in types:
                    raise EngineError("bad_data", f"The data has no column “{column['name']}”.")
                if wanted.setdefault(column["name"], column["type"]) != column["type"]:
                    raise EngineError("bad_data", f"The versions read “{column['name']}” as different types.")
        target = self._target()
        if target is not None:
            wanted.setdefault(target.name, target.type)
        return [Column(name, type_) for name, type_ in wanted.items()]

    def _target(self) -> Column | None:
        """The column that both versions predict, where the data has it."""
        comparison = self.comparison
        assert comparison.dataset_version is not None
        names = {each.signature.get("target") for each in (comparison.base, comparison.head)}
        types = {column["name"]: column["type"] for column in comparison.dataset_version.columns}
        name = names.pop() if len(names) == 1 else None
        return Column(name, types[name]) if name in types else None

    def _table(self) -> Table:
        assert self.comparison.dataset_version is not None
        table = read_table(local_parts(self.comparison.dataset_version), self._columns())
        if table.rows > MOST_ROWS:
            table = table.take(np.linspace(0, table.rows - 1, MOST_ROWS).astype(np.int64))
        return table

    def _predicted(self, package: Path, table: Table, done: float) -> tuple[list[str] | None, Array]:
        """(classes or None, (n, K) predictions); the model is gone again when this returns."""
        predictor = Predictor(package)
        inputs = {column["name"] for column in predictor.description["inputs"]}
        parts = []
        for first in range(0, table.rows, BATCH_ROWS):
            rows = np.arange(first, min(first + BATCH_ROWS, table.rows))
            chunk = Table({name: values for name, values in table.columns.items() if name in inputs}, table.rows)
            parts.append(predictor.predict_table(chunk.take(rows)))
            self._beat(done + 0.2 * first / table.rows, "predicting")
        classes = predictor.description["output"].get("classes")
        return [str(name) for name in classes] if classes else None, np.concatenate(parts)
