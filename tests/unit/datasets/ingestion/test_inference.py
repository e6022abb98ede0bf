"""Types are decided over the whole file, and values survive."""

from __future__ import annotations

import json

import pytest

from tests.unit.datasets.ingestion.conftest import Ingest


def _column(values: list[str], delimiter: str = ",") -> str:
    return f"v{delimiter}k\n" + "".join(f"{value}{delimiter}{row}\n" for row, value in enumerate(values))


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        (["1", "-2", "+3", ""], "integer", [1, -2, 3, None]),
        ([" 1", "2 ", "NA"], "integer", [1, 2, None]),
        (["0", "1", "1"], "integer", [0, 1, 1]),
        (["9223372036854775807", "-9223372036854775808"], "integer", [2**63 - 1, -(2**63)]),
        (["1.5", "2", ".5", "3.", "1e3"], "number", [1.5, 2.0, 0.5, 3.0, 1000.0]),
        (["1.5", "nan", "NaN"], "number", [1.5, None, None]),
        (["9223372036854775808", "1"], "number", [2.0**63, 1.0]),
        (['"1,234.5"', '"12,345"', "7"], "number", [1234.5, 12345.0, 7.0]),
        (['"1,5"', '"22,75"'], "number", [1.5, 22.75]),
        (["true", "FALSE", "True", ""], "boolean", [True, False, True, None]),
        (["yes", "no", "no"], "boolean", [True, False, False]),
        (["y", "n", "N"], "boolean", [True, False, False]),
        (["t", "f", "f"], "boolean", [True, False, False]),
        (["n", "n", "n"], "category", ["n", "n", "n"]),
        (["yes", "no", "maybe", "no"], "category", ["yes", "no", "maybe", "no"]),
        (["true", "no", "true"], "category", ["true", "no", "true"]),
        (["00123", "04567", "04567"], "category", ["00123", "04567", "04567"]),
        (["0x1F", "0x1F"], "category", ["0x1F", "0x1F"]),
        (["2024-01-31", "2024-02-29"], "datetime", ["2024-01-31T00:00:00Z", "2024-02-29T00:00:00Z"]),
        (
            ["2024-01-31T10:00:00+02:00", "2024-01-31"],
            "datetime",
            ["2024-01-31T08:00:00Z", "2024-01-31T00:00:00Z"],
        ),
        (["2024-01-31 10:00:00.123456789", ""], "datetime", ["2024-01-31T10:00:00.123456Z", None]),
        (["31/01/2024", "01/02/2024"], "datetime", ["2024-01-31T00:00:00Z", "2024-02-01T00:00:00Z"]),
        (["01/31/2024", "02/01/2024 3:05 PM"], "datetime", ["2024-01-31T00:00:00Z", "2024-02-01T15:05:00Z"]),
        (["31.1.2024", "1.2.2024 08:30"], "datetime", ["2024-01-31T00:00:00Z", "2024-02-01T08:30:00Z"]),
        (["2024/1/31", "2024/12/1"], "datetime", ["2024-01-31T00:00:00Z", "2024-12-01T00:00:00Z"]),
        (["3 Mar 2024", "14 December 2023"], "datetime", ["2024-03-03T00:00:00Z", "2023-12-14T00:00:00Z"]),
        (['"March 3, 2024"', '"Dec 14, 2023"'], "datetime", ["2024-03-03T00:00:00Z", "2023-12-14T00:00:00Z"]),
        (["31/02/2024", "01/02/2024"], "text", ["31/02/2024", "01/02/2024"]),
        (["2023-02-30", "2023-02-28"], "text", ["2023-02-30", "2023-02-28"]),
        (["3 Foo 2024", "3 Mar 2024"], "text", ["3 Foo 2024", "3 Mar 2024"]),
        (["1", "x", "2"], "text", ["1", "x", "2"]),
        (["2024-01-31", "5"], "text", ["2024-01-31", "5"]),
        ([" padded ", "text"], "text", [" padded ", "text"]),
        (["x", "NA", "-", "y"], "text", ["x", None, None, "y"]),
    ],
)
def test_type_and_values(ingested: Ingest, values: list[str], kind: str, stored: list[object]) -> None:
    result, rows = ingested(_column(values))
    assert result.state == "ready", result.problems
    assert result.columns[0].type == kind
    assert [row["v"] for row in rows] == stored


def test_decimal_commas_with_semicolons(ingested: Ingest) -> None:
    result, rows = ingested(_column(["1,5", "1.234,25", "7"], ";"))
    assert result.columns[0].type == "number"
    assert [row["v"] for row in rows] == [1.5, 1234.25, 7.0]


def test_a_comma_before_three_digits_follows_the_delimiter(ingested: Ingest) -> None:
    _, with_commas = ingested(_column(['"1,234"', '"5,678"']))
    _, with_semicolons = ingested(_column(["1,234", "5,678"], ";"))
    assert [row["v"] for row in with_commas] == [1234.0, 5678.0]
    assert [row["v"] for row in with_semicolons] == [1.234, 5.678]


def test_ambiguous_dates_are_settled_by_one_row_of_the_column(ingested: Ingest) -> None:
    values = ["01/02/2024"] * 5000 + ["13/02/2024"]
    result, rows = ingested(_column(values))
    assert rows[0]["v"] == "2024-02-01T00:00:00Z"
    assert "ambiguous_date" not in {problem.code for problem in result.problems}


