"""The rows of a run: target checked and coded, features encoded, parts split, tensors on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.defaults import Size, resolve
from dlplatform.engine.errors import EngineError
from dlplatform.engine.job import JobSpec
from dlplatform.engine.network import Batch
from dlplatform.engine.preprocessing import Inputs, Preprocessor, fit_preprocessor
from dlplatform.engine.schema import STRING_LIKE, Column
from dlplatform.engine.split import Split, split_rows
from dlplatform.engine.table import Table, missing

MINIMUM_ROWS: Final = 8
MAXIMUM_CLASSES: Final = 1000


@dataclass(frozen=True)
class Target:
    """The coded target: ``values`` (n,) class codes, or numbers in ``(y - offset) / unit``.

    ``classes`` are the labels as strings and ``natural`` the same as JSON values; both empty for
    regression.
    """

    values: np.ndarray[Any, Any]
    classes: tuple[str, ...] = ()
    natural: tuple[Any, ...] = ()
    offset: float = 0.0
    unit: float = 1.0

    @property
    def outputs(self) -> int:
        """Network outputs it takes."""
        return len(self.classes) or 1


@dataclass(frozen=True)
class Dataset:
    """Everything `dlplatform.engine.training` needs. ``kept`` are positions of the rows in the files."""

    task: str
    table: Table
    kept: np.ndarray[Any, Any]
    target: Target
    split: Split
    preprocessor: Preprocessor
    inputs: Inputs
    config: TrainingConfig


def prepare(spec: JobSpec, table: Table, log: Callable[[str, str], None], beat: Callable[[], None]) -> Dataset:
    """Drop rows without a target, settle the "auto" settings, split, fit and encode.

    Raises EngineError: too_few_rows, single_class, target_missing, bad_data.
    """
    kept = np.flatnonzero(~missing(table.columns[spec.target.name]))
    if len(kept) < table.rows:
        log(
            "warning",
            f"{table.rows - len(kept)} rows have no value in {spec.target.name!r} and were left out.",
        )
        table = table.take(kept)
    _check_rows(table.rows, spec.target.name)
    beat()
    target = _code_target(spec, table)
    config = resolve(spec.config, spec.task, _size(target, len(spec.features)))
    assert isinstance(config.folds, int)
    assert isinstance(config.validation_fraction, float)
    split = split_rows(target.values, config.folds, config.validation_fraction, config.seed)
    fit_rows = table if split.groups > 1 else table.take(split.train[0])
    preprocessor = fit_preprocessor(fit_rows, spec.features)
    inputs = preprocessor.transform(table, beat)
    return Dataset(spec.task, table, kept, target, split, preprocessor, inputs, config)


def _check_rows(rows: int, target: str) -> None:
    if not rows:
        raise EngineError("target_missing", f"The target column {target!r} holds no values.")
    if rows < MINIMUM_ROWS:
        raise EngineError("too_few_rows", f"Only {rows} rows have a target; at least {MINIMUM_ROWS} are needed.")


def _size(target: Target, inputs: int) -> Size:
    rows = len(target.values)
    smallest = int(np.bincount(target.values).min()) if target.classes else rows
    return Size(rows, smallest, inputs)


def _code_target(spec: JobSpec, table: Table) -> Target:
    column, values = spec.target, table.columns[spec.target.name]
    if column.type == "datetime":
        fix = "Choose another target, or turn it into a number or a category first."
        raise EngineError("bad_data", f"The target {column.name!r} is a datetime, which cannot be predicted.", fix)
    if spec.task == "classification":
        return _code_classes(column, values)
    if column.type in STRING_LIKE:
        fix = "Use classification, or choose a numeric target."
        raise EngineError("bad_data", f"The target {column.name!r} holds {column.type} values, not numbers.", fix)
    numbers = np.asarray(values, np.float64)
    offset = float(np.median(numbers))
    unit = float(np.max(np.abs(numbers - offset))) or 1.0
    return Target((numbers - offset) / unit, offset=offset, unit=unit)


def _code_classes(column: Column, values: Any) -> Target:
    if column.type in STRING_LIKE:
        natural: list[Any] = sorted(pc.unique(values).to_pylist())
        codes = pc.index_in(values, value_set=pa.array(natural)).to_numpy(zero_copy_only=False)
    else:
        distinct, codes = np.unique(values, return_inverse=True)
        natural = [json_value(column.type, value) for value in distinct.tolist()]
    if len(natural) < 2:
        raise EngineError("single_class", f"The target {column.name!r} holds one class only: {natural[0]!r}.")
    if len(natural) > MAXIMUM_CLASSES:
        fix = "Use regression for a numeric target, or group rare values."
        sentence = f"The target {column.name!r} has {len(natural)} classes; {MAXIMUM_CLASSES} are possible."
        raise EngineError("bad_data", sentence, fix)
    return Target(codes.astype(np.int64), tuple(label_of(value) for value in natural), tuple(natural))


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


@dataclass(frozen=True)
class Tensors:
    """Encoded rows on the device, gathered by position."""

    numbers: Tensor
    categories: Tensor
    tokens: Tensor
    target: Tensor

    def batch(self, rows: Tensor) -> Batch:
        """Rows (G, B) of positions → Batch."""
        return Batch(self.numbers[rows], self.categories[rows], self.tokens[rows])


def to_tensors(inputs: Inputs, target: np.ndarray[Any, Any], device: torch.device) -> Tensors:
    """Arrays to tensors; a class target is int64, a number float32."""
    kind = np.int64 if target.dtype.kind == "i" else np.float32
    arrays = (inputs.numbers, inputs.categories, inputs.tokens, target.astype(kind))
    return Tensors(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
