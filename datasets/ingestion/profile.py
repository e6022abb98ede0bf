"""The statistics of every column, gathered batch by batch while the parts are written.

Means, extremes and counts are exact. Distinct counts, quantiles and histograms are exact for tables that
fit the budget below and estimated on an even sample beyond; `approximate` names what was estimated.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.ingestion.hashing import Hashes, combine, hash_column, mix
from datasets.ingestion.histogram import datetime_histogram, number_histogram
from datasets.ingestion.sketches import (
    DistinctCounter,
    DuplicateCounter,
    Moments,
    RowSample,
    TopValues,
    as_numpy,
)

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
MEMORY_BUDGET = 256 << 20
MAX_DISTINCT = 100_000
MAX_SAMPLE = 200_000
TOP_TRACKED = 10_000
WIDE_TABLE = 200
TEXT_SAMPLES = 5
TEXT_SHOWN = 80

# Category when values repeat: few of them, or few for the number of rows. Documented in the tests.
SMALL_CATEGORY = 20
LARGE_CATEGORY = 10_000
CATEGORY_SHARE = 0.05
CATEGORY_LENGTH = 256


class TableProfiler:
    """Feed it every batch in order, then `finish`."""

    def __init__(self, names: list[str], kinds: list[str]) -> None:
        width = max(len(names), 1)
        share = MEMORY_BUDGET // (8 * width)
        self.columns = [ColumnProfiler(kind, min(MAX_DISTINCT, share), wide=width > WIDE_TABLE) for kind in kinds]
        self.names = names
        self.rows = 0
        self._sample = RowSample(min(MAX_SAMPLE, share))
        self._duplicates = DuplicateCounter(MEMORY_BUDGET // 8)

    def observe(self, batch: Any) -> None:
        indices, kept = self._sample.take(batch.num_rows)
        whole = len(indices) == batch.num_rows
        row_hashes: Hashes = np.zeros(batch.num_rows, np.uint64)
        numbers = mix(np.arange(self.rows, self.rows + batch.num_rows, dtype=np.uint64))
        for column, values in zip(self.columns, batch.columns, strict=True):
            hashes = hash_column(values)
            row_hashes = combine(row_hashes, hashes)
            brief = abbreviated(values, hashes)
            column.observe(values, brief, hashes, numbers)
            column.keep(brief if whole else brief.take(pa.array(indices)), kept)
        self._duplicates.observe(mix(row_hashes))
        self.rows += batch.num_rows

    def duplicate_rows(self) -> tuple[int, bool]:
        """(rows equal to an earlier row, whether that is exact)."""
        return self._duplicates.count()

    def finish(self) -> dict[str, dict[str, Any]]:
        """The profile by column name; JSON-safe."""
        exact = self._sample.level == 0
        return {name: column.finish(self.rows, exact) for name, column in zip(self.names, self.columns, strict=True)}


class ColumnProfiler:
    """One column's summaries."""

    def __init__(self, kind: str, capacity: int, *, wide: bool) -> None:
        self.kind = kind
        self.missing = 0
        self.distinct = DistinctCounter(capacity)
        self.moments = Moments()
        self.top = TopValues(TOP_TRACKED // 10 if wide else TOP_TRACKED)
        self.shown = 10 if wide else 50
        self.bins = 10 if wide else 30
        self.fingerprint = 0
        self.increasing = True
        self._last: float | None = None
        self._sample: list[Any] = []

    def observe(self, values: Any, brief: Any, hashes: Hashes, row_numbers: Hashes) -> None:
        """Take a batch into account; `brief` are its values `abbreviated`."""
        self.missing += values.null_count
        present = hashes if not values.null_count else hashes[values.is_valid().to_numpy(zero_copy_only=False)]
        self.distinct.observe(present)
        # Equal in two columns only when all values are, row by row.
        self.fingerprint = (self.fingerprint + int(mix(hashes ^ row_numbers).sum(dtype=np.uint64))) % (1 << 64)
        if self.kind in ("text", "boolean"):
            self._observe_labels(values, brief)
        elif self.kind != "image":
            self._observe_numbers(as_numpy(values))

    def keep(self, values: Any, mask: Any) -> None:
        """Add the sampled rows of a batch; `mask` first thins what was kept before."""
        if mask is not None:
            merged = pa.concat_arrays(self._sample) if self._sample else values[:0]
            self._sample = [merged.filter(pa.array(mask))]
        self._sample.append(values)

    def sampled(self) -> Any:
        """The sampled values, missing ones included, in row order and aligned between columns."""
        if len(self._sample) != 1:
            self._sample = [pa.concat_arrays(self._sample)]
        return self._sample[0]

    def finish(self, rows: int, exact_sample: bool) -> dict[str, Any]:
        distinct, exact_distinct = self.distinct.count()
        count = rows - self.missing
        profile: dict[str, Any] = {
            "type": self.kind,
            "count": count,
            "missing": self.missing,
            "missing_fraction": round(self.missing / rows, 6) if rows else 0.0,
            "distinct": min(distinct, count),
        }
        approximate = [] if exact_distinct else ["distinct"]
        if count:
            profile |= self._details(profile["distinct"], count, exact_sample, approximate)
        if approximate:
            profile["approximate"] = approximate
        return profile

    def _details(self, distinct: int, count: int, exact_sample: bool, approximate: list[str]) -> dict[str, Any]:
        if self.kind == "image":
            return {}  # what the pictures show is told by those who looked at them (`images.summary`)
        if self.kind in ("integer", "number"):
            if not exact_sample:
                approximate += ["quantiles", "histogram"]
            return self._number_details(count)
        if self.kind == "datetime":
            if not exact_sample:
                approximate.append("histogram")
            return self._datetime_details(count)
        if not self.top.exact:
            approximate.append("top")
        details: dict[str, Any] = {}
        if self.kind == "text":
            details["length"] = self._lengths()
            repeats = is_category(count, distinct, details["length"]["max"])
            details["type"] = "category" if repeats else "text"
            if not repeats:
                details["samples"] = self._examples()
        details["top"] = [{"value": _label(value), "count": times} for value, times in self._shown_values(details)]
        return details

    def _shown_values(self, details: dict[str, Any]) -> list[tuple[Any, int]]:
        return self.top.top(self.shown if details.get("type") != "text" else min(self.shown, 10))

    def _observe_labels(self, values: Any, brief: Any) -> None:
        self.top.observe(brief)
        if self.kind == "text":
            self.moments.observe(pc.utf8_length(values.drop_null()).to_numpy(zero_copy_only=False).astype(np.float64))

    def _observe_numbers(self, numbers: Any) -> None:
        if not len(numbers):
            return
        self.moments.observe(numbers)
        if self.increasing:
            joined = numbers if self._last is None else np.concatenate([[self._last], numbers])
            self.increasing = bool((np.diff(joined) > 0).all())
            self._last = float(numbers[-1])

    def _number_details(self, count: int) -> dict[str, Any]:
        sample = as_numpy(self.sampled())
        moments = self.moments
        quantiles = np.quantile(sample, QUANTILES) if len(sample) else np.full(len(QUANTILES), moments.mean)
        whole = self.kind == "integer"
        return {
            "min": _number(moments.low, whole),
            "max": _number(moments.high, whole),
            "mean": _number(moments.mean),
            "std": _number(float(np.sqrt(moments.squares / (count - 1))) if count > 1 else 0.0),
            "quantiles": {
                f"{share:g}": _number(float(value)) for share, value in zip(QUANTILES, quantiles, strict=True)
            },
            "zeros": moments.zeros,
            "negatives": moments.negatives,
            "histogram": number_histogram(sample, moments.low, moments.high, count, whole, self._bins(count)),
        }

    def _datetime_details(self, count: int) -> dict[str, Any]:
        sample = as_numpy(self.sampled())
        low, high = self.moments.low, self.moments.high
        return {
            "min": _moment(low),
            "max": _moment(high),
            "histogram": datetime_histogram(sample, low, high, count, self._bins(count), _moment),
        }

    def _bins(self, count: int) -> int:
        """Few values need few bins."""
        return min(self.bins, max(5, int(2 * np.sqrt(count))))

    def _lengths(self) -> dict[str, Any]:
        moments = self.moments
        return {"min": int(moments.low), "mean": round(moments.mean, 2), "max": int(moments.high)}

    def _examples(self) -> list[str]:
        sample = self.sampled().drop_null()
        chosen = pc.unique(sample[: 50 * TEXT_SAMPLES])[:TEXT_SAMPLES]
        return [_label(value) for value in chosen.to_pylist()]


def abbreviated(values: Any, hashes: Hashes) -> Any:
    """Texts too long for a category as their beginning and hash: as different as before, and of bounded size."""
    if not pa.types.is_string(values.type) or (pc.max(pc.binary_length(values)).as_py() or 0) <= CATEGORY_LENGTH:
        return values
    long = pc.fill_null(pc.greater(pc.utf8_length(values), CATEGORY_LENGTH), False)
    beginnings = pc.utf8_slice_codeunits(values.filter(long), 0, CATEGORY_LENGTH).to_pylist()
    marks = hashes[long.to_numpy(zero_copy_only=False)].tolist()
    brief = [f"{beginning}{mark:016x}" for beginning, mark in zip(beginnings, marks, strict=True)]
    return pc.replace_with_mask(values, long, pa.array(brief, pa.string()))


def is_category(count: int, distinct: int, longest: int) -> bool:
    """Whether text values are labels: some repeat, and there are at most 20, or at most half as many as
    rows and at most 5 % of them (50 at least, 10,000 at most); none is longer than 256 characters.
    """
    if distinct >= count or longest > CATEGORY_LENGTH:
        return False
    if distinct <= SMALL_CATEGORY:
        return True
    return distinct <= count / 2 and distinct <= min(LARGE_CATEGORY, max(50, CATEGORY_SHARE * count))


def _label(value: Any) -> Any:
    if isinstance(value, str) and len(value) > TEXT_SHOWN:
        return value[:TEXT_SHOWN] + "…"
    return value


def _number(value: float, whole: bool = False) -> float | int | None:
    """A JSON number with ten significant digits; None where a sum overflowed."""
    if not np.isfinite(value):
        return None
    return int(value) if whole else float(f"{value:.10g}")


def _moment(microseconds: float) -> str:
    try:
        return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return str(np.datetime64(int(microseconds), "us")) + "Z"
