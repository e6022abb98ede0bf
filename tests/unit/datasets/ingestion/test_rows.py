"""Pages of rows, sorted and not, over several parts and row groups."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.ingestion.export import neutralise
from datasets.ingestion.names import clean_filename
from datasets.ingestion.rows import count_rows, read_rows

VALUES = np.random.default_rng(3).permutation(1000)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    paths = []
    for number in range(4):
        values = VALUES[number * 250 : (number + 1) * 250]
        table = pa.table(
            {
                "v": pa.array(values, mask=values % 100 == 7),
                "x": values / 2,
                "t": pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 250, pa.timestamp("us", "UTC")),
                "n": np.arange(number * 250, (number + 1) * 250),
            }
        )
        paths.append(tmp_path / f"part-{number:05d}.parquet")
        pq.write_table(table, paths[-1], row_group_size=60)
    return paths


@pytest.mark.parametrize(
    ("offset", "limit"), [(0, 5), (58, 4), (248, 5), (995, 50), (1000, 5), (5000, 5), (0, 1000), (3, 0)]
)
def test_pages_in_stored_order(parts: list[Path], offset: int, limit: int) -> None:
    rows = read_rows(parts, offset, limit)
    assert [row["n"] for row in rows] == list(range(1000))[offset : offset + limit]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("offset", "limit"), [(0, 10), (500, 10), (985, 100)])
def test_sorted_pages_put_missing_last(parts: list[Path], descending: bool, offset: int, limit: int) -> None:
    known = sorted((int(v) for v in VALUES if v % 100 != 7), reverse=descending)
    expected = (known + [None] * 10)[offset : offset + limit]
    assert [row["v"] for row in read_rows(parts, offset, limit, "v", descending)] == expected


def test_columns_are_chosen_and_values_are_json(parts: list[Path]) -> None:
    assert read_rows(parts, 0, 1, "n", columns=["t", "n"]) == [{"t": "2024-01-01T00:00:00Z", "n": 0}]
    assert count_rows(parts) == 1000
    assert read_rows([], 0, 10) == []


def test_bad_questions_are_refused(parts: list[Path]) -> None:
    with pytest.raises(KeyError):
        read_rows(parts, 0, 1, "nope")
    with pytest.raises(KeyError):
        read_rows(parts, 0, 1, columns=["nope"])
    with pytest.raises(ValueError, match="negative"):
        read_rows(parts, -1, 1)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@x", "'@x"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_exports_neutralise_formulas(cell: str, written: str) -> None:
    assert neutralise(cell) == written


@pytest.mark.parametrize(
    ("label", "cleaned"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\x.csv", "x.csv"),
        ("a\x00b\n<c>.csv", "abc.csv"),
        ("..", "upload"),
        ("", "upload"),
        ("x" * 500 + ".csv", "x" * 116 + ".csv"),
    ],
)
def test_file_names_are_labels(label: str, cleaned: str) -> None:
    assert clean_filename(label) == cleaned
