"""CSV as batches of text columns.

The fast reader is Arrow's. Whatever it stumbles over is read again by the exact reader, which knows on
which row and in which field a file goes wrong; both give the same cells for a well-formed file.
"""

from __future__ import annotations

import bisect
import csv
import io
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from datasets.ingestion.decoding import PreparedText
from datasets.ingestion.dialect import DELIMITER_NAMES, NO_DELIMITER, Dialect
from datasets.ingestion.limits import Limits
from datasets.ingestion.result import Findings, Rejected, Reported, shown
from datasets.ingestion.sources import Batch, internal_names

BLOCK_BYTES = 4 << 20
EXACT_BATCH_ROWS = 16_384
EXACT_BATCH_CELLS = 400_000
# Cells may be long: a batch of documents ends sooner than one of numbers.
EXACT_BATCH_CHARACTERS = 4 << 20
# A field beyond this is not even looked at: an unclosed quote would swallow the rest of the file.
FIELD_CEILING = 8 << 20


class FastPathFailed(Exception):
    """Arrow's reader gave up; the exact reader finds out why."""


class CsvSource:
    """One CSV file; `exact` chooses the reader."""

    def __init__(
        self,
        prepared: PreparedText,
        dialect: Dialect,
        names: list[str],
        blank: set[int],
        limits: Limits,
        findings: Findings,
    ) -> None:
        self.names, self.blank = names, blank
        self.typed, self.kinds = False, list[str]()
        self.delimiter: str | None = dialect.delimiter
        self._prepared, self._dialect, self._limits, self._findings = prepared, dialect, limits, findings
        self._position = 0
        self._blank_records: array[int] | None = None
        self._reported = False
        quotes = prepared.quotes[dialect.quotechar]
        self.exact = quotes % 2 == 1 or dialect.delimiter == " " or (dialect.skip_initial_space and quotes > 0)

    def batches(self) -> Iterator[Batch]:
        self._position = 0
        yield from self._checked(self._exact_batches() if self.exact else self._fast_batches())

    def fraction(self) -> float:
        return min(1.0, self._position / max(self._prepared.size, 1))

    def row_number(self, record: int) -> int:
        row = self._dialect.first_row + int(self._dialect.header) + record
        if not self._prepared.blank_lines:
            return row
        if self._blank_records is None:
            self._blank_records = self._find_blank_records()
        return row + bisect.bisect_right(self._blank_records, record)

    def _fast_batches(self) -> Iterator[Batch]:
        columns = internal_names(len(self.names))
        stream = pa.OSFile(str(self._prepared.path))
        stream.seek(self._dialect.data_start)
        try:
            reader = pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(column_names=columns, block_size=BLOCK_BYTES),
                parse_options=self._parse_options(),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(columns, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    check_utf8=False,  # the scan has checked the whole file
                ),
            )
            for batch in reader:
                self._position = stream.tell()
                yield self._trimmed(batch) if self._dialect.skip_initial_space else batch
        except pa.ArrowInvalid as error:
            raise FastPathFailed(str(error)) from error
        finally:
            stream.close()

    def _parse_options(self) -> pacsv.ParseOptions:
        dialect = self._dialect
        return pacsv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char=dialect.quotechar,
            escape_char=dialect.escapechar or False,
            newlines_in_values=self._prepared.quotes[dialect.quotechar] > 0,
            ignore_empty_lines=True,
        )

    @staticmethod
    def _trimmed(batch: Batch) -> Batch:
        return pa.RecordBatch.from_arrays(
            [pc.utf8_ltrim(column, characters=" ") for column in batch.columns], names=batch.schema.names
        )

    def _checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Refuse too many rows and too long cells."""
        records = 0
        for batch in batches:
            self._check_cells(batch, records)
            records += batch.num_rows
            if records > self._limits.rows:
                raise Rejected(
                    "too_many_rows",
                    f"The file has more than {self._limits.rows:,} rows. Split it or take a sample.",
                )
            yield batch

    def _check_cells(self, batch: Batch, records: int) -> None:
        if batch.nbytes <= self._limits.cell_bytes:
            return
        for position, column in enumerate(batch.columns):
            length = pc.max(pc.binary_length(column)).as_py() or 0
            if length > self._limits.cell_bytes:
                lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
                raise self._long_cell(self.row_number(records + int(np.argmax(lengths))), position, length)

    def _long_cell(self, row: int, position: int, length: int) -> Rejected:
        return Rejected(
            "cell_too_long",
            f"Row {row}, column {shown(self.names[position])}: the cell holds {length:,} bytes, the limit is "
            f"{self._limits.cell_bytes:,}. Shorten it, or look for a quote that is opened there and never "
            "closed.",
            row=row,
            column=self.names[position],
        )

    def _exact_batches(self) -> Iterator[Batch]:
        width = len(self.names)
        size = max(1, min(EXACT_BATCH_ROWS, EXACT_BATCH_CELLS // width))
        ragged = characters = 0
        pending: list[list[str]] = []
        for row_number, row in self._numbered_rows():
            if len(row) > width and not any(cell.strip() for cell in row[width:]):
                self._report_trailing(row_number)
                row = row[:width]
            if len(row) != width:
                ragged += 1
                self._report_ragged(row_number, row)
                continue
            self._check_row(row_number, row)
            pending.append(row)
            characters += sum(map(len, row))
            if len(pending) >= size or characters >= EXACT_BATCH_CHARACTERS:
                yield _text_batch(pending, width)
                pending, characters = [], 0
        if ragged:
            raise Reported
        if pending:
            yield _text_batch(pending, width)

    def _numbered_rows(self, *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
        """Filled rows with the number a spreadsheet shows; raises Rejected for broken quoting."""
        csv.field_size_limit(FIELD_CEILING)
        row_number = self._dialect.first_row + int(self._dialect.header) - 1
        with self._prepared.path.open("rb") as raw:
            raw.seek(self._dialect.data_start)
            text = io.TextIOWrapper(raw, encoding="utf-8", newline="")
            options = self._dialect.reader_options()
            reader = csv.reader(text, strict=strict, **options)
            while True:
                row_number += 1
                begun = reader.line_num
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise self._quoting_rejection(str(error), row_number, begun) from error
                self._position += sum(map(len, row)) + len(row)
                if row and not (len(row) == 1 and not row[0].strip() and len(self.names) > 1):
                    yield row_number, row

    def _quoting_rejection(self, reason: str, row: int, begun: int) -> Rejected:
        quote = self._dialect.quotechar
        if "unexpected end of data" in reason or "field larger" in reason:
            return Rejected(
                "unclosed_quote" if self._prepared.quotes[quote] else "cell_too_long",
                f"Row {row}: a quote ({quote}) is opened and not closed, so the rest of the file is read "
                "as one cell. "
                f"Close it, or double it ({quote}{quote}) when it is part of the text.",
                row=row,
            )
        return Rejected(
            "bad_quoting",
            f"Row {row}: text follows a closing quote ({quote}), or a quote is not closed before it. Put "
            "the whole "
            f"cell in quotes and double the quotes inside it ({quote}{quote}).",
            row=row,
        )

    def _report_trailing(self, row: int) -> None:
        if not self._reported:
            self._reported = True
            self._findings.warn(
                "trailing_delimiter",
                f"Row {row} and perhaps others end with empty extra fields, which were dropped. "
                "Export the file without a delimiter at the line's end.",
                row=row,
            )

    def _report_ragged(self, row: int, cells: Sequence[str]) -> None:
        expected, found = len(self.names), len(cells)
        delimiter = self._dialect.delimiter
        named = DELIMITER_NAMES.get(delimiter, repr(delimiter)) if delimiter != NO_DELIMITER else "delimiter"
        fix = (
            f"Put cells that contain a {named} in quotes, or remove the extra ones."
            if found > expected
            else f"Add the missing {named}s, or remove the row; a line break inside a cell must be quoted."
        )
        self._findings.error(
            "ragged_row",
            f"Row {row}: expected {expected} fields as in the "
            f"{'header' if self._dialect.header else 'first row'}, "
            f"found {found}. {fix}",
            row=row,
            column=self.names[found] if found < expected else self.names[-1],
        )

    def _check_row(self, row_number: int, row: Sequence[str]) -> None:
        limit = self._limits.cell_bytes
        if sum(map(len, row)) * 4 <= limit:
            return
        for position, cell in enumerate(row):
            if len(cell) * 4 > limit and len(cell.encode()) > limit:
                raise self._long_cell(row_number, position, len(cell.encode()))

    def _find_blank_records(self) -> array[int]:
        """For every blank row, how many records precede it; as lenient about quotes as the fast reader."""
        found = array("q")
        first = self._dialect.first_row + int(self._dialect.header)
        for record, (row_number, _) in enumerate(self._numbered_rows(strict=False)):
            found.extend([record] * (row_number - first - record - len(found)))
        return found


def _text_batch(rows: Sequence[Sequence[str]], width: int) -> Batch:
    columns = [pa.array([cell or None for cell in column], pa.string()) for column in zip(*rows, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=internal_names(width))
