"""How a CSV file is written: delimiter, quoting, preamble, header; decided on the first rows."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from datasets.ingestion.decoding import PreparedText
from datasets.ingestion.inference import TEXTS, ColumnEvidence
from datasets.ingestion.result import Findings, Rejected, shown

SNIFF_BYTES = 1 << 18
SNIFF_ROWS = 400
DELIMITERS = (",", ";", "\t", "|", ":", " ")
# Commas and tabs separate far oftener than the others; the weight only breaks near ties.
WEIGHTS = {",": 1.0, "\t": 1.0, ";": 0.99, "|": 0.98, ":": 0.55, " ": 0.5}
# Spaces and colons occur in any prose: they separate only where nearly every row agrees.
PROSE_MARKS = (":", " ")
PROSE_SCORE = 0.5
PROSE_AGREEMENT = 0.9
# Rejected everywhere as a control character, so it can stand for "one column, nothing separates".
NO_DELIMITER = "\x1f"
DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe", ":": "colon", " ": "space"}
TYPED = re.compile(
    r"""\s*(?:[+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][+-]?\d+)?%?      # number
    |\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[ T]\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?   # date
    |[^\W\d_]+(?:[ _-][^\W\d_]+)*|)\s*""",
    re.VERBOSE,
)
NUMERIC = re.compile(r"\s*[+-]?(?:\d[\d.,]*|[.,]\d+)(?:[eE][+-]?\d+)?\s*")
CLOCK = re.compile(r"\s*\d{1,2}:\d\d(?::\d\d(?:[.,]\d+)?)?\s*")
DATE = re.compile(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b.*")


@dataclass(slots=True)
class Dialect:
    """How to read the text from byte `start` (the header row, when there is one)."""

    delimiter: str
    quotechar: str
    escapechar: str | None
    skip_initial_space: bool
    start: int
    first_row: int
    header: bool
    fields: int
    header_cells: list[str]
    data_start: int

    def reader_options(self) -> dict[str, Any]:
        """Keyword arguments for `csv.reader`."""
        return {
            "delimiter": self.delimiter,
            "quotechar": self.quotechar,
            "escapechar": self.escapechar,
            "doublequote": True,
            "skipinitialspace": self.skip_initial_space,
        }


def sniff(prepared: PreparedText, findings: Findings) -> Dialect:
    """The dialect of the prepared text; raises Rejected when there is no table in it."""
    with prepared.path.open("rb") as stream:
        stream.seek(prepared.start)
        raw = stream.read(SNIFF_BYTES)
    complete = len(raw) < SNIFF_BYTES
    sample = raw.decode("utf-8", errors="ignore")
    if not sample.strip():
        raise Rejected(
            "empty_file", "The file is empty. Upload a file with a header row and at least one row below it."
        )
    skipped, first_row, forced = _preamble(sample, findings)
    sample = sample[skipped:]
    if not sample.strip():
        raise Rejected("no_rows", "The file holds only comments. Add a header row and at least one row below it.")
    delimiter, quotechar, escapechar = _best(sample, complete, forced)
    plain = _rows(sample, _options(delimiter, quotechar, escapechar, skip_space=False), complete)
    skip_space = delimiter == " " or (delimiter != "\t" and _spaces_follow(plain))
    start = prepared.start + len(raw.decode("utf-8", errors="ignore")[:skipped].encode())
    options = _options(delimiter, quotechar, escapechar, skip_space)
    rows = _rows(sample, options, complete)
    if not rows:
        raise Rejected(
            "cell_too_long",
            "The first row is longer than 256 KB. Check that lines end where they should.",
            row=first_row,
        )
    blanks, rows = _drop_leading_blank(rows)
    _refuse_title_rows(rows, first_row + blanks, delimiter)
    header = _has_header(rows)
    data_offset = _end_of_first_record(sample, options) if header else 0
    return Dialect(
        delimiter=delimiter,
        quotechar=quotechar,
        escapechar=escapechar,
        skip_initial_space=skip_space,
        start=start,
        first_row=first_row + blanks,
        header=header,
        fields=len(rows[0]),
        header_cells=rows[0] if header else [],
        data_start=start + data_offset,
    )


def _options(delimiter: str, quotechar: str, escapechar: str | None, skip_space: bool) -> dict[str, Any]:
    return {
        "delimiter": delimiter,
        "quotechar": quotechar,
        "escapechar": escapechar,
        "doublequote": True,
        "skipinitialspace": skip_space,
    }


def _preamble(sample: str, findings: Findings) -> tuple[int, int, str | None]:
    """(characters to skip, row the table begins on, delimiter told by an Excel `sep=` line)."""
    match = re.match(r"\s*sep=(.)\r?\n", sample, re.IGNORECASE)
    if match:
        return match.end(), 2, match.group(1)
    position = row = 0
    while position < len(sample):
        end = re.compile(r"\r\n|\n|\r").search(sample, position)
        line = sample[position : end.start() if end else len(sample)]
        if line.strip() and not (line.startswith("#") and _is_comment(line, sample, position)):
            break
        position, row = (end.end() if end else len(sample)), row + 1
    if sample[:position].strip():
        findings.warn("preamble_skipped", f"The first {row} lines are comments or blank and were skipped.", row=1)
    return position, row + 1, None


def _is_comment(line: str, sample: str, position: int) -> bool:
    """A `#` line is a comment unless it is a header: `#id,name` above rows with as many fields."""
    if line.startswith(("# ", "##")):
        return True
    following = sample[position + len(line) :].lstrip("\r\n").split("\n", 1)[0]
    return not any(
        0 < line.count(mark) == following.count(mark) for mark in (",", ";", "\t", "|") if not following.startswith("#")
    )


def _best(sample: str, complete: bool, forced: str | None) -> tuple[str, str, str | None]:
    escapechar = "\\" if '\\"' in sample else None
    ranked: list[tuple[float, str, str]] = []
    for quotechar in ('"', "'"):
        if quotechar == "'" and not _single_quoted(sample):
            continue
        for delimiter in (forced,) if forced else DELIMITERS:
            rows = _rows(sample, _options(delimiter, quotechar, escapechar, delimiter != "\t"), complete)
            score = _score(rows) * WEIGHTS.get(delimiter, 0.9) * (1.0 if quotechar == '"' else 1.02)
            if delimiter in PROSE_MARKS and not forced and (score < PROSE_SCORE or not _separates(rows, delimiter)):
                continue
            ranked.append((score, delimiter, quotechar))
    best = max(ranked, key=lambda entry: entry[0], default=(0.0, "", ""))
    if best[0] > 0:
        return best[1], best[2], escapechar
    return forced or NO_DELIMITER, '"', escapechar


def _single_quoted(sample: str) -> bool:
    """Apostrophes quote only where they open and close fields, and double quotes do not."""
    opened = len(re.findall(r"(?:^|[,;\t|])'", sample, re.MULTILINE))
    closed = len(re.findall(r"'(?:[,;\t|]|\r?$)", sample, re.MULTILINE))
    return opened >= 2 and abs(opened - closed) <= 0.1 * opened and sample.count('"') < opened


def _rows(sample: str, options: dict[str, Any], complete: bool) -> list[list[str]]:
    """The first rows, blank ones included as []; the last one is dropped when the sample cuts it."""
    reader = csv.reader(io.StringIO(sample, newline=""), **options)
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows.append(row)
            if len(rows) > SNIFF_ROWS:
                return rows
    except csv.Error:
        return rows
    return rows if complete else rows[:-1]


def _score(rows: Sequence[Sequence[str]]) -> float:
    """How table-like a reading is, 0 if nothing separates: share of regular rows by share of typed cells."""
    filled = [row for row in rows if row]
    if not filled:
        return 0.0
    modal, regular = max(Counter(len(row) for row in filled).items(), key=lambda item: (item[1], item[0]))
    first = len(filled[0])
    below_a_title = first == 1 and regular >= max(2, 0.9 * (len(filled) - 1))
    if modal == 1 or (first == 1 and regular < 0.8 * len(filled) and not below_a_title):
        # Only the first row separates: a header over broken rows, or one column of prose.
        modal, regular = first, 1
    if modal == 1:
        return 0.0
    cells = [cell for row in filled[:100] for cell in row]
    typed = sum(1 for cell in cells if TYPED.fullmatch(cell[:200])) / max(len(cells), 1)
    return float((regular / len(filled)) * (0.3 + typed) * (1 + min(modal, 50) / 500))


def _separates(rows: Sequence[Sequence[str]], delimiter: str) -> bool:
    """Whether a mark of prose separates fields: a one-word header over sentences is no table, a title over numbers is."""
    filled = [row for row in rows if row]
    return bool(filled) and (_agree(filled, len(filled[0])) or _values_below(filled[1:], delimiter))


def _agree(rows: Sequence[Sequence[str]], fields: int) -> bool:
    return sum(len(row) == fields for row in rows) >= PROSE_AGREEMENT * len(rows)


def _values_below(rows: Sequence[Sequence[str]], delimiter: str) -> bool:
    """Whether the rows below the first are a table of values by themselves. Words count for nothing, as sentences of as
    many words are none; neither do lines that are one value each, such as times.
    """
    modal = Counter(len(row) for row in rows).most_common(1)[0][0] if rows else 1
    if modal == 1 or not _agree(rows, modal):
        return False
    regular = [row for row in rows if len(row) == modal]
    cells = [cell for row in regular for cell in row]
    return 2 * sum(map(_is_value, cells)) > len(cells) and not _each_one_value([delimiter.join(row) for row in regular])


def _each_one_value(lines: Sequence[str]) -> bool:
    """Whether each line is one date, time or number: `12 Jan 2024`, `10:30` and `1 234` hold a mark of prose."""
    evidence = ColumnEvidence()
    evidence.observe(pa.array(lines, pa.string()), 0)
    return evidence.decide(None) is not TEXTS or all(CLOCK.fullmatch(line) for line in lines)


def _spaces_follow(rows: Sequence[Sequence[str]]) -> bool:
    """Whether nearly every field after the first begins with a space that is no part of it."""
    cells = [cell for row in rows for cell in row[1:]]
    return bool(cells) and sum(cell.startswith(" ") for cell in cells) > 0.8 * len(cells)


def _drop_leading_blank(rows: list[list[str]]) -> tuple[int, list[list[str]]]:
    blanks = 0
    while rows and not rows[0]:
        blanks, rows = blanks + 1, rows[1:]
    return blanks, rows


def _refuse_title_rows(rows: Sequence[Sequence[str]], first_row: int, delimiter: str) -> None:
    """A title above the table would become a one-column header and make every row ragged."""
    filled = [row for row in rows if row]
    counts = Counter(len(row) for row in filled)
    modal, regular = counts.most_common(1)[0]
    if len(filled[0]) == 1 and modal > 1 and regular >= 2:
        raise Rejected(
            "preamble",
            f"Row {first_row} has one field, {shown(filled[0][0])}, where the table below it has {modal}. "
            f"Delete the lines above the header row{_or_quote(delimiter)}.",
            row=first_row,
        )


def _or_quote(delimiter: str) -> str:
    """Telephone numbers, too, are numbers between spaces."""
    if delimiter not in PROSE_MARKS:
        return ""
    return f", or, if each line is one value, put it in quotes, as the {DELIMITER_NAMES[delimiter]} separates columns"


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: its cells differ in kind from those below them."""
    first, below = rows[0], [row for row in rows[1:] if row]
    if not below:
        return not all(_is_value(cell) for cell in first)
    votes = sum(
        _vote(cell, [row[position] for row in below if position < len(row)]) for position, cell in enumerate(first)
    )
    if votes:
        return votes > 0
    return (
        not _is_value(first[0]) if len(first) == 1 else not all(_is_value(cell) or not cell.strip() for cell in first)
    )


def _vote(cell: str, below: Sequence[str]) -> int:
    filled = [value for value in below if value.strip()]
    if not filled or not cell.strip():
        return 0
    values = sum(1 for value in filled if _is_value(value))
    if values >= 0.9 * len(filled):
        return -1 if _is_value(cell) else 1
    return -1 if cell in filled and len(set(filled)) < len(filled) else 0


def _is_value(cell: str) -> bool:
    return bool(NUMERIC.fullmatch(cell) or DATE.fullmatch(cell))


def _end_of_first_record(sample: str, options: dict[str, Any]) -> int:
    """Bytes up to the end of the first record, leading blank lines included."""
    consumed = 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for line in io.StringIO(sample, newline=""):
            consumed += len(line.encode())
            yield line

    for row in csv.reader(lines(), **options):
        if row:
            break
    return consumed
