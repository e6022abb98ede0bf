"""Small summaries of long streams: exact while they fit, estimates with a flag beyond."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.ingestion.hashing import Hashes, mix

Numbers = np.ndarray[Any, np.dtype[np.float64]]
HASH_SPACE = 2.0**64


def sorted_unique(hashes: Hashes) -> Hashes:
    """Like np.unique, which hashes 64-bit integers: several times slower than sorting random ones."""
    ordered = np.sort(hashes)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


class DistinctCounter:
    """Distinct values among hashes: keeps the `capacity` smallest (k minimum values).

    Exact up to `capacity` distinct values; beyond, the relative error is about 1 / sqrt(capacity).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: Hashes = np.empty(0, np.uint64)
        self._waiting: list[Hashes] = []
        self._waiting_count = 0
        self._saturated = False

    def observe(self, hashes: Hashes) -> None:
        if self._saturated:
            hashes = hashes[hashes < self._kept[-1]]
        self._waiting.append(hashes)
        self._waiting_count += len(hashes)
        if self._waiting_count >= self.capacity:
            self._settle()

    def merge(self, other: DistinctCounter) -> None:
        """Take over what another counter of the same capacity saw."""
        other._settle()
        self._saturated = self._saturated or other._saturated
        self._waiting.append(other._kept)
        self._settle()

    def count(self) -> tuple[int, bool]:
        """(distinct values, whether that is exact)."""
        self._settle()
        if not self._saturated:
            return len(self._kept), True
        return int((self.capacity - 1) / ((float(self._kept[-1]) + 1) / HASH_SPACE)), False

    def _settle(self) -> None:
        if not self._waiting:
            return
        merged = sorted_unique(np.concatenate([self._kept, *self._waiting]))
        self._waiting, self._waiting_count = [], 0
        if len(merged) > self.capacity:
            self._saturated = True
        self._kept = merged[: self.capacity]


class DuplicateCounter:
    """Rows that repeat an earlier one; beyond `capacity` rows a hash-chosen share of them is followed."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._waiting: list[Hashes] = []
        self._count = 0
        self._level = np.uint64(0)

    def observe(self, hashes: Hashes) -> None:
        kept = self._of_level(hashes)
        self._waiting.append(kept)
        self._count += len(kept)
        while self._count > self.capacity:
            self._level += np.uint64(1)
            self._waiting = [self._of_level(part) for part in self._waiting]
            self._count = sum(map(len, self._waiting))

    def count(self) -> tuple[int, bool]:
        """(rows that repeat an earlier row, whether that is exact)."""
        if not self._waiting:
            return 0, True
        hashes = np.concatenate(self._waiting)
        self._waiting = [hashes]
        repeated = len(hashes) - len(sorted_unique(hashes))
        return repeated << int(self._level), self._level == 0

    def _of_level(self, hashes: Hashes) -> Hashes:
        if not self._level:
            return hashes
        followed: Hashes = hashes[(hashes >> np.uint64(7)) & ((np.uint64(1) << self._level) - np.uint64(1)) == 0]
        return followed


class RowSample:
    """Which rows belong to an even, repeatable sample: all until `capacity`, then a half, a quarter, …"""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.level = 0
        self._rows = 0
        self._kept_numbers: Hashes = np.empty(0, np.uint64)

    def take(self, count: int) -> tuple[Any, Any]:
        """For the next `count` rows: (indices to keep of them, mask over what was kept before or None)."""
        numbers = mix(np.arange(self._rows, self._rows + count, dtype=np.uint64))
        self._rows += count
        chosen = np.flatnonzero(self._belongs(numbers))
        merged = np.concatenate([self._kept_numbers, numbers[chosen]])
        if len(merged) <= self.capacity:
            self._kept_numbers = merged
            return chosen, None
        before = len(self._kept_numbers)
        mask = np.ones(len(merged), bool)
        while mask.sum() > self.capacity:
            self.level += 1
            mask = self._belongs(merged)
        self._kept_numbers = merged[mask]
        return chosen[mask[before:]], mask[:before]

    def _belongs(self, numbers: Hashes) -> Any:
        return numbers & np.uint64((1 << self.level) - 1) == 0


@dataclass(slots=True)
class Moments:
    """Count, mean and variance by Chan's pairwise update, with extremes, zeros and negatives."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    zeros: int = 0
    negatives: int = 0

    def observe(self, numbers: Numbers) -> None:
        if not len(numbers):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(numbers.mean())
            block = Moments(
                len(numbers),
                mean,
                float(np.square(numbers - mean).sum()),
                float(numbers.min()),
                float(numbers.max()),
                int((numbers == 0).sum()),
                int((numbers < 0).sum()),
            )
            self.merge(block)

    def merge(self, other: Moments) -> None:
        """Take over what another summary saw."""
        total = self.count + other.count
        if not total:
            return
        delta = other.mean - self.mean
        self.squares += other.squares + delta * delta * self.count * other.count / total
        self.mean += delta * other.count / total
        self.count = total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.zeros += other.zeros
        self.negatives += other.negatives


@dataclass(slots=True)
class TopValues:
    """The commonest values; exact while at most `capacity` different ones have been seen."""

    capacity: int
    counts: Counter[Any] = field(default_factory=Counter)
    exact: bool = True

    def observe(self, column: Any) -> None:
        found = pc.value_counts(column)
        values, counts = found.field("values"), found.field("counts")
        if len(values) > self.capacity:
            order = pc.select_k_unstable(counts, self.capacity // 2, sort_keys=[("", "descending")])
            values, counts = values.take(order), counts.take(order)
            self.exact = False
        for value, count in zip(values.to_pylist(), counts.to_pylist(), strict=True):
            if value is not None:
                self.counts[value] += count
        if len(self.counts) > 2 * self.capacity:
            self.counts = Counter(dict(self.counts.most_common(self.capacity)))
            self.exact = False

    def top(self, limit: int) -> list[tuple[Any, int]]:
        """The commonest values, ties in alphabetical order."""
        return sorted(self.counts.items(), key=lambda item: (-item[1], str(item[0])))[:limit]


def as_numpy(column: Any) -> Numbers:
    """The non-missing values of an integer, number or datetime column as float64 (microseconds for the
    last).
    """
    present = column.drop_null()
    if pa.types.is_timestamp(column.type):
        present = present.cast(pa.int64())
    numbers: Numbers = present.to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers
