"""Typed record batches written as Parquet parts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.ingestion.result import Part

ROW_GROUP_ROWS = 65_536
# What one row group may hold in memory: 65,536 rows of 2,000 columns would be a gigabyte.
ROW_GROUP_BYTES = 64 << 20
PART_ROWS = 262_144
PART_BYTES = 64 << 20

ARROW_TYPES: dict[str, Any] = {
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "category": pa.string(),
    "text": pa.string(),
    "image": pa.string(),  # the SHA-256 of the file's bytes
    "datetime": pa.timestamp("us", "UTC"),
}


class PartWriter:
    """Collects batches into row groups and row groups into parts; call `close` for the list of parts."""

    def __init__(self, destination: Path, schema: Any) -> None:
        self._destination, self._schema = destination, schema
        self._pending: list[Any] = []
        self._pending_rows = self._pending_bytes = 0
        self._writer: Any = None
        self._path = destination
        self._part_rows = 0
        self.parts: list[Part] = []

    def write(self, batch: Any) -> None:
        """Take one batch of the schema given."""
        offset = 0
        while offset < batch.num_rows:
            piece = batch.slice(offset, min(ROW_GROUP_ROWS - self._pending_rows, batch.num_rows - offset))
            offset += piece.num_rows
            self._pending.append(piece)
            self._pending_rows += piece.num_rows
            self._pending_bytes += piece.nbytes
            if self._pending_rows >= ROW_GROUP_ROWS or self._pending_bytes >= ROW_GROUP_BYTES:
                self._flush()

    def close(self) -> list[Part]:
        """Write what is pending; the finished parts in order."""
        if self._pending_rows:
            self._flush()
        self._finish_part()
        return self.parts

    def abandon(self) -> None:
        """Close the open file without keeping it."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        if self._writer is None:
            self._path = self._destination / f"part-{len(self.parts):05d}.parquet"
            self._writer = pq.ParquetWriter(
                self._path,
                self._schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=self._dictionary_columns(),
                write_statistics=True,
                coerce_timestamps=None,
            )
        table = pa.Table.from_batches(self._pending, schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._part_rows += self._pending_rows
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        if self._part_rows >= PART_ROWS or self._path.stat().st_size >= PART_BYTES:
            self._finish_part()

    def _dictionary_columns(self) -> list[str]:
        """Strings repeat; floats and unique integers only fill a dictionary to throw it away."""
        return [item.name for item in self._schema if pa.types.is_string(item.type)]

    def _finish_part(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        self.parts.append(
            Part(self._path.name, self._part_rows, self._path.stat().st_size, file_sha256(self._path)),
        )
        self._part_rows = 0


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
