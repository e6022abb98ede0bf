"""Delimiter, encoding and header as people really write them."""

from __future__ import annotations

import pytest

from tests.unit.datasets.ingestion.conftest import Ingest

CAT = "the cat sat on the mat"


@pytest.mark.parametrize(
    ("text", "delimiter", "names", "first"),
    [
        ("a,b\n1,x\n2,y\n", ",", ["a", "b"], [1, "x"]),
        ("a\tb\n1\thello there, you\n2\tb, c\n", "\t", ["a", "b"], [1, "hello there, you"]),
        ('id;name;price\n1;"A;B";1,50\n2;C;2,75\n', ";", ["id", "name", "price"], [1, "A;B", 1.5]),
        ("a|b\n1|x y\n2|z\n", "|", ["a", "b"], [1, "x y"]),
        ("x y z\n1 2 3\n4  5 6\n", " ", ["x", "y", "z"], [1, 2, 3]),
        ("hour:value\n1:2\n3:4\n", ":", ["hour", "value"], [1, 2]),
        ('39, State, "a, b"\n50, Self, c\n', ",", ["col_1", "col_2", "col_3"], [39, "State", "a, b"]),
        ('t,u\nx,"a, b, c, d, e"\ny,"f, g, h, i"\n', ",", ["t", "u"], ["x", "a, b, c, d, e"]),
        ("text\nHello, world\nfoo bar\nbaz, qux, quux\n", None, ["text"], ["Hello, world"]),
        ("text\nthe cat sat on the mat\nthe dog lay on the rug\na bird sang in the tree\n", None, ["text"], [CAT]),
        ("text\n" + "good film\nbad film\n" * 30, None, ["text"], ["good film"]),
        ("text\n" + "note: hello\nanswer: bye\n" * 10, None, ["text"], ["note: hello"]),
        ("text\n" + "two words\n" * 8 + "now three words\n" * 2, None, ["text"], ["two words"]),
        ("a text\n" + "two words\n" * 8 + "now three words\n" * 2, None, ["a text"], ["two words"]),
        ("x y z\n" + "1 2 3\n" * 30, " ", ["x", "y", "z"], [1, 2, 3]),
        ("name city\nbob rome\nalice oslo\nbob oslo\n", " ", ["name", "city"], ["bob", "rome"]),
        ("sep= \nx y\n1 2\n", " ", ["x", "y"], [1, 2]),
        ("when\n" + "2024-01-31 10:30:00\n2024-02-01 11:45:10\n" * 5, None, ["when"], ["2024-01-31T10:30:00Z"]),
        ("when\n" + "12 Jan 2024\n13 Feb 2024\n" * 5, None, ["when"], ["2024-01-12T00:00:00Z"]),
        ("at\n" + "10:30\n11:45\n" * 5, None, ["at"], ["10:30"]),
        ("at\n" + "10:30:05\n" * 18 + "NA\n", None, ["at"], ["10:30:05"]),
        ("when\n" + "2024-01-31 10:30:00\n" * 18 + "unknown\n", None, ["when"], ["2024-01-31 10:30:00"]),
        ("phone\n" + '"555 123 4567"\n' * 9, None, ["phone"], ["555 123 4567"]),
        ("price\n" + "1 234\n5 678\n" * 5, None, ["price"], [1234.0]),
        ("text\n" + "call 112\nroom 101\n" * 5, None, ["text"], ["call 112"]),
        ("text,label\nthe cat sat,1\nthe dog lay,0\n", ",", ["text", "label"], ["the cat sat", 1]),
        ("text\tlabel\nthe cat sat\t1\nthe dog lay\t0\n", "\t", ["text", "label"], ["the cat sat", 1]),
        ("# made, by hand\na,b\n1,2\n3,4\n", ",", ["a", "b"], [1, 2]),
        ("#id,name\n1,x\n2,y\n", ",", ["#id", "name"], [1, "x"]),
        ("SEP=|\na|b\n1|x\n", "|", ["a", "b"], [1, "x"]),
        ("2019,2020\n1.5,2.5\n4.5,5\n", ",", ["col_1", "col_2"], [2019.0, 2020.0]),
        ("name,city\nbob,rome\nalice,oslo\nbob,oslo\n", ",", ["name", "city"], ["bob", "rome"]),
        ("\n\na,b\n1,2\n", ",", ["a", "b"], [1, 2]),
    ],
)
def test_dialect(ingested: Ingest, text: str, delimiter: str | None, names: list[str], first: list[object]) -> None:
    result, rows = ingested(text)
    assert result.state == "ready", result.problems
    assert result.detected.delimiter == delimiter
    assert [column.name for column in result.columns] == names
    assert list(rows[0].values()) == first


