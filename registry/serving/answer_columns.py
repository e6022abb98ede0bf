"""Predictions as columns of a table."""

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

MOST_CLASSES = 50  # of more, only the predicted one's probability becomes a column


def with_answers(rows: pa.Table, answers: Sequence[dict[str, Any]]) -> pa.Table:
    """The table with a column for every part of the answers, in names that are still free.

    A class: `predicted`, `probability`, and `probability of …` of each class. Several labels: `predicted`, joined by
    semicolons, and the probabilities. A number: `predicted`. Several numbers: `predicted …` of each target. A text:
    `predicted`.
    """
    for name, values in _columns(answers).items():
        rows = rows.append_column(_free(name, rows.column_names), pa.array(values))
    return rows


def _columns(answers: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    kinds = answers[0].keys() if answers else set()
    if "label" in kinds:
        sure = [one["probabilities"][one["label"]] for one in answers]
        return {"predicted": [one["label"] for one in answers], "probability": sure} | _probabilities(answers)
    if "labels" in kinds:
        return {"predicted": ["; ".join(map(str, one["labels"])) for one in answers]} | _probabilities(answers)
    if "values" in kinds:
        return {f"predicted {name}": [one["values"][name] for one in answers] for name in answers[0]["values"]}
    return {"predicted": [one.get("value", one.get("text")) for one in answers]}


def _probabilities(answers: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    classes = list(answers[0]["probabilities"])
    if len(classes) > MOST_CLASSES:
        return {}
    return {f"probability of {name}": [one["probabilities"][name] for one in answers] for name in classes}


def _free(name: str, taken: Collection[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free