def test_a_word_far_down_demotes_the_column_and_loses_nothing(ingested: Ingest) -> None:
    result, rows = ingested(_column([str(number) for number in range(9000)] + ["oops"]))
    assert result.columns[0].type == "text"
    assert [rows[0]["v"], rows[8999]["v"], rows[9000]["v"]] == ["0", "8999", "oops"]


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("text", ["1", "x", "0"]),
        ("category", ["1", "x", "0"]),
        ("number", [1.0, None, 0.0]),
        ("integer", [1, None, 0]),
        ("boolean", [True, None, False]),
        ("datetime", [None, None, None]),
    ],
)
def test_a_chosen_type_wins(ingested: Ingest, kind: str, stored: list[object]) -> None:
    result, rows = ingested(_column(["1", "x", "0"]), types={"v": kind})
    assert result.columns[0].type == kind
    assert [row["v"] for row in rows] == stored
    unreadable = [problem for problem in result.problems if problem.code == "unreadable_values"]
    assert [problem.row for problem in unreadable] == (
        [] if kind in ("text", "category") else [2 if kind == "datetime" else 3]
    )


def test_a_chosen_text_keeps_missing_markers(ingested: Ingest) -> None:
    _, rows = ingested(_column(["NA", "DE", "?"]), types={"v": "text"})
    assert [row["v"] for row in rows] == ["NA", "DE", "?"]


@pytest.mark.parametrize(("types", "code"), [({"nope": "text"}, "unknown_column"), ({"v": "money"}, "unknown_type")])
def test_an_impossible_choice_is_refused(ingested: Ingest, types: dict[str, str], code: str) -> None:
    result, _ = ingested(_column(["1"]), types=types)
    assert (result.state, result.problems[0].code) == ("rejected", code)


@pytest.mark.parametrize(("labels", "kind"), [(50, "category"), (60, "text")])
def test_category_needs_repetition(ingested: Ingest, labels: int, kind: str) -> None:
    content = "label,name\n" + "".join(f"kind {number % labels},person {number}\n" for number in range(600))
    result, _ = ingested(content)
    assert [column.type for column in result.columns] == [kind, "text"]


def test_ndjson_keys_come_in_order_of_appearance(ingested: Ingest) -> None:
    result, rows = ingested('{"b": 1}\n{"a": true, "b": 2.5}\n{"c": "x"}\n', filename="d.ndjson")
    assert [(column.name, column.type) for column in result.columns] == [
        ("b", "number"),
        ("a", "boolean"),
        ("c", "text"),
    ]
    assert rows == [
        {"b": 1.0, "a": None, "c": None},
        {"b": 2.5, "a": True, "c": None},
        {"b": None, "a": None, "c": "x"},
    ]


@pytest.mark.parametrize("completions", [["4", "7"], ["yes", "no"], ["2024-01-31", "2024-02-29"], ["None", "1.50"]])
def test_completions_stay_as_they_are_written(ingested: Ingest, completions: list[str]) -> None:
    lines = [json.dumps({"prompt": str(row), "completion": text}) for row, text in enumerate(completions)]
    result, rows = ingested("\n".join(lines), filename="pairs.ndjson")
    assert [(column.name, column.type) for column in result.columns] == [("prompt", "text"), ("completion", "text")]
    assert [row["completion"] for row in rows] == completions


@pytest.mark.parametrize("filename", ["pairs.csv", "pairs.ndjson"])
@pytest.mark.parametrize(
    ("completions", "kind"),
    [(["4", "7"], "integer"), (["yes", "no"], "boolean"), (["2024-01-31", "2024-02-29"], "datetime")],
)
def test_that_completions_were_kept_as_texts_is_told(
    ingested: Ingest, completions: list[str], kind: str, filename: str
) -> None:
    result, _ = ingested(_pairs(completions, filename), filename=filename)
    told = [problem for problem in result.problems if problem.code == "kept_as_text"]
    assert [(problem.column, problem.severity) for problem in told] == [("completion", "warning")]
    assert f"read as {kind}" in told[0].detail and "choose another type" in told[0].detail


@pytest.mark.parametrize(("completions", "types"), [(["one", "two"], {}), (["4", "7"], {"completion": "text"}),
                                                    (["4", "7"], {"completion": "integer"})])  # fmt: skip
def test_texts_and_chosen_types_of_completions_need_no_notice(
    ingested: Ingest, completions: list[str], types: dict[str, str]
) -> None:
    result, _ = ingested(_pairs(completions, "pairs.csv"), types=types)
    assert result.state == "ready" and "kept_as_text" not in {problem.code for problem in result.problems}


def _pairs(completions: list[str], filename: str) -> str:
    rows = [{"prompt": f"ask {text}", "completion": text} for text in completions]
    if filename.endswith("csv"):
        return "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows)
    return "\n".join(map(json.dumps, rows))


def test_a_completion_without_a_prompt_is_a_column_like_any_other(ingested: Ingest) -> None:
    result, _ = ingested('{"completion": "4"}\n{"completion": "7"}\n', filename="numbers.ndjson")
    assert result.columns[0].type == "integer"


def test_a_type_that_is_chosen_counts_for_completions_too(ingested: Ingest) -> None:
    result, _ = ingested("prompt,completion\n1,2\n3,4\n", types={"completion": "integer"})
    assert [column.type for column in result.columns] == ["text", "integer"]
