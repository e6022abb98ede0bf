"""The rows of a dataset version, a piece at a time: as many as memory takes, however long they are."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

PIECE_BYTES = 16 << 20
VALUE_BYTES = 8  # of a number, and of a text besides its letters
Lengths = np.ndarray[Any, np.dtype[np.int64]]


def pieces(parts: Sequence[Path], most: int, first: int) -> Iterator[pa.RecordBatch]:
    """The rows from the position ``first`` on, at most ``most`` at a time, and fewer where they are long.

    Where a piece ends follows from where it begins: whoever goes on behind one cuts as who went there before would have.
    """
    before = 0
    for part in parts:
        texts = _texts(part)
        with pq.ParquetFile(part, read_dictionary=texts) as file:
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if before + rows > first:
                    for piece in _of_group(file, group, most, max(0, first - before)):
                        yield _written_out(piece, texts)
                before += rows


def _of_group(file: pq.ParquetFile, group: int, most: int, skipped: int) -> Iterator[pa.RecordBatch]:
    """A piece ends with its row group, of which the next one may hold much longer rows."""
    told = file.metadata.row_group(group)
    of_row = max(1, told.total_byte_size // max(1, told.num_rows))
    for batch in file.iter_batches(max(1, min(most, PIECE_BYTES // of_row)), row_groups=[group], use_threads=False):
        if skipped < batch.num_rows:
            yield from _cut(batch.slice(skipped))
        skipped = max(0, skipped - batch.num_rows)


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """What a row group says of its bytes may be little where values repeat, and of the mean row alone."""
    ends, start = np.cumsum(bytes_of_rows(batch)), 0
    while start < batch.num_rows:
        most = (ends[start - 1] if start else 0) + PIECE_BYTES
        end = max(start + 1, int(np.searchsorted(ends, most, side="right")))
        yield batch.slice(start, end - start)
        start = end


def _texts(part: Path) -> list[str]:
    """Columns of text, which are read as codes and what they stand for: one that repeats is written out when it is known how
    long the rows are."""
    return [
        field.name
        for field in pq.read_schema(part)
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]


def _written_out(batch: pa.RecordBatch, texts: Sequence[str]) -> pa.RecordBatch:
    names = batch.schema.names
    columns = [
        one.dictionary_decode() if name in texts else one for name, one in zip(names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=names)


def bytes_of_rows(batch: pa.RecordBatch) -> Lengths:
    """About what each row takes, its texts written out."""
    total = np.full(batch.num_rows, VALUE_BYTES * batch.num_columns, np.int64)
    for column in batch.columns:
        if (lengths := _letters(column)) is not None:
            total += lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return total


def _letters(column: Any) -> Any:
    """Bytes of each text; None for what is none."""
    if pa.types.is_dictionary(column.type):
        lengths = _letters(column.dictionary)
        return None if lengths is None else lengths.take(column.indices)
    return (
        pc.binary_length(column) if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) else None
    )
