"""Normalisation fitted on training rows only, one set for each group of the ensemble.

Centre and scale of each number, quantile bins for piecewise-linear encoding (Gorishniy et al., 2022, "On
Embeddings for Numerical Features in Tabular Deep Learning"), the categories a group has seen, and centre
and scale of a numeric target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from dlplatform.engine.image_arrays import Pixels
from dlplatform.engine.preprocessing import SPECIAL, UNKNOWN, Floats, Inputs, InputSizes
from dlplatform.engine.split import Index, Split

# Values beyond about this many standard deviations are squeezed (RealMLP; Holzmüller et al., 2024).
CLIP: Final = 6.0
QUANTILE_ROWS: Final = 100_000
PIXEL_ROWS: Final = 500


@dataclass(frozen=True)
class Statistics:
    """Fitted arrays, the group first: center and inverse_scale (G, D); left and inverse_width (G, D, T) of
    the bins in normalised units; known (G, V) the code each category code is read as; target_center and
    target_scale (G,), or (G, K) for several targets; pixel_mean and pixel_deviation (channels,), shared."""

    center: Floats
    inverse_scale: Floats
    left: Floats
    inverse_width: Floats
    known: Index
    target_center: Floats
    target_scale: Floats
    pixel_mean: Floats
    pixel_deviation: Floats


def fit_statistics(
    inputs: Inputs, sizes: InputSizes, split: Split, bins: int, target: np.ndarray[Any, Any] | None
) -> Statistics:
    """Fit every group on its own training rows. ``target``: (n,) or (n, K) numbers, or None for classes and labels."""
    groups = [_fit_numbers(inputs.numbers[rows], bins) for rows in split.train]
    center, inverse_scale, left, inverse_width = (np.stack(parts) for parts in zip(*groups, strict=True))
    known = np.stack([_fit_known(inputs.categories[rows], sizes) for rows in split.train])
    targets = [_fit_target(None if target is None else target[rows]) for rows in split.train]
    target_center, target_scale = (np.array(part, np.float32) for part in zip(*targets, strict=True))
    pixels = _fit_pixels(inputs.images, split.train[0])
    return Statistics(center, inverse_scale, left, inverse_width, known, target_center, target_scale, *pixels)


def normalise(values: Floats, center: Floats, inverse_scale: Floats) -> Floats:
    """Standardise and squeeze smoothly; a missing value becomes the centre."""
    scaled = np.nan_to_num((values - center) * inverse_scale, nan=0.0)
    squeezed: Floats = (scaled / np.sqrt(1 + (scaled / CLIP) ** 2)).astype(np.float32)
    return squeezed


def _fit_numbers(numbers: Floats, bins: int) -> tuple[Floats, Floats, Floats, Floats]:
    columns = numbers.shape[1]
    center, inverse_scale = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
    left, inverse_width = np.zeros((columns, bins), np.float32), np.zeros((columns, bins), np.float32)
    for column in range(columns):
        present = numbers[:, column][~np.isnan(numbers[:, column])]
        center[column], inverse_scale[column] = _fit_scale(present)
        if inverse_scale[column] > 0:
            normalised = normalise(present, center[column], inverse_scale[column])
            left[column], inverse_width[column] = _fit_bins(normalised, bins)
    return center, inverse_scale, left, inverse_width


def _fit_scale(present: Floats) -> tuple[float, float]:
    """Mean and inverse standard deviation; (value, 0) for a constant column, which then says nothing."""
    if not len(present):
        return 0.0, 0.0
    values = present.astype(np.float64)
    deviation = float(values.std())
    if deviation <= 1e-6 * max(1e-3, float(np.abs(values).max())):
        return float(values[0]), 0.0
    return float(values.mean()), 1.0 / deviation


def _fit_bins(values: Floats, bins: int) -> tuple[Floats, Floats]:
    """Left edges and inverse widths of at most ``bins`` quantile bins; unused ones have inverse width 0."""
    left, inverse_width = np.zeros(bins, np.float32), np.zeros(bins, np.float32)
    sample = values[:: max(1, len(values) // QUANTILE_ROWS)]
    distinct = np.unique(sample)
    edges = distinct if len(distinct) <= bins + 1 else np.unique(np.quantile(sample, np.linspace(0, 1, bins + 1)))
    used = len(edges) - 1
    left[:used] = edges[:-1]
    inverse_width[:used] = 1 / np.maximum(np.diff(edges), 1e-3)
    return left, inverse_width


def _fit_known(categories: np.ndarray[Any, Any], sizes: InputSizes) -> Index:
    """For each code of all columns in a row: itself when a training row holds it, else "unknown"."""
    parts = []
    for column, vocabulary in enumerate(sizes.vocabularies):
        seen = np.bincount(categories[:, column], minlength=vocabulary) > 0
        seen[:SPECIAL] = True
        parts.append(np.where(seen, np.arange(vocabulary), UNKNOWN))
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _fit_pixels(images: Pixels, rows: Index) -> tuple[Floats, Floats]:
    """Mean and deviation of each channel over a spread sample of the training images."""
    sample = images[rows[:: max(1, len(rows) // PIXEL_ROWS)]].astype(np.float64)
    if not sample.size:
        return np.zeros(images.shape[2], np.float32), np.ones(images.shape[2], np.float32)
    axes = (0, 1, 3, 4)
    return sample.mean(axes).astype(np.float32), np.maximum(sample.std(axes), 1.0).astype(np.float32)


def _fit_target(target: np.ndarray[Any, Any] | None) -> tuple[Any, Any]:
    if target is None:
        return 0.0, 1.0
    deviation = target.std(0)
    return target.mean(0), np.where(deviation > 0, deviation, 1.0)
