"""Whatever the bytes, the answer is a result: nothing but the two known exceptions leaves a reader."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets.ingestion.limits import Limits
from datasets.ingestion.pipeline import ingest
from datasets.ingestion.rows import read_rows

SYNTAX = [*",,;\t|\"'\n\n\r :#\\{}[]=", "\r\n", "sep=;\n"]
VALUES = ["a", "b", "1", "2.5", "-3", '{"a": 1}\n', "null", "NaN", "true", "2024-01-02", "é", "00", "1e999"]
PIECES = st.sampled_from(SYNTAX + VALUES)
TEXTS = st.lists(PIECES, max_size=60).map("".join)
NAMES = st.sampled_from(["d.csv", "d.ndjson", "d.txt", "upload"])


def _check(content: bytes, filename: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "upload"
        source.write_bytes(content)
        result = ingest(source, Path(folder), filename=filename, content_type="", limits=Limits())
        json.dumps(result.to_dict(), allow_nan=False)
        if result.state == "rejected":
            assert result.problems[0].severity == "error"
            assert len(result.problems[0].detail) > 30
            return
        rows = read_rows([Path(folder) / part.path for part in result.parts], 0, 1000)
        assert len(rows) == result.rows == sum(part.rows for part in result.parts)
        json.dumps(rows, allow_nan=False)


@settings(max_examples=250, deadline=None)
@given(TEXTS, NAMES)
@example('"', "d.csv")
@example("'a'\n'b", "d.csv")
@example("#\n#,\n1,2", "d.csv")
def test_any_text(text: str, filename: str) -> None:
    _check(text.encode(), filename)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), NAMES)
def test_any_bytes(content: bytes, filename: str) -> None:
    _check(content, filename)
