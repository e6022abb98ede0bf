"""How nearly one column determines another: purity, AUC and correlation on a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = Any
Codes = np.ndarray[Any, np.dtype[np.int64]]
Numbers = np.ndarray[Any, np.dtype[np.float64]]

BINS = 50
MIN_ROWS = 30
PURITY = 0.99
AUC = 0.99
CORRELATION = 0.999
MANY_CLASSES = 50
# Of what a guess of the commonest class gets wrong, the share a leaking column must get right.
GAIN = 0.95


@dataclass(frozen=True, slots=True)
class Association:
    """The measure that gave a column away, `value` between 0 and 1."""

    measure: str
    value: float


def strongest(feature: Array, target: Array) -> Association | None:
    """The measure by which `feature` all but determines `target`; None when no measure says so.

    Both are Arrow arrays of one length; rows without a target are left out. Columns of unique values are
    ignored.
    """
    present = target.is_valid()
    if target.null_count:
        feature, target = feature.filter(present), target.filter(present)
    if len(target) < MIN_ROWS or _unique(feature):
        return None
    if is_class(target):
        return _of_classes(feature, _codes(target))
    return _of_numbers(feature, numbers(target))


def is_class(column: Array) -> bool:
    """Whether a target is a set of classes rather than a quantity."""
    type_ = column.type
    if pa.types.is_string(type_) or pa.types.is_boolean(type_):
        return True
    return bool(pa.types.is_integer(type_) and pc.count_distinct(column).as_py() <= 20)


def numbers(column: Array) -> Numbers:
    """As float64, missing as NaN; datetimes in microseconds."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    found: Numbers = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


def _numeric(column: Array) -> bool:
    return not (pa.types.is_string(column.type) or pa.types.is_boolean(column.type))


def _unique(feature: Array) -> bool:
    """Identifiers determine everything and say nothing; unique measurements are judged in bins."""
    if pa.types.is_floating(feature.type) or pa.types.is_timestamp(feature.type):
        return False
    present = len(feature) - feature.null_count
    distinct = pc.count_distinct(feature, mode="only_valid").as_py()
    return bool(present > 1 and distinct == present and (not _numeric(feature) or _dense(feature, present)))


def _dense(feature: Array, present: int) -> bool:
    ends = pc.min_max(feature).as_py()
    return bool(ends["max"] - ends["min"] < 4 * present)


def _codes(column: Array) -> Codes:
    """0, 1, … per distinct value; missing has a code of its own."""
    encoded = column.dictionary_encode(null_encoding="encode")
    found: Codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _of_classes(feature: Array, classes: Codes) -> Association | None:
    if _numeric(feature) and classes.max() == 1:
        area = _auc(numbers(feature), classes)
        if area > AUC:
            return Association("AUC", area)
    groups = _bins(numbers(feature)) if _numeric(feature) else _codes(feature)
    if groups.max() + 1 > len(groups) / 5 or classes.max() + 1 > MANY_CLASSES:
        return None
    table = np.zeros((int(groups.max()) + 1, int(classes.max()) + 1))
    np.add.at(table, (groups, classes), 1)
    purity = float(table.max(axis=1).sum() / len(classes))
    base = float(table.sum(axis=0).max() / len(classes))
    if purity > PURITY and base < 1 and (purity - base) / (1 - base) > GAIN:
        return Association("purity", purity)
    return None


def _bins(values: Numbers) -> Codes:
    """Quantile bins; NaN in one of its own, a value only missing for one class leaks as well."""
    present = values[~np.isnan(values)]
    edges = np.unique(np.quantile(present, np.linspace(0, 1, BINS + 1)[1:-1])) if len(present) else np.empty(0)
    codes: Codes = np.searchsorted(edges, values, side="left").astype(np.int64)
    codes[np.isnan(values)] = len(edges) + 1
    return codes


def _auc(values: Numbers, classes: Codes) -> float:
    """Area under the ROC curve in the better direction, ties counted half; missing values left out."""
    valid = ~np.isnan(values)
    values, classes = values[valid], classes[valid]
    positives = int(classes.sum())
    negatives = len(classes) - positives
    if min(positives, negatives) < 5:
        return 0.0
    ranks = _ranks(values)
    area = (ranks[classes == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return float(max(area, 1 - area))


def _ranks(values: Numbers) -> Numbers:
    """1-based ranks, ties averaged."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Numbers = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _of_numbers(feature: Array, target: Numbers) -> Association | None:
    if not _numeric(feature):
        return None
    values = numbers(feature)
    valid = ~np.isnan(values) & ~np.isnan(target)
    if valid.sum() < MIN_ROWS:
        return None
    values, target = values[valid], target[valid]
    for measure, left, right in (
        ("correlation", values, target),
        ("rank correlation", _ranks(values), _ranks(target)),
    ):
        found = _correlation(left, right)
        if found > CORRELATION:
            return Association(measure, found)
    return None


def _correlation(left: Numbers, right: Numbers) -> float:
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    if not np.isfinite(scale) or scale == 0:
        return 0.0
    return min(1.0, abs(float(left @ right)) / scale)
