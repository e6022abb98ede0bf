"""What is written in any usual dialect is read back equal."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.ingestion.limits import Limits
from datasets.ingestion.names import clean_header
from datasets.ingestion.pipeline import ingest
from datasets.ingestion.rows import read_rows

CELL = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), include_characters="\n,;\t|\"'"),
    max_size=12,
)
COLUMNS = ("name", "amount", "note")
ROWS = st.lists(
    st.tuples(CELL, st.integers(-(2**63), 2**63 - 1), CELL).map(lambda row: (f"a{row[0]}z", row[1], f"b{row[2]}y")),
    min_size=1,
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(
    rows=ROWS,
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    compressed=st.booleans(),
)
def test_csv_round_trip(
    rows: list[tuple[str, int, str]],
    delimiter: str,
    line_end: str,
    quoting: int,
    encoding: str,
    compressed: bool,
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    content = text.getvalue().encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "upload"
        source.write_bytes(gzip.compress(content) if compressed else content)
        result = ingest(source, Path(folder), filename="d.csv", content_type="text/csv", limits=Limits())
        assert result.state == "ready", result.problems
        assert result.detected.delimiter == delimiter
        stored = read_rows([Path(folder) / part.path for part in result.parts], 0, 100)
    assert [tuple(row.values()) for row in stored] == rows
    assert result.columns[1].type == "integer"


@given(st.text())
def test_clean_header_is_short_printable_and_stable(cell: str) -> None:
    name = clean_header(cell)
    assert len(name) <= 200
    assert name == name.strip()
    assert clean_header(name) == name
