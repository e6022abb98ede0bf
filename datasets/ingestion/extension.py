"""The rows of an earlier version followed by added ones, as one typed source.

Nothing of the earlier version is inferred again: its columns are known. As long as their types hold, its parts stay
as they are and only the added rows are written, though every row is read for the profile. When a type has to widen,
all rows are written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.ingestion.added import misfits, typed_batch, widened
from datasets.ingestion.limits import Limits
from datasets.ingestion.result import Base, Findings, Rejected, Reported
from datasets.ingestion.rows import group_batches
from datasets.ingestion.sources import Batch, internal_names

BATCH_ROWS = 16_384
BATCH_CELLS = 4_000_000
# Smaller parts at the end are written again with what follows, so that a thousand additions do not leave a thousand.
SMALL_PART_ROWS = 16_384


class ExtendedSource:
    """Parts, then rows. `kept` counts the leading parts that need not be written, `kept_rows` the rows in them."""

    def __init__(self, base: Base, rows: Sequence[dict[str, Any]], limits: Limits, findings: Findings) -> None:
        counts = [int(pq.read_metadata(part).num_rows) for part in base.parts]
        self._total = sum(counts) + len(rows)
        if self._total > limits.rows:
            raise Rejected(
                "too_many_rows",
                f"With the added rows there would be {self._total:,}, the limit is {limits.rows:,}. Take a sample.",
            )
        columns = widened(rows, base.columns, findings)
        self.names = [column.name for column in columns]
        # Whether a text is a category is told from all rows in the end.
        self.kinds = ["text" if column.type == "category" else column.type for column in columns]
        self.typed, self.blank = True, set[int]()
        self.delimiter: str | None = None
        self.kept = leading_large(counts) if columns == base.columns else 0
        self.kept_rows = sum(counts[: self.kept])
        self._parts, self._added = base.parts, typed_batch(rows, columns)
        self._done = 0

    def batches(self) -> Iterator[Batch]:
        self._done = 0
        size = max(1, min(BATCH_ROWS, BATCH_CELLS // len(self.names)))
        for part in self._parts:
            with pq.ParquetFile(part) as file:
                for batch in group_batches(file, size, self.names):
                    yield self._counted(batch)
        yield self._counted(self._added)

    def row_number(self, record: int) -> int:
        return record + 1

    def fraction(self) -> float:
        return self._done / self._total

    def _counted(self, batch: Batch) -> Batch:
        self._done += batch.num_rows
        arrays = [batch.column(name) for name in self.names]
        return pa.RecordBatch.from_arrays(arrays, names=internal_names(len(arrays)))


def leading_large(counts: Sequence[int]) -> int:
    """How many parts, from the first on, are left when the small ones at the end are taken away."""
    kept = len(counts)
    while kept and counts[kept - 1] < SMALL_PART_ROWS:
        kept -= 1
    return kept


def open_extension(source: Path, base: Base, limits: Limits, findings: Findings) -> ExtendedSource:
    """`source` holds the added rows, one JSON object a line; raises Reported when they do not fit, Rejected too."""
    if any(column.type == "image" for column in base.columns):
        raise Rejected(
            "image_rows", "The dataset has become one of images, to which no rows are added. Upload an archive instead."
        )
    rows = [orjson.loads(line) for line in source.read_bytes().splitlines()]
    problems = misfits(rows, base.columns, limits)
    for problem in problems:
        findings.add(problem)
    if problems:
        raise Reported
    return ExtendedSource(base, rows, limits, findings)
