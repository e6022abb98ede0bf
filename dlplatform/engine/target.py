"""The target of a run: checked, and coded as the numbers that are learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlplatform.engine.errors import EngineError
from dlplatform.engine.schema import STRING_LIKE, Column
from dlplatform.engine.table import Table, missing

MAXIMUM_CLASSES: Final = 1000
SEPARATORS: Final = ("|", ";", ",")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Target:
    """The coded target.

    ``kind``: class (``values`` (n,) codes), number ((n,) in ``(y - offset) / unit``), numbers ((n, K) likewise, with
    ``offsets`` and ``units``), or labels ((n, K) of 0 and 1). ``classes`` are the labels as strings (the names of
    the columns for numbers) and ``natural`` the same as JSON values.
    """

    kind: str
    values: Array
    classes: tuple[str, ...] = ()
    natural: tuple[Any, ...] = ()
    offset: float = 0.0
    unit: float = 1.0
    offsets: tuple[float, ...] = ()
    units: tuple[float, ...] = ()
    separator: str = ""

    @property
    def outputs(self) -> int:
        """Network outputs it takes."""
        return 1 if self.kind == "number" else len(self.classes)

    @property
    def is_class(self) -> bool:
        return self.kind == "class"

    def strata(self) -> Array:
        """(n,) values by which a split is stratified."""
        if self.kind == "labels":
            # Label sets in a fixed order, those of few rows beside their like.
            order: Array = np.unique(self.values, axis=0, return_inverse=True)[1].reshape(-1)
            return order
        combined: Array = self.values if self.values.ndim == 1 else self.values.mean(1)
        return combined

    def original(self, values: Array) -> Array:
        """Numbers (n,) or (n, K) back in the units of the data."""
        if self.kind == "number":
            return values * self.unit + self.offset
        several: Array = values * np.array(self.units) + np.array(self.offsets)
        return several


def rows_with_target(table: Table, targets: tuple[Column, ...]) -> Array:
    """Positions of the rows in which every target column has a value."""
    absent = np.zeros(table.rows, np.bool_)
    for column in targets:
        absent |= missing(table.columns[column.name])
    return np.flatnonzero(~absent)


def code_target(task: str, targets: tuple[Column, ...], table: Table) -> Target:
    """Code the target columns of rows that all have values.

    Raises EngineError: single_class, bad_data.
    """
    for column in targets:
        if column.type in ("datetime", "image"):
            fix = "Choose another target, or turn it into a number or a category first."
            sentence = f"The target {column.name!r} is of the type {column.type}, which cannot be predicted."
            raise EngineError("bad_data", sentence, fix)
    if task == "classification":
        return _code_class(targets[0], table.columns[targets[0].name])
    if task == "multilabel":
        return _code_labels(targets, table)
    coded = [_code_number(column, table.columns[column.name]) for column in targets]
    if len(coded) == 1:
        return coded[0]
    return Target(
        "numbers",
        np.stack([each.values for each in coded], axis=1),
        tuple(column.name for column in targets),
        tuple(column.name for column in targets),
        offsets=tuple(each.offset for each in coded),
        units=tuple(each.unit for each in coded),
    )


def code_like(description: dict[str, Any], targets: tuple[Column, ...], table: Table) -> Target:
    """Code the target as the model that the description is of codes it, classes in its order and new ones behind.

    Raises EngineError ``bad_data`` when the data do not fit that model.
    """
    output, task = description["output"], str(description["task"])
    fresh = code_target(task, targets, table)
    if output["kind"] != fresh.kind:
        raise EngineError("bad_data", "The target of these data is of another kind than the base model's.")
    if fresh.kind == "number":
        offset, unit = float(output["offset"]), float(output["unit"])
        values = (fresh.values * fresh.unit + fresh.offset - offset) / unit
        return Target("number", values, offset=offset, unit=unit)
    if fresh.kind == "numbers":
        if list(fresh.classes) != list(output["classes"]):
            raise EngineError("bad_data", f"The base model predicts {', '.join(output['classes'])}, in this order.")
        offsets, units = tuple(map(float, output["offset"])), tuple(map(float, output["unit"]))
        values = (fresh.original(fresh.values) - np.array(offsets)) / np.array(units)
        return Target("numbers", values, fresh.classes, fresh.natural, offsets=offsets, units=units)
    return _reordered(fresh, output)


def _reordered(fresh: Target, output: dict[str, Any]) -> Target:
    """Known classes at the places that they had, new ones after them."""
    known = [str(name) for name in output["classes"]]
    added = [name for name in fresh.classes if name not in set(known)]
    classes = [*known, *added]
    natural_of = dict(zip(known, output.get("values", known), strict=True))
    natural = [natural_of[name] if name in natural_of else fresh.natural[fresh.classes.index(name)] for name in classes]
    places = np.array([classes.index(name) for name in fresh.classes])
    if fresh.kind == "class":
        values = places[fresh.values]
    else:
        values = np.zeros((len(fresh.values), len(classes)), fresh.values.dtype)
        values[:, places] = fresh.values
    return Target(fresh.kind, values, tuple(classes), tuple(natural), separator=fresh.separator)


def _code_number(column: Column, values: Any) -> Target:
    if column.type in STRING_LIKE:
        fix = "Use classification, or choose a numeric target."
        raise EngineError("bad_data", f"The target {column.name!r} holds {column.type} values, not numbers.", fix)
    numbers = np.asarray(values, np.float64)
    offset = float(np.median(numbers))
    unit = float(np.max(np.abs(numbers - offset))) or 1.0
    return Target("number", (numbers - offset) / unit, offset=offset, unit=unit)


def _code_class(column: Column, values: Any) -> Target:
    if column.type in STRING_LIKE:
        natural: list[Any] = sorted(pc.unique(values).to_pylist())
        codes = pc.index_in(values, value_set=pa.array(natural)).to_numpy(zero_copy_only=False)
    else:
        distinct, codes = np.unique(values, return_inverse=True)
        natural = [json_value(column.type, value) for value in distinct.tolist()]
    if len(natural) < 2:
        raise EngineError("single_class", f"The target {column.name!r} holds one class only: {natural[0]!r}.")
    _check_number_of_classes(column.name, len(natural))
    return Target("class", codes.astype(np.int64), tuple(label_of(value) for value in natural), tuple(natural))


def _check_number_of_classes(name: str, classes: int) -> None:
    if classes > MAXIMUM_CLASSES:
        fix = "Use regression for a numeric target, or group rare values."
        sentence = f"The target {name!r} has {classes} classes; {MAXIMUM_CLASSES} are possible."
        raise EngineError("bad_data", sentence, fix)


def _code_labels(targets: tuple[Column, ...], table: Table) -> Target:
    """Several columns of yes and no, or one column of texts such as ``red|round``."""
    if len(targets) == 1 and targets[0].type in STRING_LIKE:
        return _code_label_lists(targets[0], table.columns[targets[0].name].to_pylist())
    for column in targets:
        values = table.columns[column.name]
        if column.type in STRING_LIKE or not np.isin(values, (0.0, 1.0)).all():
            fix = "Choose boolean columns (or columns of 0 and 1), or one text column of labels such as red|round."
            raise EngineError("bad_data", f"The target {column.name!r} holds more than yes and no.", fix)
    names = tuple(column.name for column in targets)
    matrix = np.stack([np.asarray(table.columns[name], np.float32) for name in names], axis=1)
    return _checked_labels(Target("labels", matrix, names, names))


def _code_label_lists(column: Column, texts: list[str]) -> Target:
    separator = next((each for each in SEPARATORS if any(each in text for text in texts)), SEPARATORS[0])
    lists = [sorted({part.strip() for part in text.split(separator) if part.strip()}) for text in texts]
    classes = tuple(sorted({name for names in lists for name in names}))
    _check_number_of_classes(column.name, len(classes))
    places = {name: place for place, name in enumerate(classes)}
    matrix = np.zeros((len(lists), len(classes)), np.float32)
    for row, names in enumerate(lists):
        matrix[row, [places[name] for name in names]] = 1.0
    return _checked_labels(Target("labels", matrix, classes, classes, separator=separator))


def _checked_labels(target: Target) -> Target:
    if not len(target.classes) or (target.values == target.values[0]).all():
        raise EngineError("single_class", "Every row has the same labels; there is nothing to tell apart.")
    return target


def json_value(type_: str, value: float) -> Any:
    """A stored number as the JSON value that it stands for: a boolean, a whole number or itself."""
    if type_ == "boolean":
        return bool(value)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def label_of(value: Any) -> str:
    """A class label as a string, as JSON would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
