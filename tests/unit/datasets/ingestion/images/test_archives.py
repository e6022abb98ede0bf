"""Every messy archive gets a usable answer, in this process and in the child."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.ingestion.isolation import ingest_in_child
from datasets.ingestion.limits import Limits
from datasets.ingestion.pipeline import ingest
from datasets.ingestion.result import IngestResult
from datasets.ingestion.rows import read_rows
from tests.fixtures.messy_archives import ARCHIVES, GOOD, MessyArchive
from tests.fixtures.pictures import zipped


def _run(tmp_path: Path, content: bytes, limits: Limits | None = None) -> IngestResult:
    source, parts = tmp_path / "upload", tmp_path / "parts"
    source.write_bytes(content)
    parts.mkdir(exist_ok=True)
    return ingest(source, parts, filename="upload.bin", content_type="", limits=limits or Limits())


@pytest.mark.parametrize("messy", ARCHIVES, ids=lambda messy: messy.name)
def test_messy_archive_gets_a_usable_answer(tmp_path: Path, messy: MessyArchive) -> None:
    result = _run(tmp_path, messy.content())
    codes = {problem.code for problem in result.problems}
    assert result.state == messy.state, result.problems
    assert set(messy.codes) <= codes, result.problems
    assert not messy.quiet or not codes, result.problems
    if messy.file:
        assert messy.file in {one.file for one in result.problems if one.code == messy.codes[0]}
    if messy.state == "ready":
        rows = read_rows([tmp_path / "parts" / part.path for part in result.parts], 0, 100)
        assert result.rows == len(rows) == messy.rows and all(row["image"] for row in rows)
    else:
        assert not result.parts and any(problem.severity == "error" for problem in result.problems)
    assert all(len(problem.detail) > 30 and problem.detail.isprintable() for problem in result.problems)
    assert {path.name for path in tmp_path.iterdir()} == {"upload", "parts"}, "nothing is written elsewhere"


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    by_name = {messy.name: messy for messy in ARCHIVES}
    for name, label in (("latin names", "café"), ("dos names", "Kätzchen")):
        folder = tmp_path / label
        folder.mkdir()
        result = _run(folder, by_name[name].content())
        rows = read_rows([folder / "parts" / part.path for part in result.parts], 0, 100)
        assert {row["label"] for row in rows} == {label, "dog"}


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(files=7), "too_many_files"),
        (Limits(bytes=3_000), "file_too_large"),
    ],
)
@pytest.mark.parametrize("kind", ["plain zip", "tar.zst"])
def test_the_limits_hold_for_every_kind(tmp_path: Path, limits: Limits, code: str, kind: str) -> None:
    content = next(messy.content() for messy in ARCHIVES if messy.name == kind)
    result = _run(tmp_path, content, limits)
    assert result.state == "rejected" and result.problems[0].code == code


def test_a_tar_of_zeros_is_not_unpacked(tmp_path: Path) -> None:
    import gzip

    from tests.fixtures.pictures import tarred

    result = _run(tmp_path, gzip.compress(tarred({**GOOD, "cat/zero.bmp": b"\0" * (40 << 20)})))
    assert result.problems[0].code == "expansion_ratio"


def test_a_thousand_damaged_files_are_listed_and_the_rest_is_counted(tmp_path: Path) -> None:
    result = _run(tmp_path, zipped({**GOOD, **{f"cat/{index}.png": b"x" for index in range(1_200)}}))
    assert result.state == "ready" and len(result.problems) == 1_000 and result.problem_count >= 1_200


@pytest.mark.parametrize(
    "name", ["plain zip", "tar.gz", "picture bomb", "all damaged", "tar with a broken header", "zeros a thousandfold"]
)
def test_the_child_answers_alike(tmp_path: Path, name: str) -> None:
    messy = next(each for each in ARCHIVES if each.name == name)
    source, heard = tmp_path / "upload", []
    source.write_bytes(messy.content())
    result = ingest_in_child(
        source, tmp_path / "child", filename="u", content_type="", limits=Limits(),
        on_progress=lambda fraction, phase: heard.append((fraction, phase)),
    )  # fmt: skip
    here = _run(tmp_path, messy.content())
    assert (result.state, result.rows, result.profile, result.images) == (
        here.state,
        here.rows,
        here.profile,
        here.images,
    )
    assert [problem.code for problem in result.problems] == [problem.code for problem in here.problems]
    assert [fraction for fraction, _ in heard] == sorted(fraction for fraction, _ in heard)
    if result.state == "ready":
        assert any(phase.startswith("checking image") for _, phase in heard)
    else:
        assert list((tmp_path / "child").iterdir()) == []
