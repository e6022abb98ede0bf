"""Histograms that stay readable: few bins, and the far tails gathered in the outermost ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[np.float64]]
# The bins cover the central 98 % when the whole range is this many times wider than it.
TAIL_FACTOR = 5.0


def number_histogram(sample: Numbers, low: float, high: float, total: int, whole: bool, bins: int) -> dict[str, Any]:
    """{edges, counts}: the counts add up to about `total`, the outermost edges are the extremes.

    A column whose outliers would squeeze everything into one bin gets equal bins over its central 98 %, and
    its first and last bin reach out to the extremes.
    """
    edges = _edges(sample, low, high, whole, bins)
    counts, _ = np.histogram(sample, edges)
    return {"edges": [float(f"{edge:.8g}") for edge in edges], "counts": _scaled(counts, len(sample), total)}


def datetime_histogram(
    sample: Numbers, low: float, high: float, total: int, bins: int, show: Callable[[float], str]
) -> dict[str, Any]:
    """{edges, counts} over time, edges in ISO 8601."""
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low, low + 1])
    counts, _ = np.histogram(sample, edges)
    return {"edges": [show(float(edge)) for edge in edges], "counts": _scaled(counts, len(sample), total)}


def _edges(sample: Numbers, low: float, high: float, whole: bool, bins: int) -> Numbers:
    if not high > low:
        return np.array([low, np.nextafter(low, np.inf)]) if abs(low) > 1e15 else np.array([low - 0.5, low + 0.5])
    if not np.isfinite(high - low):
        # The width itself overflows: halve before subtracting.
        return np.linspace(low / 2, high / 2, bins + 1) * 2
    if whole and high - low < bins:
        return np.arange(low - 0.5, high + 1.0, 1.0)
    first, last = np.quantile(sample, (0.01, 0.99)) if len(sample) else (low, high)
    if last > first and (high - low) > TAIL_FACTOR * (last - first):
        inner = np.linspace(first, last, bins - 1)
        return np.unique(np.concatenate([[low], inner, [high]]))
    return np.unique(np.linspace(low, high, bins + 1))


def _scaled(counts: Any, sampled: int, total: int) -> list[int]:
    if sampled in (0, total):
        return [int(count) for count in counts]
    return [round(int(count) * total / sampled) for count in counts]
