"""The rows of a run: target coded, features encoded, parts split, tensors on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.defaults import Size, resolve
from dlplatform.engine.errors import EngineError
from dlplatform.engine.fields import CODE
from dlplatform.engine.image_arrays import Source
from dlplatform.engine.job import JobSpec
from dlplatform.engine.network import Batch, InputEncoder, RowNetwork
from dlplatform.engine.preprocessing import Inputs, Preprocessor, fit_preprocessor
from dlplatform.engine.schema import reads
from dlplatform.engine.split import Split, split_rows
from dlplatform.engine.table import Table
from dlplatform.engine.target import Target, code_like, code_target, rows_with_target
from dlplatform.engine.tokens import Tokenizer
from dlplatform.engine.transformers_pixels import ImageProcessor

MINIMUM_ROWS: Final = 8
NORMALISED_BYTES: Final = 1 << 28
# Times the rate of a network that starts from nothing: small steps where all of a base trains, larger ones where only small
# matrices beside its own do (measured by benchmarks.transfer_learning).
FULL_RATE: Final = 0.3
ADAPTERS_RATE: Final = 3.0


@dataclass(frozen=True)
class Base:
    """The model that a run starts from: its description and its fitted preprocessing."""

    description: dict[str, Any]
    preprocessor: Preprocessor


@dataclass(frozen=True)
class Dataset:
    """Everything that learning from rows needs. ``kept`` are positions of the rows in the files."""

    task: str
    table: Table
    kept: np.ndarray[Any, Any]
    target: Target
    split: Split
    preprocessor: Preprocessor
    inputs: Inputs
    config: TrainingConfig


def prepare(
    spec: JobSpec,
    table: Table,
    log: Callable[[str, str], None],
    beat: Callable[[], None],
    source: Source = bytes,
    tokenizer: Tokenizer | None = None,
    base: Base | None = None,
    images: ImageProcessor | None = None,
) -> Dataset:
    """Drop rows without a target, settle the "auto" settings, split, fit and encode.

    ``source`` reads images; ``tokenizer`` is one that an earlier attempt fitted, or a pretrained one; ``images``: how a
    pretrained model wants them. Raises EngineError:
    too_few_rows, single_class, target_missing, bad_data.
    """
    if base is not None:
        _check_columns(base, spec)
    kept = rows_with_target(table, spec.targets)
    if len(kept) < table.rows:
        log("warning", f"{table.rows - len(kept)} rows have no value in {spec.target_name!r} and were left out.")
        table = table.take(kept)
    _check_rows(table.rows, spec.target_name)
    beat()
    if base is None:
        target = code_target(spec.task, spec.targets, table)
    else:
        target = code_like(base.description, spec.targets, table)
    config = resolve(spec.config, spec.task, _size(target, spec))
    if base is not None:
        config = _fitted_to(base, config, spec)
    assert isinstance(config.folds, int)
    assert isinstance(config.validation_fraction, float)
    split = split_rows(target.strata(), config.folds, config.validation_fraction, config.seed)
    if base is None:
        fit_rows = table if split.groups > 1 else table.take(split.train[0])
        preprocessor = fit_preprocessor(fit_rows, spec.features, config, source, tokenizer, images)
    else:
        preprocessor = base.preprocessor
    inputs = preprocessor.transform(table, beat, source)
    return Dataset(spec.task, table, kept, target, split, preprocessor, inputs, config)


def _check_columns(base: Base, spec: JobSpec) -> None:
    """The base reads the columns that it was trained on, and no others."""
    types = {column.name: column.type for column in spec.features}
    for column in base.description["inputs"]:
        name, type_ = column["name"], column["type"]
        if name not in types or not reads(type_, types[name]):
            found = f"is of the type {types[name]}" if name in types else "is not among the features"
            fix = f"Give the data a column {name!r} of the type {type_}."
            raise EngineError("bad_data", f"The base model reads the column {name!r}, which {found}.", fix)


def _fitted_to(base: Base, config: TrainingConfig, spec: JobSpec) -> TrainingConfig:
    """What the base fixes is not for the settings to say."""
    shape = base.description["architecture"]
    assert isinstance(config.learning_rate, float)
    return replace(
        config,
        architecture=shape["architecture"],
        params=base.description["config"]["params"] if shape["architecture"] == CODE else config.params,
        folds=int(shape["groups"]),
        validation_fraction=config.validation_fraction if shape["groups"] == 1 else 1 / int(shape["groups"]),
        learning_rate=config.learning_rate * _share_of_rate(spec, shape),
    )


def _share_of_rate(spec: JobSpec, shape: dict[str, Any]) -> float:
    """Adapters of transformers architectures have a rate of their own beside the rest (`finetuning.ADAPTER_RATE`)."""
    if spec.finetune is None or spec.config.learning_rate != "auto":
        return 1.0
    if spec.finetune.mode == "lora" and not (shape.get("transformer") or shape.get("image_transformer")):
        return ADAPTERS_RATE
    return FULL_RATE if spec.finetune.mode == "full" else 1.0


def _check_rows(rows: int, target: str) -> None:
    if not rows:
        raise EngineError("target_missing", f"The target column {target!r} holds no values.")
    if rows < MINIMUM_ROWS:
        raise EngineError("too_few_rows", f"Only {rows} rows have a target; at least {MINIMUM_ROWS} are needed.")


def _size(target: Target, spec: JobSpec) -> Size:
    rows = max(len(target.values), spec.rows)
    smallest = int(np.bincount(target.values).min()) if target.is_class else rows
    types = [column.type for column in spec.features]
    return Size(rows, smallest, len(types), images=types.count("image"), texts=types.count("text"))


@dataclass(frozen=True)
class Tensors:
    """Encoded rows on the device, gathered by position. Images stay in main memory and travel by batch.

    ``lengths`` (n,): tokens of the longest text of each row; None without texts that are read in order. ``normalised``
    (G, n, D): the numbers as each group's network takes them, see `normalise`; ``incomplete``: whether numbers that are
    missing matter.
    """

    numbers: Tensor
    categories: Tensor
    tokens: Tensor
    target: Tensor
    sequences: Tensor | None = None
    images: Tensor | None = None
    lengths: Tensor | None = None
    normalised: Tensor | None = None
    incomplete: bool = True

    def normalise(self, network: RowNetwork) -> Tensors:
        """The same rows with their numbers normalised once for all steps, which for a small network is a fifth of each.

        Not for somebody's own code, nor where it would take more than NORMALISED_BYTES.
        """
        encoder = network.encoder
        if type(encoder) is not InputEncoder:  # that of somebody's own code takes them as they are
            return self
        if encoder.groups * self.numbers.numel() * self.numbers.element_size() > NORMALISED_BYTES:
            return self
        incomplete = bool(encoder.sizes.indicators)
        return replace(self, normalised=encoder.normalised(self.numbers.unsqueeze(0)), incomplete=incomplete)

    def batch(self, rows: Tensor, together: Tensor | None = None) -> Batch:
        """Rows (G, B) of positions → Batch. Texts are cut to the longest among ``together`` (default: ``rows``)."""
        categories, tokens = (_at(rows, each) for each in (self.categories, self.tokens))
        return Batch(
            self._numbers(rows), categories, tokens, self._sequences(rows, together), self._images(rows),
            self._normalised(rows),
        )  # fmt: skip

    def _numbers(self, rows: Tensor) -> Tensor:
        if self.normalised is None or self.incomplete:
            return _at(rows, self.numbers)
        return self.numbers.new_empty((*rows.shape, 0))  # nobody looks at them

    def _normalised(self, rows: Tensor) -> Tensor | None:
        if self.normalised is None:
            return None
        if len(self.normalised) == 1:
            return _at(rows, self.normalised[0])
        return self.normalised[torch.arange(len(rows), device=rows.device).unsqueeze(1), rows]

    def at(self, rows: Tensor) -> Tensors:
        """The given rows (n,) alone."""

        def taken(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows.to(values.device)]

        whole = (self.numbers[rows], self.categories[rows], self.tokens[rows], self.target[rows])
        return Tensors(*whole, taken(self.sequences), taken(self.images), taken(self.lengths))

    def _sequences(self, rows: Tensor, together: Tensor | None) -> Tensor | None:
        if self.sequences is None or self.lengths is None:
            return None
        longest = int(self.lengths[(rows if together is None else together).cpu()].max())
        return self.sequences[rows][..., : max(longest, 1)]

    def _images(self, rows: Tensor) -> Tensor | None:
        if self.images is None:
            return None
        return self.images[rows.to(self.images.device)].to(self.numbers.device, non_blocking=True)


def batches(inputs: Inputs, groups: int, rows: int) -> Iterator[Batch]:
    """All rows for every group, ``rows`` at a time, as views of the arrays."""
    for begin in range(0, max(len(inputs.numbers), 1), rows):
        yield _shared(inputs, groups, slice(begin, begin + rows))


def _shared(inputs: Inputs, groups: int, rows: slice) -> Batch:
    def expanded(values: np.ndarray[Any, Any]) -> Tensor:
        tensor = torch.from_numpy(values[rows])
        return tensor.expand(groups, *tensor.shape)

    def where_any(values: np.ndarray[Any, Any]) -> Any:
        return expanded(values) if values.shape[1] else None

    sequences = inputs.sequences
    if sequences.shape[1]:
        sequences = sequences[..., : max(int((sequences[rows] > 0).sum(-1).max()), 1)]
    numbers, categories, tokens = map(expanded, (inputs.numbers, inputs.categories, inputs.tokens))
    return Batch(numbers, categories, tokens, where_any(sequences), where_any(inputs.images))


def _at(rows: Tensor, values: Tensor) -> Tensor:
    """``values[rows]``; where there is no column, looking it up would cost more than a small layer."""
    return values[rows] if values.shape[1] else values.new_empty((*rows.shape, *values.shape[1:]))


def to_tensors(inputs: Inputs, target: np.ndarray[Any, Any], device: torch.device) -> Tensors:
    """Arrays to tensors; a class target is int64, a number float32."""
    kind = np.int64 if target.dtype.kind == "i" else np.float32
    arrays = (inputs.numbers, inputs.categories, inputs.tokens, target.astype(kind))
    tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
    sequences = images = lengths = None
    if inputs.sequences.shape[1]:
        sequences = torch.from_numpy(inputs.sequences).to(device)
        lengths = torch.from_numpy((inputs.sequences > 0).sum(-1).max(-1))
    if inputs.images.shape[1]:
        images = torch.from_numpy(inputs.images)
    numbers, categories, tokens, coded = tensors
    return Tensors(numbers, categories, tokens, coded, sequences, images, lengths)
