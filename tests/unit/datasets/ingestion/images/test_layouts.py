"""What the paths of an archive, and a table in it, are taken to mean."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.ingestion.images.layout import read_folders
from datasets.ingestion.images.members import Member
from datasets.ingestion.limits import Limits
from datasets.ingestion.pipeline import ingest
from datasets.ingestion.result import IngestResult
from datasets.ingestion.rows import read_rows
from tests.fixtures.pictures import picture, zipped

Rows = list[dict[str, Any]]
PICTURES = {f"images/{index:03}.png": picture(index) for index in range(12)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def archived(tmp_path: Path) -> Any:
    def run(files: dict[str, bytes]) -> tuple[IngestResult, Rows]:
        source, parts = tmp_path / "upload", tmp_path / "parts"
        source.write_bytes(zipped(files))
        parts.mkdir()
        result = ingest(source, parts, filename="upload.zip", content_type="", limits=Limits())
        return result, read_rows([parts / part.path for part in result.parts], 0, 1000)

    return run


def _table(rows: list[tuple[Any, ...]], header: str = "image,age,kind") -> bytes:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]).encode()


def _named(names: list[str]) -> bytes:
    return _table([(name, index * 1.5, "ab"[index % 2]) for index, name in enumerate(names)])


def _codes(result: IngestResult) -> set[str]:
    return {problem.code for problem in result.problems}


# --- folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "labels", "splits"),
    [
        (["cat/1.png", "dog/1.png"], ["cat", "dog"], [None, None]),
        (["pets/cat/1.png", "pets/dog/1.png"], ["cat", "dog"], [None, None]),
        (["a/b/cat/1.png", "a/b/dog/1.png"], ["cat", "dog"], [None, None]),
        (["train/cat/1.png", "val/dog/1.png"], ["cat", "dog"], ["train", "val"]),
        (["data/Train/cat/1.png", "data/Test/dog/1.png"], ["cat", "dog"], ["Train", "Test"]),
        (["train/cat/1.png", "train/dog/1.png"], ["cat", "dog"], [None, None]),
        (["train/images/cat/1.png", "val/images/dog/1.png"], ["cat", "dog"], ["train", "val"]),
        (["train/1.png", "test/1.png"], [None, None], ["train", "test"]),
        (["1.png", "2.png"], [None, None], [None, None]),
        (["images/1.png", "images/2.png"], [None, None], [None, None]),
        (["cat/siamese/1.png", "dog/1.png"], ["cat", "dog"], [None, None]),
        (["train/1.png", "cat/1.png"], ["train", "cat"], [None, None]),
        (["cat/1.png", "1.png"], ["cat", None], [None, None]),
    ],
)
def test_folders_are_classes_and_splits(paths: list[str], labels: list[Any], splits: list[Any]) -> None:
    found = read_folders([Member(place, path, 1) for place, path in enumerate(paths)])
    assert [each.label for each in found.placed] == labels
    assert [each.split for each in found.placed] == splits


def test_class_folders_become_columns_in_the_order_of_paths(archived: Any) -> None:
    files = {"d/train/dog/b.png": picture(1), "d/train/cat/a.png": picture(2), "d/val/cat/c.png": picture(3)}
    result, rows = archived(files)
    assert [(column.name, column.type) for column in result.columns] == [
        ("file", "text"), ("split", "category"), ("image", "image"), ("label", "category"),
    ]  # fmt: skip
    assert [row["file"] for row in rows] == ["d/train/cat/a.png", "d/train/dog/b.png", "d/val/cat/c.png"]
    assert [(row["split"], row["label"]) for row in rows] == [("train", "cat"), ("train", "dog"), ("val", "cat")]
    assert [row["image"] for row in rows] == [_digest(files[row["file"]]) for row in rows]
    assert result.detected.layout == "folders"


def test_a_flat_folder_has_no_labels_and_says_so(archived: Any) -> None:
    result, rows = archived({f"all/{index}.png": picture(index) for index in range(5)})
    assert [column.name for column in result.columns] == ["file", "image"] and len(rows) == 5
    assert _codes(result) == {"no_labels"} and result.detected.layout == "flat"


def test_files_without_an_ending_are_looked_at(archived: Any) -> None:
    result, rows = archived({"cat/1": picture(1), "dog/2": picture(2), "dog/notes": b"hello"})
    assert len(rows) == 2 and _codes(result) == {"unknown_format"}


def test_the_profile_of_the_images(archived: Any) -> None:
    files = {"a/1.png": picture(1, (10, 20)), "a/2.jpg": picture(2, (30, 10), "JPEG"), "b/3.png": picture(3, mode="L"),
             "b/4.png": picture(1, (10, 20))}  # fmt: skip
    profile = archived(files)[0].profile
    image = profile["image"]
    assert (image["type"], image["count"], image["missing"], image["distinct"]) == ("image", 4, 0, 3)
    assert image["width"] == {"min": 10, "median": 12.0, "max": 30}
    assert image["height"] == {"min": 9, "median": 10.0, "max": 20}
    assert image["formats"] == {"PNG": 2, "JPEG": 1} and image["modes"] == {"RGB": 2, "L": 1}
    assert image["bytes"] == sum(len(content) for content in {*files.values()})
    assert all(0.3 < mean < 0.7 for mean in image["channels"]["mean"])
    assert all(0.1 < spread < 0.4 for spread in image["channels"]["std"])
    assert profile["file"]["names"] == "image"
    json.dumps(profile, allow_nan=False)


def test_pictures_count_upright(archived: Any) -> None:
    from PIL import Image

    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(turned, "JPEG", exif=exif)
    profile = archived({"a/1.jpg": turned.getvalue(), "b/2.jpg": turned.getvalue()})[0].profile["image"]
    assert (profile["width"]["max"], profile["height"]["max"]) == (20, 40)


# --- tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name_of",
    [
        lambda index: f"images/{index:03}.png",
        lambda index: f"./images/{index:03}.png",
        lambda index: f"images\\{index:03}.PNG",
        lambda index: f"/home/somebody/data/images/{index:03}.png",
        lambda index: f"{index:03}.png",
        lambda index: f"{index:03}",
    ],
)
@pytest.mark.parametrize("folder", ["", "set/"])
def test_rows_name_files_in_many_ways(archived: Any, name_of: Any, folder: str) -> None:
    files = {folder + path: content for path, content in PICTURES.items()}
    result, rows = archived({**files, f"{folder}labels.csv": _named([name_of(index) for index in range(12)])})
    assert result.state == "ready" and not _codes(result) & {"missing_file", "unnamed_files"}, result.problems
    assert [(column.name, column.type) for column in result.columns] == [
        ("image", "image"), ("age", "number"), ("kind", "category"),
    ]  # fmt: skip
    assert [row["image"] for row in rows] == [_digest(content) for content in PICTURES.values()]
    assert result.detected.layout == "table" and result.detected.delimiter == ","


def test_ndjson_and_parquet_tables(archived: Any, tmp_path: Path) -> None:
    rows = [{"path": path, "score": index, "ok": index % 2 == 0} for index, path in enumerate(PICTURES)]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    result, found = archived({**PICTURES, "rows.ndjson": lines})
    kinds = [("path", "image"), ("score", "integer"), ("ok", "boolean")]
    assert [(column.name, column.type) for column in result.columns] == kinds and len(found) == 12
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    (tmp_path / "parts").rename(tmp_path / "before")
    result, again = archived({**PICTURES, "rows.parquet": out.getvalue()})
    assert [(column.name, column.type) for column in result.columns] == kinds and again == found


def test_rows_without_a_usable_file_are_left_out_and_named_with_their_row(archived: Any) -> None:
    files = {**PICTURES, "images/002.png": b"damaged", "images/extra.png": picture(99)}
    names = [f"{index:03}.png" for index in range(12)] + ["gone.png", "", "also/gone.png"]
    result, rows = archived({**files, "labels.csv": _named(names)})
    assert result.rows == 12 and rows[-1]["image"] is None and rows[-1]["age"] == 19.5
    missing = {(problem.row, problem.file) for problem in result.problems if problem.code == "missing_file"}
    assert missing == {(14, "gone.png"), (16, "also/gone.png")}
    found = {problem.code: problem for problem in result.problems}
    assert found["unknown_format"].file == "images/002.png" and found["unnamed_files"].file == "images/extra.png"
    assert "3 rows were" in found["rows_left_out"].detail
    assert result.columns[0].nullable and result.profile["image"]["missing"] == 1
    assert [row["age"] for row in rows[:3]] == [0.0, 1.5, 4.5]


def test_rows_behind_the_left_out_ones_keep_their_numbers(archived: Any) -> None:
    rows = [(f"{index:03}.png", "x" if index == 11 else index) for index in range(12)]
    rows.insert(1, ("gone.png", 5))
    result, _ = archived({**PICTURES, "labels.csv": _table(rows, "image,number")})
    mixed = next(problem for problem in result.problems if problem.code == "mixed_types")
    assert mixed.row == 14, mixed.detail


def test_one_file_may_be_named_twice(archived: Any) -> None:
    result, rows = archived({**PICTURES, "labels.csv": _named(["000.png", "000.png", "001.png"])})
    assert result.rows == 3 and rows[0]["image"] == rows[1]["image"]
    assert result.images is not None and result.images.count == 2


def test_the_same_image_with_two_labels_is_told(archived: Any) -> None:
    table = _table([(f"{index % 11:03}.png", "ab"[index % 2]) for index in range(22)], "file,label")
    result, _ = archived({**PICTURES, "labels.csv": table})
    assert "conflicting_labels" in _codes(result)


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"a.csv": _named(["000.png", "001.png"]), "b.csv": _named(["002.png", "003.png"])}, "ambiguous_table",
         ("a.csv", "b.csv")),
        ({"a.csv": _table([("000.png", "001.png"), ("002.png", "003.png")], "image,mask")}, "ambiguous_file_column",
         ("image", "mask")),
        ({"a.csv": _table([("x.png", "1"), ("000.png", "2"), ("y.png", 3), ("z.png", 4)], "image,n")}, "no_file_column",
         ("a.csv", "1 of 4")),
        ({"images/1.png": picture(1), "images/0.png": picture(2), "a.csv": _table([("x.jpg", "1"), ("y.jpg", "0")], "image,digit")},
         "no_file_column", ("“image”", "0 of 2")),
        ({"a.csv": b""}, "empty_file", ("empty",)),
        ({"a.csv": b"\x89PNG\r\n\x1a\n"}, "image_file", ("PNG",)),
        ({f"{index}.csv": b"a\n1\n" for index in range(6)}, "ambiguous_table", ("6 tables",)),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_an_error_that_names_the_candidates(
    archived: Any, files: dict[str, bytes], code: str, words: tuple[str, ...]
) -> None:
    result, _ = archived({**PICTURES, **files})
    assert result.state == "rejected" and result.problems[0].code == code, result.problems
    assert all(word in result.problems[0].detail for word in words), result.problems[0]


def test_an_identifier_beside_the_name_is_no_rival(archived: Any) -> None:
    table = _table([(index, f"{index:03}.png", "ab"[index % 2]) for index in range(12)], "id,file,kind")
    result, _ = archived({**{f"{index:03}.png": picture(index) for index in range(12)}, "labels.csv": table})
    assert [(column.name, column.type) for column in result.columns][1] == ("file", "image")


SCANS = {f"images/{number}.png": picture(number) for number in range(1001, 1007)}


@pytest.mark.parametrize(
    ("beside", "value"),
    [
        ("format", "png"),
        ("format", ".png"),
        ("url", "https://example.org/pic{}.jpg"),
        ("url", "http://a.example/x/{}.png?s=1"),
    ],
)
@pytest.mark.parametrize("more", [{}, PICTURES])
def test_formats_and_web_addresses_are_no_lost_names(
    archived: Any, beside: str, value: str, more: dict[str, bytes]
) -> None:
    table = _table(
        [(number, value.format(number % 7), "ab"[number % 2]) for number in range(1001, 1007)], f"id,{beside},label"
    )
    result, _ = archived({**SCANS, **more, "labels.csv": table})
    assert result.state == "ready", result.problems
    assert (result.columns[0].name, result.columns[0].type, result.rows) == ("id", "image", 6)


def test_identifiers_that_name_most_images_are_no_chance_beside_names_of_old(archived: Any) -> None:
    table = _table([(number, f"old{number}.jpg") for number in range(1001, 1007)], "id,original")
    result, _ = archived({**SCANS, "labels.csv": table})
    assert result.state == "ready", result.problems
    assert [(column.name, column.type) for column in result.columns] == [("id", "image"), ("original", "text")]


def test_identifiers_that_name_few_images_yield_to_lost_names(archived: Any) -> None:
    table = _table([(number, f"old{number}.jpg") for number in range(1001, 1007)], "id,original")
    result, _ = archived({**SCANS, **PICTURES, "labels.csv": table})
    assert result.state == "rejected" and result.problems[0].code == "no_file_column"


def test_a_table_that_names_nothing_gives_way_to_class_folders(archived: Any) -> None:
    files = {"cat/1.png": picture(1), "dog/2.png": picture(2), "classes.csv": b"name,legs\ncat,4\ndog,4\n"}
    result, rows = archived(files)
    assert {row["label"] for row in rows} == {"cat", "dog"}
    assert next(problem for problem in result.problems if problem.code == "table_ignored").file == "classes.csv"


def test_a_second_table_that_names_nothing_is_passed_over(archived: Any) -> None:
    result, rows = archived({**PICTURES, "labels.csv": _named(["000.png", "001.png"]), "other.csv": b"a,b\n1,2\n3,4\n"})
    assert len(rows) == 2 and "table_ignored" in _codes(result)


def test_a_name_that_several_files_have_is_not_guessed(archived: Any) -> None:
    files = {"a/1.png": picture(1), "b/1.png": picture(2), "b/2.png": picture(3), "b/3.png": picture(4)}
    result, rows = archived(
        {**files, "t.csv": _table([("1.png", 1), ("2.png", 2), ("b/3.png", 3), ("a/1.png", 4)], "f,n")}
    )
    assert len(rows) == 3
    ambiguous = next(problem for problem in result.problems if problem.code == "ambiguous_file")
    assert ambiguous.row == 2 and "write its path" in ambiguous.detail


def test_a_broken_table_is_rejected_with_its_row(archived: Any) -> None:
    result, _ = archived({**PICTURES, "labels.csv": b"image,kind\n000.png,a\n001.png,b,c\n"})
    assert result.state == "rejected" and result.problems[0].code == "ragged_row" and result.problems[0].row == 3
