"""Rows added to a version: what fits, what is refused and in which words, and which parts stay as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datasets.ingestion import extension
from datasets.ingestion.added import misfits
from datasets.ingestion.extension import leading_large
from datasets.ingestion.isolation import ingest_in_child
from datasets.ingestion.limits import Limits
from datasets.ingestion.pipeline import extend, ingest
from datasets.ingestion.result import Base, Column, IngestResult
from datasets.ingestion.rows import read_rows

HEADER = "n,x,flag,day,word\n"
ROW = {"n": 7, "x": 1.5, "flag": True, "day": "2026-03-01", "word": "red"}
COLUMNS = [
    Column("n", "integer", False),
    Column("x", "number", False),
    Column("flag", "boolean", False),
    Column("day", "datetime", False),
    Column("word", "category", False),
]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """Forty rows in one part."""
    return _base(tmp_path, 40)


def _base(tmp_path: Path, rows: int) -> Base:
    words = ("red", "green", "blue")
    text = HEADER + "".join(
        f"{n},{n / 4},{'true' if n % 2 else 'false'},2026-01-{n % 28 + 1:02d},{words[n % 3]}\n" for n in range(rows)
    )
    (tmp_path / "base.csv").write_text(text)
    (tmp_path / "base").mkdir()
    result = ingest(tmp_path / "base.csv", tmp_path / "base", filename="d.csv", content_type="", limits=Limits())
    assert result.state == "ready"
    assert [(column.name, column.type) for column in result.columns] == [(one.name, one.type) for one in COLUMNS]
    return Base([tmp_path / "base" / part.path for part in result.parts], result.columns)


def _extend(tmp_path: Path, base: Base, rows: list[Any], limits: Limits | None = None) -> IngestResult:
    source, destination = tmp_path / "rows.ndjson", tmp_path / "new"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    destination.mkdir(exist_ok=True)
    return extend(source, destination, base=base, limits=limits or Limits())


def _rows(tmp_path: Path, base: Base, result: IngestResult) -> list[dict[str, Any]]:
    parts = [*base.parts[: result.kept], *(tmp_path / "new" / part.path for part in result.parts)]
    return read_rows(parts, 0, 10**6)


def test_rows_follow_those_of_the_version_in_the_same_columns(tmp_path: Path, base: Base) -> None:
    result = _extend(tmp_path, base, [ROW, {"n": 8.0, "word": "new word"}])
    assert result.state == "ready" and result.rows == 42
    assert [column.type for column in result.columns] == [column.type for column in base.columns]
    rows = _rows(tmp_path, base, result)
    assert rows[:40] == read_rows(base.parts, 0, 40)
    assert rows[40] == ROW | {"day": "2026-03-01T00:00:00Z"}
    assert rows[41] == {"n": 8, "x": None, "flag": None, "day": None, "word": "new word"}
    assert result.columns[1].nullable and not result.columns[0].nullable


def test_the_profile_is_that_of_all_rows(tmp_path: Path, base: Base) -> None:
    result = _extend(tmp_path, base, [ROW | {"n": 1000}])
    assert result.profile["n"]["max"] == 1000 and result.profile["n"]["min"] == 0
    assert result.profile["n"]["count"] == 41


def test_rows_that_come_later_leave_the_same_profile_as_rows_of_one_file(tmp_path: Path, base: Base) -> None:
    result = _extend(tmp_path, base, [ROW])
    (tmp_path / "whole").mkdir()
    with (tmp_path / "base.csv").open("a") as out:
        out.write("7,1.5,true,2026-03-01,red\n")
    whole = ingest(tmp_path / "base.csv", tmp_path / "whole", filename="d.csv", content_type="", limits=Limits())
    assert (result.rows, result.columns, result.profile) == (whole.rows, whole.columns, whole.profile)


def test_large_parts_stay_and_small_ones_at_the_end_are_written_with_the_new_rows(
    tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _extend(tmp_path, base, [ROW]).kept == 0
    monkeypatch.setattr(extension, "SMALL_PART_ROWS", 40)
    result = _extend(tmp_path, base, [ROW])
    assert result.kept == 1 and [part.rows for part in result.parts] == [1] and result.rows == 41
    assert leading_large([40, 3, 50, 39, 1]) == 3
    assert leading_large([]) == leading_large([1, 2]) == 0


def test_an_integer_column_becomes_a_number_column_for_a_fraction_and_every_row_is_kept(
    tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "SMALL_PART_ROWS", 1)
    result = _extend(tmp_path, base, [ROW, ROW | {"n": 0.5}])
    assert result.kept == 0 and result.columns[0].type == "number"
    assert [row["n"] for row in _rows(tmp_path, base, result)] == [*range(40), 7, 0.5]
    warned = next(problem for problem in result.problems if problem.code == "type_widened")
    assert warned.row == 2 and warned.column == "n" and warned.severity == "warning"


@pytest.mark.parametrize(("value", "kind"), [(2**63 - 1, "integer"), (2**63, "number"), (-(2**70), "number")])
def test_integers_beyond_64_bits_are_numbers(tmp_path: Path, base: Base, value: int, kind: str) -> None:
    result = _extend(tmp_path, base, [{"n": value}])
    assert result.columns[0].type == kind
    assert _rows(tmp_path, base, result)[40]["n"] == (value if kind == "integer" else float(value))


@pytest.mark.parametrize(
    ("row", "column", "code"),
    [
        ([1], None, "not_an_object"),
        (None, None, "not_an_object"),
        ({}, None, "empty_row"),
        ({"m": 1}, "m", "unknown_column"),
        ({"n": "7"}, "n", "wrong_type"),
        ({"n": True}, "n", "wrong_type"),
        ({"x": "1,5"}, "x", "wrong_type"),
        ({"x": float("inf")}, "x", "infinite_value"),
        ({"x": 10**400}, "x", "number_too_large"),
        ({"flag": 1}, "flag", "wrong_type"),
        ({"day": 20260301}, "day", "wrong_type"),
        ({"day": "yesterday"}, "day", "wrong_type"),
        ({"day": "2026-02-30"}, "day", "wrong_type"),
        ({"word": 3}, "word", "wrong_type"),
        ({"word": "a\x00b"}, "word", "nul_byte"),
        ({"word": "\ud800"}, "word", "invalid_text"),
        ({"word": "a" * 1_100_000}, "word", "cell_too_long"),
        ({"word": ["a"]}, "word", "nested_value"),
        ({"n": {"a": 1}}, "n", "nested_value"),
    ],
)
def test_what_does_not_fit_is_named_with_its_row_and_column(row: Any, column: str | None, code: str) -> None:
    problems = misfits([ROW, ROW, row], COLUMNS, Limits())
    assert [(problem.row, problem.column, problem.code) for problem in problems] == [(3, column, code)]
    assert problems[0].detail.startswith("Row 3") and len(problems[0].detail) > 40


@pytest.mark.parametrize(
    "row",
    [
        dict.fromkeys(ROW),
        {"n": 3.0},
        {"n": 3.5},
        {"x": 2},
        {"day": "2026-03-01T10:00:00+02:00"},
        {"day": "2026-03-01 10:00"},
        {"word": ""},
        {"word": "‘é’ 🦊"},
    ],
)
def test_what_fits(row: dict[str, Any]) -> None:
    assert misfits([row], COLUMNS, Limits()) == []


def test_problems_come_in_row_order_and_stop_at_the_limit() -> None:
    rows = [{"day": "never"}, {"n": "a"}, {"day": "never", "x": "b"}]
    assert [problem.row for problem in misfits(rows, COLUMNS, Limits())] == [1, 2, 3, 3]
    assert len(misfits([{"n": "a"}] * 500, COLUMNS, Limits(problems=10))) == 10


def test_without_known_columns_only_what_no_version_could_hold_is_refused() -> None:
    assert misfits([{"anything": 1}, {"else": "text"}], [], Limits()) == []
    rows = [{"a": [1]}, {"\ud800": 1}, {"a": float("nan")}]
    assert [problem.code for problem in misfits(rows, [], Limits())] == [
        "nested_value", "invalid_text", "infinite_value",
    ]  # fmt: skip


def test_rows_that_do_not_fit_are_rejected_when_they_join(tmp_path: Path, base: Base) -> None:
    result = _extend(tmp_path, base, [ROW, {"n": "seven"}])
    assert result.state == "rejected" and not result.parts
    assert (result.problems[0].row, result.problems[0].column) == (2, "n")


def test_more_rows_than_a_version_may_have_are_refused(tmp_path: Path, base: Base) -> None:
    result = _extend(tmp_path, base, [ROW], Limits(rows=40))
    assert result.state == "rejected" and result.problems[0].code == "too_many_rows"


def test_the_child_extends_too(tmp_path: Path) -> None:
    base = _base(tmp_path, 20_000)
    (tmp_path / "rows.ndjson").write_text(json.dumps(ROW) + "\n")
    result = ingest_in_child(
        tmp_path / "rows.ndjson",
        tmp_path / "new",
        filename="rows.ndjson",
        content_type="application/x-ndjson",
        limits=Limits(),
        base=base,
    )
    assert result.state == "ready", result.problems
    assert (result.kept, result.rows, [part.rows for part in result.parts]) == (1, 20_001, [1])
    assert result.detected.format == "ndjson"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["part-00000.parquet"]
