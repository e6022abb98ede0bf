"""Measures of predictions, in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
TINY = 1e-7


def confusion_matrix(actual: Array, predicted: Array, classes: int) -> Array:
    """(K, K) counts: actual in rows, predicted in columns."""
    return np.bincount(actual * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def log_loss(actual: Array, probabilities: Array) -> float:
    """Mean negative log-likelihood; probabilities (n, K) are kept off zero."""
    chosen = probabilities[np.arange(len(actual)), actual]
    return float(-np.log(np.clip(chosen, TINY, 1.0)).mean())


def per_class(confusion: Array) -> dict[str, Array]:
    """precision, recall, f1 and support of each class; 0 where undefined."""
    hits = np.diag(confusion).astype(np.float64)
    support, predicted = confusion.sum(1), confusion.sum(0)
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted),
        "support": support,
    }


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


def classification(actual: Array, probabilities: Array) -> dict[str, float | None]:
    """accuracy, balanced_accuracy, f1_macro, log_loss and roc_auc (one-vs-rest mean for K > 2).

    Classes without a row in ``actual`` do not count in the means; roc_auc is None when it is undefined.
    """
    classes = probabilities.shape[1]
    confusion = confusion_matrix(actual, probabilities.argmax(1), classes)
    scores = per_class(confusion)
    present = scores["support"] > 0
    either = present | (confusion.sum(0) > 0)
    return {
        "accuracy": float(np.diag(confusion).sum() / len(actual)),
        "balanced_accuracy": float(scores["recall"][present].mean()),
        "f1_macro": float(scores["f1"][either].mean()),
        "log_loss": log_loss(actual, probabilities),
        "roc_auc": _macro_auc(actual, probabilities),
    }


def _macro_auc(actual: Array, probabilities: Array) -> float | None:
    classes = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [roc_auc(actual == each, probabilities[:, each]) for each in classes]
    defined = [area for area in areas if area is not None]
    return float(np.mean(defined)) if defined else None


def roc_auc(positive: Array, scores: Array) -> float | None:
    """Area under the ROC curve by ranks (ties averaged); None with one class only."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def regression(actual: Array, predicted: Array) -> dict[str, float | None]:
    """rmse, mae and r2 (None when the actual values do not vary)."""
    error = predicted - actual
    spread = float(((actual - actual.mean()) ** 2).sum())
    return {
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
        "r2": 1 - float((error**2).sum()) / spread if spread > 0 else None,
    }


def histogram(values: Array, bins: int) -> tuple[Array, Array]:
    """(counts, edges) of the finite values; one bin where they lie too close together, or too far apart, for floats to
    divide what is between them, and none without values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(0, np.int64), np.zeros(0)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return np.histogram(finite, bins)
    except ValueError:
        return np.array([len(finite)]), np.array([finite.min(), finite.max()])


def roc_points(positive: Array, scores: Array, limit: int = 200) -> dict[str, list[float]]:
    """At most ``limit`` points of the ROC and precision-recall curves, by falling threshold."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    # Rows of equal score share one threshold: only its last row is a point of the curve.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    last = last[np.unique(np.linspace(0, len(last) - 1, min(limit, len(last))).astype(int))]
    true, false = hits[last], last + 1 - hits[last]
    positives, negatives = max(1, int(positive.sum())), max(1, int((~positive).sum()))
    return {
        "threshold": scores[order][last].tolist(),
        "true_positive_rate": (true / positives).tolist(),
        "false_positive_rate": (false / negatives).tolist(),
        "precision": (true / (last + 1)).tolist(),
        "recall": (true / positives).tolist(),
    }


def binary_log_loss(actual: Array, probabilities: Array) -> float:
    """Mean negative log-likelihood of (n, K) yes and no, each label by itself."""
    kept = np.clip(probabilities, TINY, 1 - TINY)
    return float(-(actual * np.log(kept) + (1 - actual) * np.log(1 - kept)).mean())


def multilabel(actual: Array, probabilities: Array) -> dict[str, float | None]:
    """exact_match (all labels of a row right), accuracy (of single answers), f1_micro, f1_macro, log_loss and
    roc_auc (mean over labels; None when undefined), of (n, K) labels at a threshold of one half."""
    predicted = probabilities >= 0.5
    truth = actual > 0.5
    hits = (predicted & truth).sum(0).astype(np.float64)
    f1 = _ratio(2 * hits, truth.sum(0) + predicted.sum(0))
    present = truth.any(0) | predicted.any(0)
    areas = [roc_auc(truth[:, each], probabilities[:, each]) for each in range(truth.shape[1])]
    defined = [area for area in areas if area is not None]
    total = float(truth.sum() + predicted.sum())
    return {
        "exact_match": float((predicted == truth).all(1).mean()),
        "accuracy": float((predicted == truth).mean()),
        "f1_micro": float(2 * hits.sum() / total) if total else 0.0,
        "f1_macro": float(f1[present].mean()) if present.any() else 0.0,
        "log_loss": binary_log_loss(actual, probabilities),
        "roc_auc": float(np.mean(defined)) if defined else None,
    }


def regressions(actual: Array, predicted: Array, names: tuple[str, ...]) -> dict[str, float | None]:
    """rmse, mae and r2 as means over (n, K) targets, and each target's own as ``rmse/name`` and so on."""
    each = [regression(actual[:, column], predicted[:, column]) for column in range(actual.shape[1])]
    result: dict[str, float | None] = {}
    for measure in ("rmse", "mae", "r2"):
        known = [value for one in each if (value := one[measure]) is not None]
        result[measure] = float(np.mean(known)) if known else None
    for name, one in zip(names, each, strict=True):
        result |= {f"{measure}/{name[:100]}": value for measure, value in one.items()}
    return result