NUMBERS = "".join(f"{row} {row % 3} {row / 2}\n" for row in range(20))


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("Results\na b c\n0 0 0\n1 2 3\n4 5 6\n7 8 9\n", 3),
        ("Results\na b c\n" + NUMBERS, 3),
        ("Results\n" + NUMBERS, 3),
        ("Results\na:b:c\n" + NUMBERS.replace(" ", ":"), 3),
        ("Results\nday n\n" + "2024-01-31 5\n2024-02-01 6\n" * 5, 2),
    ],
)
def test_a_title_above_a_table_of_spaces_or_colons_is_refused_by_name(ingested: Ingest, text: str, fields: int) -> None:
    result, _ = ingested(text)
    assert result.state == "rejected" and result.problems[0].code == "preamble", result.problems
    assert result.problems[0].row == 1
    assert f"has {fields}. Delete the lines above the header row" in result.problems[0].detail
    assert "put it in quotes" in result.problems[0].detail


def test_a_title_above_commas_does_not_speak_of_quotes(ingested: Ingest) -> None:
    result, _ = ingested("Sales 2024\na,b,c\n1,2,3\n4,5,6\n")
    assert result.problems[0].code == "preamble" and "quotes" not in result.problems[0].detail


@pytest.mark.parametrize(
    "text",
    [
        "a:b:c\n" + "".join(f"{row}:0:0:5\n" for row in range(20)),
        "Report of 2024\n" + "".join(f"r{row} 0 0 4.5 7\n" for row in range(20)),
        "Report of 2024\nname a b c d\n" + "".join(f"r{row} 0 0 4.5 7\n" for row in range(20)),
    ],
)
def test_a_first_row_of_another_length_is_refused_with_the_rows(ingested: Ingest, text: str) -> None:
    result, _ = ingested(text)
    assert result.state == "rejected" and result.problems[0].code == "ragged_row", result.problems


def test_a_few_words_among_numbers_are_pointed_at(ingested: Ingest) -> None:
    result, _ = ingested(b"n\n1\n2\n3\nfoo\n4\n5\n")
    found = {problem.code: problem for problem in result.problems}["mixed_types"]
    assert found.row == 5 and "foo" in found.detail and "type to" not in found.detail


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Дата,Имя\n2024-01-01,Иван Петров\n2024-01-02,Мария Иванова и другие люди\n"),
        ("shift_jis", "名前,年齢\n山田太郎さん,30\n鈴木花子さん,25\n東京都千代田区,41\n"),
        ("latin-1", "id,color\n" + "1,röd\n2,blue\n3,green\n" * 20),
        ("latin-1", "name\nÅsa\nÅke\nÖrjan\n"),
        ("cp1252", "name,city\nRené,Besançon\nZoë,Orléans\nJürgen,Köln\n"),
        ("utf-16", "naïve,b\n1,ž\n"),
    ],
)
def test_encoding(ingested: Ingest, encoding: str, text: str) -> None:
    result, rows = ingested(text.encode(encoding))
    header, first = (line.split(",") for line in text.splitlines()[:2])
    assert [column.name for column in result.columns] == header
    assert [str(value).removesuffix("T00:00:00Z") for value in rows[0].values()] == first


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("a,b\n\n\n1,x\n2\n", 5),
        ('a,b\n1,"x\n\ny"\n2\n', 3),
        ("# c\n\na,b\n1,x\n2\n", 5),
        ("1,x\n2,y\n3\n", 3),
        ("a,b\r\n1,x\r\n2\r\n", 3),
    ],
)
def test_rows_count_as_in_a_spreadsheet(ingested: Ingest, text: str, row: int) -> None:
    result, _ = ingested(text)
    assert [(problem.code, problem.row) for problem in result.problems if problem.severity == "error"] == [
        ("ragged_row", row)
    ]


def test_warnings_count_blank_rows_too(ingested: Ingest) -> None:
    values = "".join(f"{number},x\n" for number in range(60))
    result, _ = ingested(f"v,w\n\n{values}\n\noops,x\n")
    assert {problem.code: problem.row for problem in result.problems}["mixed_types"] == 65
