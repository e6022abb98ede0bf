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
