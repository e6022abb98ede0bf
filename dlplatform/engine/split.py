"""Which rows train and which validate: stratified, seeded, one part or cross-fitting folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Index = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Split:
    """Row positions for each group of the ensemble: those it trains on, and those it is measured on.

    With one group the two are a plain hold-out split. With more, the validation parts are disjoint and
    cover all rows, so that every row is predicted by members that never saw it.
    """

    train: tuple[Index, ...]
    validation: tuple[Index, ...]

    @property
    def groups(self) -> int:
        return len(self.train)


def split_rows(target: np.ndarray[Any, Any], folds: int, fraction: float, seed: int) -> Split:
    """Split rows so that each part has the same mix of target values.

    ``target``: (n,) class codes or numbers; sorting by it and dealing neighbours to different parts
    stratifies both. ``folds`` 1 holds out ``fraction`` of the rows.
    """
    random = np.random.default_rng([seed, 0x5117])
    order = _stratified_order(target, random)
    part = _deal(len(order), folds, random) if folds > 1 else _hold_out(len(order), fraction, random)
    parts = np.empty(len(order), np.int64)
    parts[order] = part
    held_out = range(folds) if folds > 1 else range(1)
    return Split(
        train=tuple(np.flatnonzero(parts != fold) for fold in held_out),
        validation=tuple(np.flatnonzero(parts == fold) for fold in held_out),
    )


def _stratified_order(target: np.ndarray[Any, Any], random: np.random.Generator) -> Index:
    """Positions sorted by target, equal values in random order."""
    shuffled = random.permutation(len(target))
    return shuffled[np.argsort(target[shuffled], kind="stable")]


def _deal(rows: int, folds: int, random: np.random.Generator) -> Index:
    """A fold for each of ``rows`` neighbours: every block of ``folds`` neighbours meets every fold."""
    blocks = -(-rows // folds)
    return np.concatenate([random.permutation(folds) for _ in range(blocks)])[:rows]


def _hold_out(rows: int, fraction: float, random: np.random.Generator) -> Index:
    """0 for an evenly spread ``fraction`` of neighbours (at least one, not all), 1 for the others."""
    held = min(rows - 1, max(1, round(rows * fraction)))
    spread = np.floor((np.arange(held) + random.random(held)) * rows / held).astype(np.int64)
    part = np.ones(rows, np.int64)
    part[spread] = 0
    return part
