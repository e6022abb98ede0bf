"""The work of a comparison: tensors and answers of two versions side by side, one model in memory at a time."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings

from dlplatform.engine.behaviour import Answers, compare_behaviour, labels_of
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.weights import compare_weights
from dlplatform.jobs import LeaseLost
from dlplatform.objects.errors import CorruptObject, MissingObject

from .comparisons import failure
from .models import Comparison
from .workbench import Stopped, Workbench

WEIGHTS = "model.safetensors"


class Comparing:
    """One claimed comparison."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.bench = Workbench(comparison, (comparison.base, comparison.head), comparison.dataset_version)

    def work(self) -> None:
        settings.JOB_PATH.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="compare-", dir=settings.JOB_PATH) as folder:
                result = self._compare(Path(folder))
            self.comparison.finish("succeeded", result=result, progress=1.0, phase="")
        except Stopped:
            self.bench.give_back()
        except (EngineError, PackageError, MissingObject, CorruptObject) as error:
            told = failure("not_comparable", str(error), "Compare other versions, or choose data that both can read.")
            self.comparison.finish("failed", error=told, phase="")
        except LeaseLost:
            return

    def _compare(self, folder: Path) -> dict[str, Any]:
        base = self.bench.fetch(self.comparison.base, folder / "base", 0.0)
        head = self.bench.fetch(self.comparison.head, folder / "head", 0.1)
        result: dict[str, Any] = {"weights": self._weights(base / WEIGHTS, head / WEIGHTS)}
        if self.comparison.dataset_version is not None:
            result["behaviour"] = self._behaviour(base, head)
        return result

    def _weights(self, base: Path, head: Path) -> list[dict[str, Any]]:
        if not (base.exists() and head.exists()):
            return []
        share = 0.3 if self.comparison.dataset_version_id else 0.8
        return compare_weights(base, head, beat=lambda done: self.bench.beat(0.2 + share * done, "comparing weights"))

    def _behaviour(self, base: Path, head: Path) -> dict[str, Any]:
        table = self.bench.table()
        base_classes, before = self.bench.predictions(base, table, 0.5)
        head_classes, after = self.bench.predictions(head, table, 0.7)
        self.bench.beat(0.9, "comparing answers")
        if (base_classes is None) != (head_classes is None):
            raise EngineError("bad_data", "One version predicts classes, the other numbers.")
        target = self.bench.target()
        unknown = np.full(table.rows, np.nan)
        if base_classes is None or head_classes is None:
            actual = table.columns[target.name] if target else unknown
            numbers = (before[:, 0], after[:, 0])
            return compare_behaviour(table, *(Answers(each, np.abs(each - actual)) for each in numbers), None)
        classes = [*base_classes, *(name for name in head_classes if name not in base_classes)]
        actual = labels_of(target, table.columns[target.name], classes) if target else unknown
        codes = (_codes(base_classes, before, classes), _codes(head_classes, after, classes))
        answers = (Answers(each, np.where(np.isnan(actual), np.nan, each != actual)) for each in codes)
        return compare_behaviour(table, *answers, classes)


def _codes(names: list[str], probabilities: Any, classes: list[str]) -> Any:
    """(n,) the likeliest class of every row as a position in ``classes``."""
    return np.array([classes.index(name) for name in names], np.float64)[probabilities.argmax(1)]
