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
from dlplatform.engine.fields import CODE, ENCODER_PARAMS, PARAMS, PRETRAINED, SEQUENTIAL, TRANSFORMERS

SMALL_ROWS = 1000
CROSS_FIT_ROWS = 10_000
LARGE_ROWS = 50_000
SEQUENCE_ROWS = 20_000  # from here on a transformer that starts from nothing reads better than counted words


@dataclass(frozen=True)
class Size:
    """What the defaults depend on: rows with a target, rows of the rarest class, input columns, and how many of
    those are images and texts."""

    rows: int
    smallest_class: int
    inputs: int
    images: int = 0
    texts: int = 0


def resolve(config: TrainingConfig, task: str, size: Size) -> TrainingConfig:
    """Replace every "auto" by a value."""
    text_encoder = _text_encoder(config, size)
    deep = size.images + (size.texts if text_encoder in SEQUENTIAL else 0)
    architecture = _architecture(config, size, deep)
    config = replace(config, architecture=architecture, text_encoder=text_encoder)
    # A deep encoder, or a network of somebody's own, is one for all rows: nothing can be cross-fitted beside it.
    folds = 1 if deep or architecture == CODE else _folds(config, size)
    params = config.params if architecture == CODE else _params(config, size, folds)
    tuned = bool(deep) and PRETRAINED in (text_encoder, config.image_encoder)
    epochs: int = _or(config.epochs, _epochs_of(config, tuned, deep, size.rows))
    return replace(
        config,
        params=params,
        image_encoder=_or(config.image_encoder, TRANSFORMERS if config.image_model else "resnet"),
        augmentation=_or(config.augmentation, "shift"),
        folds=folds,
        epochs=epochs,
        batch_size=_or(config.batch_size, _batch_size_of(tuned, deep, size.rows)),
        learning_rate=_or(config.learning_rate, _rate_of(config, tuned, deep, size)),
        weight_decay=_or(config.weight_decay, 0.05 if deep else 0.01),
        validation_fraction=_or(config.validation_fraction, 1 / folds if folds > 1 else 0.15),
        early_stopping=_or(config.early_stopping, max(8, min(30, math.ceil(epochs / 4)))),
        label_smoothing=_or(config.label_smoothing, 0.0),
    )


def _params(config: TrainingConfig, size: Size, folds: int) -> dict[str, Any]:
    """The params of one of the engine's own architectures."""
    known = known_params(config.architecture)
    given = {name: value for name, value in _set_only(config.params).items() if name in known}
    params = {**_default_params(config.architecture, size), **_encoder_params(config, size), **given}
    return {**params, **_members(params, folds)}


def known_params(architecture: str) -> set[str]:
    """Names of the params that count for an architecture."""
    return {each.name for each in (*PARAMS[architecture], *ENCODER_PARAMS)}


def _text_encoder(config: TrainingConfig, size: Size) -> str:
    if config.text_model and config.text_encoder == "auto":
        return "transformer"
    if config.text_encoder != "auto" or not size.texts:
        return _or(config.text_encoder, "hashed")  # type: ignore[no-any-return]
    return "transformer" if size.texts == size.inputs and size.rows >= SEQUENCE_ROWS else "hashed"


def _architecture(config: TrainingConfig, size: Size, deep: int) -> str:
    if config.architecture != "auto":
        return config.architecture
    if not deep:
        return "tabm"
    return "linear" if deep == size.inputs else "mlp"


def _encoder_params(config: TrainingConfig, size: Size) -> dict[str, Any]:
    params: dict[str, Any] = {}
    if size.images and not config.image_model and config.image_encoder != PRETRAINED:
        params |= {"image_width": 16, "image_depth": 2 if config.image_encoder == "convnext" else 1}
    if size.texts and config.text_encoder == "transformer" and not config.text_model:
        params |= {"text_width": 128, "text_layers": 2 if size.rows < LARGE_ROWS else 4, "text_heads": 4}
    return params


def _epochs_of(config: TrainingConfig, tuned: bool, deep: int, rows: int) -> int:
    """``tuned``: a pretrained encoder learns on; of few images with as many epochs as a new one, each of them changed anew."""
    if tuned:
        most = 60 if config.image_encoder == PRETRAINED else 20
        return max(3, min(most, 20_000 // max(rows, 1)))
    return _deep_epochs(rows) if deep else _epochs(rows)


def _batch_size_of(tuned: bool, deep: int, rows: int) -> int:
    if tuned:
        return min(16 if rows < SMALL_ROWS else 32, _deep_batch_size(rows))
    return _deep_batch_size(rows) if deep else _batch_size(rows)


def _rate_of(config: TrainingConfig, tuned: bool, deep: int, size: Size) -> float:
    """Beside a pretrained transformer that of what is new; the transformer itself takes smaller steps (`Plan.rate`)."""
    if tuned:
        return 0.005 if config.architecture == "linear" else 0.002
    return _deep_rate(size, bool(config.image_model)) if deep else _learning_rate(config.architecture, size.rows)


def _deep_epochs(rows: int) -> int:
    """From 60 on little data to 6 on much."""
    return max(6, min(60, 100_000 // max(rows, 1)))


def _deep_batch_size(rows: int) -> int:
    """A power of two near rows / 128, from 32 to 256: an encoder needs its steps."""
    return int(2 ** round(math.log2(min(256, max(32, rows / 128)))))


def _deep_rate(size: Size, attends: bool) -> float:
    """Convolutions learn fast; attention does not bear it."""
    return 0.003 if size.images and not attends else 0.001


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
    """From 150 on the smallest data to 30, and to 20 on large data."""
    return max(30 if rows < LARGE_ROWS else 20, min(150, 60_000 // max(rows, 1)))


def _batch_size(rows: int) -> int:
    """A power of two near rows / 32, from 32 to 256, then near rows / 128 up to 1024: steps are worth more than haste."""
    return int(2 ** round(math.log2(min(1024, max(32, min(256, rows / 32), rows / 128)))))


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
    if CROSS_FIT_ROWS <= size.rows < LARGE_ROWS:  # enough rows for fine pieces, as of coordinates and of dates
        return {"members": 8, "layers": 3, "width": 128, "dropout": 0.1, "bins": 128, "embedding_size": 24}
    members = 16 if size.rows < LARGE_ROWS else 8
    return {"members": members, **shared, "bins": max(4, min(32, size.rows // 32)), "embedding_size": 8}


def _members(params: dict[str, Any], folds: int) -> dict[str, int]:
    """The ensemble in whole groups: at least one member for each fold."""
    if "members" not in params:
        return {}
    return {"members": folds * max(1, math.ceil(params["members"] / folds))}
