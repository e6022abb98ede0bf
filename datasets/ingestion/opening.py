"""From a path to a source: recognise the format, prepare the text, name the columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets.ingestion.csv_source import CsvSource
from datasets.ingestion.decoding import PreparedText, prepare_text
from datasets.ingestion.dialect import NO_DELIMITER, Dialect, sniff
from datasets.ingestion.formats import ARCHIVES, HEAD_BYTES, Format, detect_format
from datasets.ingestion.images.opening import open_images
from datasets.ingestion.images.tar_archive import ZSTD_MAGIC, open_unpacked, unpacking_errors
from datasets.ingestion.limits import Limits
from datasets.ingestion.names import unique_names
from datasets.ingestion.ndjson_source import NdjsonSource
from datasets.ingestion.parquet_source import open_parquet
from datasets.ingestion.result import Detected, Findings, Rejected, shown
from datasets.ingestion.sources import Source

COMPRESSIONS = {"gzip": b"\x1f\x8b", "zstd": ZSTD_MAGIC}


def open_source(
    source: Path,
    work: Path,
    filename: str,
    content_type: str,
    limits: Limits,
    findings: Findings,
    detected: Detected,
    on_read: Callable[[float, str], None],
) -> Source:
    """A readable source; fills `detected`; raises Rejected for what cannot be read."""
    _check_size(source, limits)
    detected.format = kind = _detected_format(source, filename, content_type, detected)

    def read(fraction: float) -> None:
        on_read(fraction, "reading")

    def table(path: Path, folder: Path, name: str, its_own: Detected) -> Source:
        its_own.format = inner = _detected_format(path, name, "", its_own)
        if inner in ARCHIVES:
            raise Rejected("nested_archive", f"{shown(name)} is an archive and not a table. Unpack it first.")
        return _open_table(path, inner, folder, limits, findings, its_own, read)

    if kind in ARCHIVES:
        return open_images(source, kind, work, limits, findings, detected, on_read, table)
    return _open_table(source, kind, work, limits, findings, detected, read)


def _check_size(source: Path, limits: Limits) -> None:
    size = source.stat().st_size
    if size == 0:
        raise Rejected(
            "empty_file", "The file is empty. Upload a file with a header row and at least one row below it."
        )
    if size > limits.bytes:
        raise Rejected(
            "file_too_large",
            f"The file has {size:,} bytes, the limit is {limits.bytes:,}. Split it and append the pieces.",
        )


def _detected_format(source: Path, filename: str, content_type: str, detected: Detected) -> Format:
    with source.open("rb") as stored:
        mark = stored.read(4)
    with unpacking_errors(), open_unpacked(source) as stream:
        head = stream.read(HEAD_BYTES)
    detected.compression = next((name for name, magic in COMPRESSIONS.items() if mark.startswith(magic)), None)
    if detected.compression == "zstd" and not head:
        raise Rejected("damaged_archive", "The archive is cut off or damaged. Make it anew and upload it whole.")
    kind = detect_format(head, filename, content_type, source)
    if detected.compression == "zstd" and kind != "tar":
        raise Rejected("compressed_file", "This is compressed by Zstandard. Unpack it, or compress with gzip.")
    if detected.compression and kind == "zip":
        raise Rejected("compressed_file", "A zip compresses itself: upload it without gzip around it.")
    return kind


def _open_table(
    source: Path,
    kind: Format,
    work: Path,
    limits: Limits,
    findings: Findings,
    detected: Detected,
    on_read: Callable[[float], None],
) -> Source:
    if kind == "parquet":
        if detected.compression:
            raise Rejected("compressed_parquet", "Parquet compresses itself: upload the file without gzip around it.")
        return open_parquet(source, limits, findings)
    prepared = prepare_text(source, work, limits, findings)
    detected.encoding = prepared.encoding
    if kind == "ndjson":
        return NdjsonSource(prepared, work, limits, findings, on_read)
    return _open_csv(prepared, limits, findings, detected)


def _open_csv(prepared: PreparedText, limits: Limits, findings: Findings, detected: Detected) -> Source:
    dialect = sniff(prepared, findings)
    detected.delimiter = None if dialect.delimiter == NO_DELIMITER else dialect.delimiter
    detected.quotechar, detected.header = dialect.quotechar, dialect.header
    if dialect.fields > limits.columns:
        raise Rejected(
            "too_many_columns",
            f"The file has {dialect.fields:,} columns, the limit is {limits.columns:,}. Remove columns, "
            "or transpose "
            "the table if rows and columns are swapped.",
            row=dialect.first_row,
        )
    names, blank = _column_names(dialect, findings)
    return CsvSource(prepared, dialect, names, blank, limits, findings)


def _column_names(dialect: Dialect, findings: Findings) -> tuple[list[str], set[int]]:
    if not dialect.header:
        findings.warn(
            "no_header",
            f"The first row holds values, so the columns were named col_1 to col_{dialect.fields}. "
            "Add a header row to name them.",
            row=dialect.first_row,
        )
        return [f"col_{position + 1}" for position in range(dialect.fields)], set()
    names, blank, repeated = unique_names(dialect.header_cells)
    for position in blank:
        findings.warn(
            "blank_header",
            f"Column {position + 1} has no name in the header and was named {shown(names[position])}. Name it.",
            row=dialect.first_row,
            column=names[position],
        )
    for position in repeated:
        findings.warn(
            "duplicate_header",
            f"The header names {shown(dialect.header_cells[position])} more than once; column "
            f"{position + 1} was "
            f"renamed {shown(names[position])}. Give every column its own name.",
            row=dialect.first_row,
            column=names[position],
        )
    return names, set(blank)
