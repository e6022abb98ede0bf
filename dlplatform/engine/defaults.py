"""Settings chosen from the size of the data, so that nothing needs tuning. Torch-free.

The rules depend on the number of rows and inputs alone: small data gets a cross-fitted ensemble of small
networks, small batches and many epochs; large data gets one held-out part, larger networks and batches,
and few epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from dlplatform.engine.config import TrainingConfig

SMALL_ROWS = 1000
CROSS_FIT_ROWS = 10_000
LARGE_ROWS = 50_000


@dataclass(frozen=True)
class Size:
    """What the defaults depend on: rows with a target, rows of the rarest class, numeric inputs."""

    rows: int
    smallest_class: int
    inputs: int


def resolve(config: TrainingConfig, task: str, size: Size) -> TrainingConfig:
    """Replace every "auto" by a value."""
    params = {**_default_params(config.architecture, size), **_set_only(config.params)}
    folds = _folds(config, size)
    epochs: int = _or(config.epochs, _epochs(size.rows))
    return replace(
        config,
        params={**params, **_members(params, folds)},
        folds=folds,
        epochs=epochs,
        batch_size=_or(config.batch_size, _batch_size(size.rows)),
        learning_rate=_or(config.learning_rate, _learning_rate(config.architecture, size.rows)),
        weight_decay=_or(config.weight_decay, 0.01),
        validation_fraction=_or(config.validation_fraction, 1 / folds if folds > 1 else 0.15),
        early_stopping=_or(config.early_stopping, max(8, min(30, math.ceil(epochs / 4)))),
        label_smoothing=_or(config.label_smoothing, 0.0),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value == "auto" else value


def _set_only(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value != "auto"}


def _folds(config: TrainingConfig, size: Size) -> int:
    """Cross-fitting folds; a fold keeps at least one row."""
    if config.folds != "auto":
        folds: int = config.folds
        return min(folds, max(1, size.rows // 2))
    if size.rows > CROSS_FIT_ROWS:
        return 1
    if config.validation_fraction != "auto":
        fraction: float = config.validation_fraction
        return max(2, min(16, round(1 / fraction)))
    return 8 if size.rows >= 64 else 4


def _epochs(rows: int) -> int:
    """From 150 on the smallest data to 20 on large data."""
    return max(20, min(150, 60_000 // max(rows, 1)))


def _batch_size(rows: int) -> int:
    """A power of two near rows / 32, from 32 to 1024."""
    return int(2 ** round(math.log2(min(1024, max(32, rows / 32)))))


def _learning_rate(architecture: str, rows: int) -> float:
    """Few rows overfit before a fast learner can be stopped."""
    if architecture == "linear":
        return 0.01
    return 0.001 if rows < SMALL_ROWS else 0.002


def _default_params(architecture: str, size: Size) -> dict[str, Any]:
    if architecture == "linear":
        return {}
    width = 64 if size.rows < SMALL_ROWS else 128 if size.rows < CROSS_FIT_ROWS else 256
    shared = {"layers": 2, "width": width, "dropout": 0.1}
    if architecture == "mlp":
        return shared
    members = 16 if size.rows < LARGE_ROWS else 8
    return {"members": members, **shared, "bins": max(4, min(32, size.rows // 32)), "embedding_size": 8}


def _members(params: dict[str, Any], folds: int) -> dict[str, int]:
    """The ensemble in whole groups: at least one member for each fold."""
    if "members" not in params:
        return {}
    return {"members": folds * max(1, math.ceil(params["members"] / folds))}
