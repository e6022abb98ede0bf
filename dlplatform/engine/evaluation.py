"""What a finished model can and cannot do, measured on its validation rows: ``evaluation.json``."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from dlplatform.engine import metrics
from dlplatform.engine.dataset import Dataset
from dlplatform.engine.table import Table

SCATTER_POINTS: Final = 2000
WORST_ROWS: Final = 20
HISTOGRAM_BINS: Final = 30

Array = np.ndarray[Any, Any]


def validation_rows(dataset: Dataset) -> Array:
    """Positions of the validation rows, in the order of `Trainer.validate`."""
    return np.concatenate(dataset.split.validation)


def measure(dataset: Dataset, actual: Array, predicted: Array) -> dict[str, float | None]:
    """The final metrics; regression in the target's own units."""
    target = dataset.target
    if target.kind == "class":
        return metrics.classification(actual, predicted)
    if target.kind == "labels":
        return metrics.multilabel(actual, predicted)
    if target.kind == "numbers":
        return metrics.regressions(target.original(actual), target.original(predicted), target.classes)
    return metrics.regression(target.original(actual), target.original(predicted[:, 0]))


def evaluate(dataset: Dataset, actual: Array, predicted: Array, importance: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of ``evaluation.json``."""
    shared = {
        "task": dataset.task,
        "rows": len(actual),
        "held_out": "every row, by the models that did not train on it" if dataset.split.groups > 1 else "one part",
        "metrics": measure(dataset, actual, predicted),
        "baseline": baseline(dataset, actual),
        "importance": importance,
    }
    if dataset.target.kind == "class":
        return {**shared, **_classification(dataset, actual, predicted)}
    if dataset.target.kind == "number":
        return {**shared, **_regression(dataset, actual, predicted)}
    describe = _labels if dataset.target.kind == "labels" else _regressions
    return {**shared, **describe(dataset, actual, predicted)}


def baseline(dataset: Dataset, actual: Array) -> dict[str, Any]:
    """What a model without inputs would reach: the majority class with the class shares, or the mean."""
    train = dataset.target.values[dataset.split.train[0]]
    if dataset.target.kind in ("labels", "numbers"):
        means = np.tile(train.mean(0), (len(actual), 1))
        kind = "share of each label" if dataset.target.kind == "labels" else "mean"
        return {"kind": kind, "metrics": measure(dataset, actual, means)}
    if dataset.target.classes:
        shares = np.bincount(train, minlength=len(dataset.target.classes)) / len(train)
        measured = metrics.classification(actual, np.tile(shares, (len(actual), 1)))
        return {"kind": "majority class", "metrics": measured}
    constant = np.full(len(actual), train.mean())
    measured = metrics.regression(dataset.target.original(actual), dataset.target.original(constant))
    return {"kind": "mean", "metrics": measured}


def _classification(dataset: Dataset, actual: Array, predicted: Array) -> dict[str, Any]:
    labels = dataset.target.classes
    confusion = metrics.confusion_matrix(actual, predicted.argmax(1), len(labels))
    scores = metrics.per_class(confusion)
    body: dict[str, Any] = {
        "labels": list(labels),
        "confusion_matrix": confusion.tolist(),
        "per_class": [
            {"label": label, **{name: values[index].item() for name, values in scores.items()}}
            for index, label in enumerate(labels)
        ],
        "worst": _worst_classified(dataset, actual, predicted),
    }
    if len(labels) == 2 and 0 < actual.sum() < len(actual):
        body["curves"] = metrics.roc_points(actual == 1, predicted[:, 1])
    return body


def _worst_classified(dataset: Dataset, actual: Array, predicted: Array) -> list[dict[str, Any]]:
    """The wrongly classified rows whose true class was thought least likely."""
    labels, chosen = dataset.target.classes, predicted.argmax(1)
    likelihood = predicted[np.arange(len(actual)), actual]
    wrong = np.flatnonzero(chosen != actual)
    worst = wrong[np.argsort(likelihood[wrong], kind="stable")[:WORST_ROWS]]
    rows = validation_rows(dataset)[worst]
    return [
        {
            "row": int(dataset.kept[row]),
            "actual": labels[actual[at]],
            "predicted": labels[chosen[at]],
            "probability": float(predicted[at, chosen[at]]),
            "values": values,
        }
        for at, row, values in zip(worst, rows, row_values(dataset, rows), strict=True)
    ]


def _regression(dataset: Dataset, actual: Array, predicted: Array) -> dict[str, Any]:
    truth, guess = dataset.target.original(actual), dataset.target.original(predicted[:, 0])
    residual = truth - guess
    sample = np.unique(np.linspace(0, len(truth) - 1, min(SCATTER_POINTS, len(truth))).astype(int))
    counts, edges = metrics.histogram(residual, HISTOGRAM_BINS)
    worst = np.argsort(-np.abs(residual), kind="stable")[:WORST_ROWS]
    rows = validation_rows(dataset)[worst]
    return {
        "points": {
            "actual": truth[sample].tolist(),
            "predicted": guess[sample].tolist(),
            "residual": residual[sample].tolist(),
        },
        "residual_histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "worst": [
            {
                "row": int(dataset.kept[row]),
                "actual": float(truth[at]),
                "predicted": float(guess[at]),
                "error": float(-residual[at]),
                "values": values,
            }
            for at, row, values in zip(worst, rows, row_values(dataset, rows), strict=True)
        ],
    }


def _labels(dataset: Dataset, actual: Array, predicted: Array) -> dict[str, Any]:
    """Each label's own scores, and the rows with the most wrong labels."""
    truth, chosen = actual > 0.5, predicted >= 0.5
    labels, rows = dataset.target.classes, validation_rows(dataset)
    hits = (truth & chosen).sum(0)
    scores = [
        {"label": label, "precision": _share(hit, said), "recall": _share(hit, there), "f1": _share(2 * hit, said + there),
         "support": int(there)}
        for label, hit, said, there in zip(labels, hits, chosen.sum(0), truth.sum(0), strict=True)
    ]  # fmt: skip
    wrong = (truth != chosen).sum(1)
    worst = np.lexsort((np.arange(len(wrong)), -wrong))[: min(WORST_ROWS, int((wrong > 0).sum()))]
    return {
        "labels": list(labels),
        "per_class": scores,
        "worst": [
            {
                "row": int(dataset.kept[rows[at]]),
                "actual": ", ".join(label for label, there in zip(labels, truth[at], strict=True) if there) or "none",
                "predicted": ", ".join(label for label, there in zip(labels, chosen[at], strict=True) if there)
                or "none",
                "probability": float(np.abs(predicted[at] - ~truth[at]).min()),
                "values": values,
            }
            for at, values in zip(worst, row_values(dataset, rows[worst]), strict=True)
        ],
    }


def _share(above: Any, below: Any) -> float:
    return float(above / below) if below else 0.0


def _regressions(dataset: Dataset, actual: Array, predicted: Array) -> dict[str, Any]:
    """Each target's own scores, and the rows that are furthest off in units of the targets' spread."""
    truth, guess = dataset.target.original(actual), dataset.target.original(predicted)
    rows, names = validation_rows(dataset), dataset.target.classes
    spread = np.where(truth.std(0) > 0, truth.std(0), 1.0)
    error = np.abs((guess - truth) / spread).max(1)
    worst = np.argsort(-error, kind="stable")[:WORST_ROWS]
    return {
        "targets": [
            {"target": name, **metrics.regression(truth[:, column], guess[:, column])}
            for column, name in enumerate(names)
        ],
        "worst": [
            {
                "row": int(dataset.kept[rows[at]]),
                "actual": "; ".join(f"{name} {value:.4g}" for name, value in zip(names, truth[at], strict=True)),
                "predicted": "; ".join(f"{name} {value:.4g}" for name, value in zip(names, guess[at], strict=True)),
                "error": float(error[at]),
                "values": values,
            }
            for at, values in zip(worst, row_values(dataset, rows[worst]), strict=True)
        ],
    }


def row_values(dataset: Dataset, rows: Array) -> list[dict[str, Any]]:
    """Feature values of rows as JSON values: what `Predictor.predict` would accept."""
    taken: Table = dataset.table.take(rows)
    columns = {
        coding.column.name: json_values(coding.column.type, taken.columns[coding.column.name])
        for coding in dataset.preprocessor.codings
    }
    return [{name: values[row] for name, values in columns.items()} for row in range(len(rows))]


def json_values(type_: str, values: Array | pa.StringArray) -> list[Any]:
    """Stored values as JSON ones; datetimes in ISO 8601, missing ones None."""
    if isinstance(values, np.ndarray):
        return [None if np.isnan(value) else json_value(type_, value) for value in values.tolist()]
    return values.to_pylist()  # type: ignore[no-any-return]


def json_value(type_: str, value: float) -> Any:
    """One stored number as the JSON value of its column type."""
    if type_ == "boolean":
        return bool(value)
    if type_ == "integer":
        return round(value)
    if type_ == "datetime":
        return str(np.datetime64(round(value * 1e6), "us")) + "Z"
    return value
