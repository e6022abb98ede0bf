"""A run's evaluation as the run page shows it: tiles, matrix, bars and tables ready to be drawn."""

from typing import Any

LOWER_IS_BETTER = {"loss", "log_loss", "perplexity", "rmse", "mae"}
LEVELS = 5
MATRIX_CLASSES = 25
IMPORTANT_SHOWN = 15
WORST_COLUMNS = 6


def lower_is_better(key: str) -> bool:
    return key.rsplit("/", 1)[-1] in LOWER_IS_BETTER


def tiles(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The final metrics beside what a model without inputs would reach."""
    baseline = evaluation.get("baseline", {}).get("metrics", {})
    return [_tile(name, value, baseline.get(name)) for name, value in evaluation.get("metrics", {}).items()]


def _tile(name: str, value: float | None, reference: float | None) -> dict[str, Any]:
    verdict = ""
    if value is not None and reference is not None and value != reference:
        verdict = "better" if (value < reference) == lower_is_better(name) else "worse"
    return {"name": name, "value": value, "baseline": reference, "verdict": verdict}


def matrix(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The confusion matrix with a shade by the share of its row; the first classes when there are many."""
    labels = evaluation.get("labels")
    if not labels:
        return None
    shown = min(len(labels), MATRIX_CLASSES)
    rows = []
    for label, counts in zip(labels[:shown], evaluation["confusion_matrix"][:shown], strict=True):
        total = sum(counts) or 1
        cells = [{"count": count, "share": count / total, "heat": _heat(count / total)} for count in counts[:shown]]
        rows.append({"label": label, "cells": cells})
    return {"labels": labels[:shown], "rows": rows, "left_out": len(labels) - shown}


def _heat(share: float) -> int:
    return 0 if share <= 0 else min(LEVELS, 1 + int(share * LEVELS))


def importance(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The most important columns with the length of their bars, from 0 to 100."""
    entries = [entry for entry in evaluation.get("importance", []) if entry.get("increase") is not None]
    highest = max((entry["increase"] for entry in entries), default=0.0)
    return [
        {**entry, "length": round(max(entry["increase"], 0) / highest * 100, 1) if highest > 0 else 0}
        for entry in entries[:IMPORTANT_SHOWN]
    ]


def worst(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The rows that the model gets most wrong, with the columns that matter most."""
    rows = evaluation.get("worst", [])
    if not rows:
        return {"columns": [], "rows": []}
    known = rows[0].get("values", {})
    ordered = [entry["column"] for entry in evaluation.get("importance", []) if entry["column"] in known]
    columns = (ordered or list(known))[:WORST_COLUMNS]
    return {
        "columns": columns,
        "rows": [
            {**row, "cells": [{"name": name, "value": row.get("values", {}).get(name)} for name in columns]}
            for row in rows
        ],
    }


def charts(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Pictures for `static/js/chart.js`, by their data."""
    if points := evaluation.get("points"):
        return _regression_charts(points, evaluation.get("residual_histogram"))
    if curves := evaluation.get("curves"):
        return _threshold_charts(curves)
    return []


def _regression_charts(points: dict[str, list[float]], histogram: dict[str, Any] | None) -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = [
        {"kind": "scatter", "title": "Predicted against actual", "x": "actual", "y": "predicted", "diagonal": True,
         "series": [{"name": "rows", "points": _pairs(points["actual"], points["predicted"])}]},
        {"kind": "scatter", "title": "Residual against predicted", "x": "predicted", "y": "residual",
         "series": [{"name": "rows", "points": _pairs(points["predicted"], points["residual"])}]},
    ]  # fmt: skip
    if histogram:
        drawn.append({"kind": "histogram", "title": "Residuals", "x": "residual", "y": "rows", **histogram})
    return drawn


def _threshold_charts(curves: dict[str, list[float]]) -> list[dict[str, Any]]:
    roc = [[0, 0], *_pairs(curves["false_positive_rate"], curves["true_positive_rate"])]
    return [
        {"kind": "line", "title": "ROC curve", "x": "false positive rate", "y": "true positive rate", "diagonal": True,
         "series": [{"name": "model", "points": roc}]},
        {"kind": "line", "title": "Precision and recall", "x": "recall", "y": "precision",
         "series": [{"name": "model", "points": _pairs(curves["recall"], curves["precision"])}]},
    ]  # fmt: skip


def _pairs(first: list[float], second: list[float]) -> list[list[float]]:
    return [[one, other] for one, other in zip(first, second, strict=True)]
