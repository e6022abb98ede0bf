"""The rows that an optimisation learns from and is judged by: those that trained and those that were held out, again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from dlplatform.engine.config import ConfigError, TrainingConfig, parse_config
from dlplatform.engine.dataset import MINIMUM_ROWS, Dataset
from dlplatform.engine.defaults import Size, resolve
from dlplatform.engine.errors import EngineError
from dlplatform.engine.image_arrays import Source
from dlplatform.engine.preprocessing import Inputs, Preprocessor
from dlplatform.engine.runners import Array, Runner
from dlplatform.engine.schema import Column
from dlplatform.engine.split import Split, split_rows
from dlplatform.engine.table import Table
from dlplatform.engine.target import Target, code_like, rows_with_target

MOST_TRAIN: Final = 20_000
MOST_HELD_OUT: Final = 5_000
CALIBRATION_ROWS: Final = 512


def targets_of(description: dict[str, Any], types: dict[str, str]) -> tuple[Column, ...]:
    """The target columns of a model in data with such types. Raises EngineError ``target_missing``."""
    names = description.get("targets") or [description.get("target")]
    for name in names:
        if name not in types:
            raise EngineError(
                "target_missing", f"The data have no column {str(name)[:80]!r}, which the model predicts."
            )
    return tuple(Column(name, types[name]) for name in names)


def split_again(
    description: dict[str, Any],
    preprocessor: Preprocessor,
    table: Table,
    targets: tuple[Column, ...],
    source: Source,
    beat: Callable[[], None] = lambda: None,
) -> Dataset:
    """The rows divided as the run divided them, which the model's settings and the order of the rows decide; an even
    choice of so many as are needed, encoded.

    Raises EngineError: too_few_rows, target_missing, bad_data, bad_config.
    """
    kept = rows_with_target(table, targets)
    if len(kept) < MINIMUM_ROWS:
        raise EngineError("too_few_rows", f"Only {len(kept)} rows have a target; at least {MINIMUM_ROWS} are needed.")
    table = table.take(kept)
    target = code_like(description, targets, table)
    if target.kind != "number" and list(target.classes) != [str(each) for each in description["output"]["classes"]]:
        raise EngineError("bad_data", "The data have classes that the model does not know.", "Choose other rows.")
    config = _config(description, target)
    assert isinstance(config.folds, int)
    assert isinstance(config.validation_fraction, float)
    split = split_rows(target.strata(), config.folds, config.validation_fraction, config.seed)
    chosen, split = _fewer(split)
    table, target = table.take(chosen), replace(target, values=target.values[chosen])
    inputs = preprocessor.transform(table, beat, source)
    return Dataset(str(description["task"]), table, kept[chosen], target, split, preprocessor, inputs, config)


def _config(description: dict[str, Any], target: Target) -> TrainingConfig:
    """The run's settings; what an uploaded model does not tell is as a run would settle it."""
    task, shape = str(description["task"]), description["architecture"]
    try:
        told = parse_config(description.get("config") or {}, task)
    except ConfigError as error:
        raise EngineError("bad_config", f"The model's settings cannot be read: {error}") from error
    rows, groups = len(target.values), int(shape["groups"])
    smallest = int(np.bincount(target.values).min()) if target.is_class else rows
    types = [column["type"] for column in description["inputs"]]
    size = Size(rows, smallest, len(types), images=types.count("image"), texts=types.count("text"))
    config = resolve(told, task, size)
    assert isinstance(config.validation_fraction, float)
    fraction = config.validation_fraction if groups == 1 else 1 / groups
    return replace(config, folds=groups, validation_fraction=fraction)


def _fewer(split: Split) -> tuple[Array, Split]:
    """Positions of the rows that are taken, and the split among them."""
    if split.groups > 1:
        chosen = _even(np.sort(np.concatenate(split.validation)), MOST_TRAIN)
    else:
        parts = (_even(split.train[0], MOST_TRAIN), _even(split.validation[0], MOST_HELD_OUT))
        chosen = np.sort(np.concatenate(parts))

    def within(parts: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(np.flatnonzero(np.isin(chosen, part)) for part in parts)

    return chosen, Split(train=within(split.train), validation=within(split.validation))


def _even(positions: Array, most: int) -> Array:
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).astype(np.int64)]


def inputs_at(inputs: Inputs, rows: Array) -> Inputs:
    """Some encoded rows alone."""
    return Inputs(
        inputs.numbers[rows], inputs.categories[rows], inputs.tokens[rows], inputs.sequences[rows], inputs.images[rows]
    )


def calibration(dataset: Dataset) -> Inputs:
    """Training rows of every class, or of the whole range of the target, alike."""
    train = dataset.split.train[0]
    order = train[np.argsort(dataset.target.strata()[train], kind="stable")]
    return inputs_at(dataset.inputs, _even(order, CALIBRATION_ROWS))


def held_out(dataset: Dataset) -> Array:
    """Positions of the rows that are judged by, group after group."""
    return np.concatenate(dataset.split.validation)


def held_out_answers(run: Runner, dataset: Dataset) -> Array:
    """(n, K): each held-out row by the group that never saw it, in the order of `held_out`."""
    answers = run(inputs_at(dataset.inputs, held_out(dataset)))
    edges = np.cumsum([0, *(len(part) for part in dataset.split.validation)])
    return np.concatenate([answers[group, edges[group] : edges[group + 1]] for group in range(len(answers))])


def actual(dataset: Dataset) -> Array:
    """(n,) or (n, K): what is true of them."""
    return dataset.target.values[held_out(dataset)]
