"""Parquet as batches of typed columns. The footer is judged before any page is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.ingestion.limits import Limits
from datasets.ingestion.names import unique_names
from datasets.ingestion.parts import ARROW_TYPES
from datasets.ingestion.result import Findings, Problem, Rejected, shown
from datasets.ingestion.sources import Batch, internal_names

BATCH_ROWS = 16_384
BATCH_CELLS = 4_000_000
# What a batch of long texts may hold: repeated ones are small in the file and in the dictionary.
BATCH_BYTES = 64 << 20
# A table this small in memory may be as repetitive as it likes.
RATIO_GRACE_BYTES = 1 << 30
TEXT_GRACE_BYTES = 256 << 20
# Repeated labels are what dictionaries are for; only what a text has beyond this counts as expansion.
LABEL_BYTES = 64
SMALLEST_FILE = 12
FOOTER_BYTES = 256 << 20
DAMAGED = "Write the file again and upload the whole of it."


class ParquetSource:
    """One Parquet file whose columns all have a type this platform stores."""

    def __init__(self, path: Path, file: Any, names: list[str], kinds: list[str], limits: Limits) -> None:
        self.names, self.kinds, self.typed = names, kinds, True
        self.blank: set[int] = set()
        self.delimiter: str | None = None
        self._path, self._limits = path, limits
        self._rows: int = file.metadata.num_rows
        self._row_bytes = _row_bytes(file.metadata)
        # Repeated strings stay a dictionary until their decoded size is known.
        self._dictionaries = [item.name for item in file.schema_arrow if _is_text(item.type)]
        self._done: int = 0

    def batches(self) -> Iterator[Batch]:
        self._done = decoded = 0
        size = max(64, min(BATCH_ROWS, BATCH_CELLS // max(len(self.names), 1), BATCH_BYTES // self._row_bytes))
        ceiling = max(TEXT_GRACE_BYTES, self._limits.expansion_ratio * self._path.stat().st_size)
        try:
            with pq.ParquetFile(
                self._path, read_dictionary=self._dictionaries, buffer_size=1 << 20, pre_buffer=False
            ) as file:
                for batch in file.iter_batches(batch_size=size):
                    added = self._check_texts(batch)
                    decoded += added
                    if decoded > min(ceiling, self._limits.bytes):
                        raise _expansion(self._limits)
                    for piece in _pieces(batch, added):
                        yield self._converted(piece)
                        self._done += piece.num_rows
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowSerializationError) as error:
            raise self._damaged(error) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._damaged(error) from error

    def row_number(self, record: int) -> int:
        return record + 1

    def fraction(self) -> float:
        return self._done / max(self._rows, 1)

    def _damaged(self, error: Exception) -> Rejected:
        return Rejected(
            "damaged_parquet",
            f"The Parquet data after row {self._done} does not decode ({_reason(error)}). {DAMAGED}",
            row=self._done + 1,
        )

    def _check_texts(self, batch: Batch) -> int:
        """Decoded bytes of long texts; raises Rejected for a cell over the limit or with a NUL."""
        total = 0
        for name, column in zip(self.names, batch.columns, strict=True):
            values = column.dictionary if pa.types.is_dictionary(column.type) else column
            if not _is_text(values.type) or not len(values):
                continue
            lengths = pc.fill_null(pc.binary_length(values), 0)
            found = pc.max(lengths).as_py()
            if found > self._limits.cell_bytes:
                raise self._long_cell(name, column, lengths, found)
            total += _decoded_bytes(column, lengths)
            if pc.any(pc.match_substring(values.cast(pa.binary()), b"\x00")).as_py():
                raise Rejected(
                    "nul_byte",
                    f"Column {shown(name)} holds a NUL character after row {self._done}. Remove it.",
                    row=self._done + 1,
                    column=name,
                )
        return total

    def _long_cell(self, name: str, column: Any, lengths: Any, found: int) -> Rejected:
        each = lengths.take(column.indices) if pa.types.is_dictionary(column.type) else lengths
        row = self._done + int(np.argmax(pc.fill_null(each, 0).to_numpy(zero_copy_only=False))) + 1
        return Rejected(
            "cell_too_long",
            f"Row {row}, column {shown(name)}: the cell holds {found:,} bytes, the limit is "
            f"{self._limits.cell_bytes:,}. Shorten it.",
            row=row,
            column=name,
        )

    def _converted(self, batch: Batch) -> Batch:
        arrays = [
            self._cast(name, column, kind)
            for name, column, kind in zip(self.names, batch.columns, self.kinds, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, names=internal_names(len(arrays)))

    def _cast(self, name: str, column: Any, kind: str) -> Any:
        try:
            if kind == "datetime":
                return _as_utc(column)
            return pc.cast(column, ARROW_TYPES[kind], safe=kind != "number")
        except pa.ArrowInvalid as error:
            raise Rejected(
                "unconvertible_value",
                f"Column {shown(name)} of type {column.type} holds a value after row {self._done} that "
                "does not fit "
                f"{kind} ({_reason(error)}). Convert the column before writing the file.",
                row=self._done + 1,
                column=name,
            ) from error


def open_parquet(path: Path, limits: Limits, findings: Findings) -> ParquetSource:
    """Judge magic bytes, footer and schema; raises Rejected for a file that cannot or must not be decoded."""
    _check_footer(path)
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        encrypted = "encrypt" in str(error).lower()
        raise Rejected(
            "encrypted_parquet" if encrypted else "damaged_parquet",
            "The Parquet file is encrypted. Write it without encryption."
            if encrypted
            else f"The Parquet footer does not decode ({_reason(error)}). {DAMAGED}",
        ) from error
    with file:
        _check_metadata(file.metadata, path.stat().st_size, limits)
        names, blank, repeated = unique_names(file.schema_arrow.names)
        _report_names(file.schema_arrow.names, names, blank, repeated, findings)
        kinds = _kinds(file.schema_arrow, names, findings)
        return ParquetSource(path, file, names, kinds, limits)


def _check_footer(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - 8))
        tail = stream.read(8)
    if size >= SMALLEST_FILE and tail[4:] == b"PARE":
        raise Rejected("encrypted_parquet", "The Parquet file is encrypted. Write it without encryption.")
    if size < SMALLEST_FILE or tail[4:] != b"PAR1":
        raise Rejected(
            "truncated_parquet",
            f"The Parquet file is cut off: its end mark is missing, so the transfer or the writer stopped. {DAMAGED}",
        )
    footer = int.from_bytes(tail[:4], "little")
    if footer > min(size - SMALLEST_FILE, FOOTER_BYTES):
        raise Rejected("damaged_parquet", f"The Parquet footer announces more bytes than there are. {DAMAGED}")


def _check_metadata(metadata: Any, stored: int, limits: Limits) -> None:
    if metadata.num_columns > limits.columns:
        raise Rejected(
            "too_many_columns",
            f"The file has {metadata.num_columns:,} columns, the limit is {limits.columns:,}. Remove columns.",
        )
    if metadata.num_rows > limits.rows:
        raise Rejected(
            "too_many_rows",
            f"The file has {metadata.num_rows:,} rows, the limit is {limits.rows:,}. Split it.",
        )
    if metadata.num_rows < 0 or metadata.num_columns == 0:
        raise Rejected("no_columns", f"The Parquet file describes no columns. {DAMAGED}")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    announced = sum(group.total_byte_size for group in groups)
    largest = max((group.total_byte_size for group in groups), default=0)
    cells = metadata.num_rows * metadata.num_columns * 8
    if max(announced, cells) > max(RATIO_GRACE_BYTES, limits.expansion_ratio * stored):
        raise _expansion(limits)
    if announced > limits.bytes:
        raise Rejected(
            "file_too_large",
            f"The data unpack to {announced:,} bytes, the limit is {limits.bytes:,}. Split it.",
        )
    if largest > limits.memory_bytes // 2:
        raise Rejected(
            "row_group_too_large",
            f"One row group unpacks to {largest:,} bytes. Write smaller ones: row_group_size=100_000.",
        )


def _expansion(limits: Limits) -> Rejected:
    return Rejected(
        "expansion_ratio",
        f"The file unpacks to more than {limits.expansion_ratio:g} times its size, which is refused as a "
        "decompression "
        "bomb. Split the table or write it with less repetition.",
    )


def _report_names(
    stored: list[str], names: list[str], blank: list[int], repeated: list[int], findings: Findings
) -> None:
    for position in (*blank, *repeated):
        findings.warn(
            "blank_header" if position in blank else "duplicate_header",
            f"Column {position + 1} is named {shown(stored[position])}, which is blank or taken; it was "
            "renamed "
            f"{shown(names[position])}. Give every column its own name.",
            column=names[position],
        )


def _kinds(schema: Any, names: list[str], findings: Findings) -> list[str]:
    kinds: list[str] = []
    refused: list[Problem] = []
    for name, item in zip(names, schema, strict=True):
        kind = _kind(item.type)
        if kind is None:
            refused.append(_refusal(name, item.type))
        elif pa.types.is_decimal(item.type) or pa.types.is_time(item.type):
            findings.warn(
                "type_converted",
                f"Column {shown(name)} of type {item.type} was stored as {kind}. Convert it before "
                "writing the file if "
                "you need it otherwise.",
                column=name,
            )
        kinds.append(kind or "text")
    for problem in refused[:-1]:
        findings.add(problem)
    if refused:
        last = refused[-1]
        raise Rejected(last.code, last.detail, column=last.column)
    return kinds


def _refusal(name: str, type_: Any) -> Problem:
    nested = pa.types.is_nested(type_)
    return Problem(
        code="nested_column" if nested else "unsupported_type",
        detail=f"Column {shown(name)} has the type {shown(type_)}, which a table of features cannot hold. "
        + ("Flatten it into plain columns" if nested else "Convert it to text, numbers or timestamps")
        + " and write the file again.",
        column=name,
    )


def _kind(type_: Any) -> str | None:
    types = pa.types
    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    tests: tuple[tuple[str, Any], ...] = (
        ("boolean", types.is_boolean),
        ("integer", types.is_integer),
        ("number", types.is_floating),
        ("number", types.is_decimal),
        ("datetime", types.is_timestamp),
        ("datetime", types.is_date),
        ("text", types.is_time),
        ("text", _is_text),
        ("text", types.is_null),
    )
    return next((kind for kind, test in tests if test(type_)), None)


def _is_text(type_: Any) -> bool:
    types = pa.types
    return bool(types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_))


def _row_bytes(metadata: Any) -> int:
    """Unpacked bytes of a row in the row group with the longest ones, at least 1."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return max((int(group.total_byte_size) // max(group.num_rows, 1) for group in groups), default=1) or 1


def _pieces(batch: Batch, decoded: int) -> Iterator[Batch]:
    """The rows in as many slices as keep one near BATCH_BYTES once dictionaries are written out."""
    count = -(-decoded // BATCH_BYTES)
    size = max(1, -(-batch.num_rows // max(count, 1)))
    for start in range(0, batch.num_rows, size):
        yield batch.slice(start, size)


def _decoded_bytes(column: Any, lengths: Any) -> int:
    """Bytes beyond LABEL_BYTES in every cell, summed."""
    beyond = pc.max_element_wise(pc.subtract(pc.cast(lengths, pa.int64()), LABEL_BYTES), 0)
    each = beyond.take(column.indices) if pa.types.is_dictionary(column.type) else beyond
    return int(pc.sum(each).as_py() or 0)


def _as_utc(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_date(column.type):
        column = pc.cast(column, pa.timestamp("us"))
    zone = column.type.tz
    return pc.cast(pc.cast(column, pa.timestamp("us", zone), safe=False), ARROW_TYPES["datetime"])


def _reason(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:120]
