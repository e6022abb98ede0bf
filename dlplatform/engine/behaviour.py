"""How two models answer the same rows: where they agree, which rows flipped, which slices got better or worse."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlplatform.engine.schema import STRING_LIKE, Column
from dlplatform.engine.table import Table, missing
from dlplatform.engine.target import json_value, label_of

Array = np.ndarray[Any, Any]

EXAMPLES: Final = 20
SLICES: Final = 20
LEAST_ROWS: Final = 10  # of a slice that is reported
QUANTILES: Final = 4
FREQUENT: Final = 12  # values of a category that become slices
MOST_CLASSES: Final = 30  # of the table of answers


@dataclass(frozen=True)
class Answers:
    """What one model says to n rows: (n,) class codes or numbers, and (n,) the loss on each row.

    The loss of a class is 0 for right and 1 for wrong; of a number its absolute error. NaN without a label.
    """

    values: Array
    losses: Array


def labels_of(column: Column, values: Any, classes: list[str]) -> Array:
    """(n,) codes of the labels of a target column in ``classes``; NaN where missing or not among them."""
    codes = {name: float(code) for code, name in enumerate(classes)}
    if column.type in STRING_LIKE:
        names = values.to_pylist()
    else:
        names = [None if np.isnan(value) else label_of(json_value(column.type, value)) for value in values.tolist()]
    return np.array([codes.get(name, np.nan) for name in names], np.float64)


def compare_behaviour(table: Table, base: Answers, head: Answers, classes: list[str] | None) -> dict[str, Any]:
    """JSON of the comparison on the rows of ``table`` (inputs and target).

    Keys: rows, labelled, agreement; for classes ``confusion`` {classes, counts[base][head]}, for numbers
    ``difference`` {mean, mean_absolute, largest}; loss {base, head}; flipped {to_right, to_wrong} as
    {count, examples}; slices {better, worse}: [{column, value, rows, base, head}] of mean losses.
    """
    labelled = ~np.isnan(base.losses) & ~np.isnan(head.losses)
    result: dict[str, Any] = {"rows": table.rows, "labelled": int(labelled.sum())}
    result |= _classes(base, head, classes) if classes is not None else _numbers(base, head)
    if labelled.any():
        result["loss"] = {"base": _mean(base.losses[labelled]), "head": _mean(head.losses[labelled])}
        result["flipped"] = _flipped(table, base, head, labelled, classes)
        result["slices"] = _slices(table, base.losses, head.losses, labelled)
    return result


def _mean(values: Array) -> float:
    return float(values.mean())


def _classes(base: Answers, head: Answers, classes: list[str]) -> dict[str, Any]:
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (base.values.astype(np.int64), head.values.astype(np.int64)), 1)
    moved = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-moved, kind="stable")[:MOST_CLASSES])
    return {
        "agreement": float(counts.trace() / max(counts.sum(), 1)),
        "confusion": {"classes": [classes[code] for code in shown], "counts": counts[np.ix_(shown, shown)].tolist()},
    }


def _numbers(base: Answers, head: Answers) -> dict[str, Any]:
    change = head.values - base.values
    largest = int(np.abs(change).argmax()) if len(change) else 0
    return {
        "agreement": float(np.isclose(change, 0.0).mean()) if len(change) else 1.0,
        "difference": {
            "mean": _mean(change) if len(change) else 0.0,
            "mean_absolute": _mean(np.abs(change)) if len(change) else 0.0,
            "largest": float(change[largest]) if len(change) else 0.0,
        },
    }


def _flipped(table: Table, base: Answers, head: Answers, labelled: Array, classes: list[str] | None) -> dict[str, Any]:
    """The rows whose loss fell and rose, those that moved most first."""
    gain = np.where(labelled, base.losses - head.losses, 0.0)
    found = {}
    for name, signed in (("to_right", gain), ("to_wrong", -gain)):
        rows = np.flatnonzero(signed > 0)
        ordered = rows[np.argsort(-signed[rows], kind="stable")][:EXAMPLES]
        found[name] = {
            "count": len(rows),
            "examples": [_example(table, int(row), base, head, classes) for row in ordered],
        }
    return found


def _example(table: Table, row: int, base: Answers, head: Answers, classes: list[str] | None) -> dict[str, Any]:
    def answer(value: float) -> Any:
        return classes[int(value)] if classes is not None else float(value)

    return {
        "row": row + 1,
        "values": {name: _plain(values, row) for name, values in table.columns.items()},
        "base": answer(base.values[row]),
        "head": answer(head.values[row]),
    }


def _plain(values: Any, row: int) -> Any:
    if isinstance(values, np.ndarray):
        return None if np.isnan(values[row]) else float(values[row])
    return values[row].as_py()


def _slices(table: Table, base: Array, head: Array, labelled: Array) -> dict[str, Any]:
    """The slices whose mean loss changed most, weighed by the square root of their size: a t-like ranking."""
    rows = []
    for name, values in table.columns.items():
        for label, inside in _parts(values):
            chosen = inside & labelled
            count = int(chosen.sum())
            if count >= LEAST_ROWS:
                before, after = _mean(base[chosen]), _mean(head[chosen])
                rows.append({"column": name, "value": label, "rows": count, "base": before, "head": after})

    def weight(row: dict[str, Any]) -> float:
        return float((row["head"] - row["base"]) * np.sqrt(row["rows"]))

    rows.sort(key=weight)
    return {
        "better": [row for row in rows if weight(row) < 0][:SLICES],
        "worse": [row for row in reversed(rows) if weight(row) > 0][:SLICES],
    }


def _parts(values: Any) -> list[tuple[str, Array]]:
    """(label, rows) of a column's slices: its frequent values, or quarters of its numbers; missing ones apart."""
    absent = missing(values)
    found = [("missing", absent)] if absent.any() else []
    if isinstance(values, np.ndarray):
        return found + _quarters(values, ~absent)
    counts = pc.value_counts(values).to_pylist()
    frequent = sorted((one for one in counts if one["values"] is not None), key=lambda one: -one["counts"])[:FREQUENT]
    return found + [
        (str(one["values"])[:80], pc.fill_null(pc.equal(values, pa.scalar(one["values"])), False).to_numpy(False))
        for one in frequent
    ]


def _quarters(values: Array, present: Array) -> list[tuple[str, Array]]:
    if not present.any():
        return []
    distinct = np.unique(values[present])
    if len(distinct) <= FREQUENT:
        return [(f"{value:g}", present & (values == value)) for value in distinct]
    edges = np.unique(np.quantile(values[present], np.linspace(0, 1, QUANTILES + 1)))
    parts = []
    for low, high in itertools.pairwise(edges):
        inside = present & (values >= low) & ((values <= high) if high == edges[-1] else (values < high))
        parts.append((f"{low:.4g} to {high:.4g}", inside))
    return parts
