"""A page of stored rows, read through row-group metadata so that a far page costs as little as the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SORT_BATCH_ROWS = 65_536
# Texts are put in order by their beginning: whole documents as keys would fill the memory.
SORT_CHARACTERS = 1_024


def read_rows(
    parts: Sequence[Path],
    offset: int,
    limit: int,
    order_by: str | None = None,
    descending: bool = False,
    columns: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Rows `offset` to `offset + limit`, JSON-safe: datetimes as ISO 8601 UTC, missing as None.

    With `order_by` missing values come last and equal ones keep their stored order; texts are compared by their first 1,024 characters. Raises KeyError for an
    unknown column and ValueError for a negative offset or limit.
    """
    if offset < 0 or limit < 0:
        raise ValueError("offset and limit must not be negative")
    if not parts or limit == 0:
        return []
    names = _checked_columns(parts[0], columns, order_by)
    if order_by is None:
        table = _read_range(parts, offset, limit, names)
    else:
        table = _read_records(parts, _sorted_records(parts, order_by, descending, offset, limit), names)
    return _json_rows(table)


def matching_records(parts: Sequence[Path], column: str, value: str) -> list[int]:
    """Positions of the rows whose value, as text, is `value`; booleans are true and false. Raises KeyError."""
    _checked_columns(parts[0], [column], None)
    found: list[int] = []
    first = 0
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in group_batches(file, SORT_BATCH_ROWS, [column]):
                equal = pc.equal(pc.cast(batch.column(0), pa.string()), value)
                found += (pc.indices_nonzero(pc.fill_null(equal, False)).to_numpy() + first).tolist()
                first += batch.num_rows
    return found


def read_records(parts: Sequence[Path], records: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows at the given positions, in that order, JSON-safe. Raises KeyError for an unknown column."""
    names = _checked_columns(parts[0], columns, None)
    return _json_rows(_read_records(parts, np.array(records, dtype=np.int64), names))


def batched_rows(parts: Sequence[Path], size: int, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """All rows in stored order, JSON-safe, at most `size` at a time and fewer where they are long."""
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in group_batches(file, size, columns):
                yield _json_rows(batch)


def group_batches(file: pq.ParquetFile, size: int, columns: Sequence[str]) -> Iterator[Any]:
    """Batches that end with their row group: its bytes are bounded, a number of rows with long texts is not."""
    for group in range(file.metadata.num_row_groups):
        yield from file.iter_batches(size, row_groups=[group], columns=list(columns), use_threads=False)


def count_rows(parts: Sequence[Path]) -> int:
    """Rows in all parts, from their footers."""
    return sum(pq.read_metadata(part).num_rows for part in parts)


def _checked_columns(part: Path, columns: Sequence[str] | None, order_by: str | None) -> list[str]:
    known = pq.read_schema(part).names
    wanted = list(columns) if columns is not None else known
    for name in [*wanted, *([order_by] if order_by is not None else [])]:
        if name not in known:
            raise KeyError(name)
    return wanted


def _read_range(parts: Sequence[Path], offset: int, limit: int, names: list[str]) -> pa.Table:
    pieces: list[pa.Table] = []
    skip, missing = offset, limit
    for part in parts:
        with pq.ParquetFile(part) as file:
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if skip >= rows:
                    skip -= rows
                    continue
                piece = _project(file.read_row_group(group, columns=names, use_threads=False), names)
                pieces.append(piece.slice(skip, missing))
                skip, missing = 0, missing - pieces[-1].num_rows
                if missing <= 0:
                    return pa.concat_tables(pieces)
    return pa.concat_tables(pieces) if pieces else pa.table({})


def _project(table: pa.Table, names: list[str]) -> pa.Table:
    return table.select(names)


def _sorted_records(
    parts: Sequence[Path], order_by: str, descending: bool, offset: int, limit: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of the wanted rows, sorted: only the best `offset + limit` keys are held at a time."""
    keep = offset + limit
    best = pa.table(
        {
            "key": pa.array([], pq.read_schema(parts[0]).field(order_by).type),
            "record": pa.array([], pa.int64()),
        }
    )
    record = 0
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in group_batches(file, SORT_BATCH_ROWS, [order_by]):
                records = pa.array(np.arange(record, record + batch.num_rows))
                record += batch.num_rows
                best = pa.concat_tables([best, pa.table({"key": _sort_key(batch.column(0)), "record": records})])
                if best.num_rows > 2 * keep + SORT_BATCH_ROWS:
                    best = _top(best, descending, keep)
    found: np.ndarray[Any, np.dtype[np.int64]] = _top(best, descending, keep)["record"].to_numpy()[offset:]
    return found


def _sort_key(values: Any) -> Any:
    return pc.utf8_slice_codeunits(values, 0, SORT_CHARACTERS) if pa.types.is_string(values.type) else values


def _top(table: pa.Table, descending: bool, keep: int) -> pa.Table:
    keys = [("key", "descending" if descending else "ascending", "at_end"), ("record", "ascending", "at_end")]
    order = pc.sort_indices(table, sort_keys=keys)
    return table.take(order[:keep])


def _read_records(parts: Sequence[Path], records: np.ndarray[Any, np.dtype[np.int64]], names: list[str]) -> pa.Table:
    """The given rows in the given order, each row group read at most once."""
    if not len(records):
        return pa.table({})
    ascending = np.sort(records)
    pieces: list[pa.Table] = []
    first = 0
    for part in parts:
        with pq.ParquetFile(part) as file:
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                low, high = np.searchsorted(ascending, (first, first + rows))
                if high > low:
                    piece = _project(file.read_row_group(group, columns=names, use_threads=False), names)
                    pieces.append(piece.take(pa.array(ascending[low:high] - first)))
                first += rows
    return pa.concat_tables(pieces).take(pa.array(np.searchsorted(ascending, records)))


def _json_rows(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    return [{name: _json_value(value) for name, value in row.items()} for row in table.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
