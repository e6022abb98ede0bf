"""Every messy file is answered with the right state, code, place and a message that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.ingestion.limits import Limits
from datasets.ingestion.pipeline import ingest
from datasets.ingestion.result import IngestResult
from tests.fixtures.messy_files import MESSY_FILES, MessyFile


def _ingest(messy: MessyFile, folder: Path) -> IngestResult:
    source, destination = folder / "upload", folder / "parts"
    source.write_bytes(messy.content())
    destination.mkdir()
    return ingest(source, destination, filename=messy.filename, content_type=messy.content_type, limits=Limits())


@pytest.mark.parametrize("messy", MESSY_FILES, ids=[messy.name for messy in MESSY_FILES])
def test_messy_file_gets_a_usable_answer(messy: MessyFile, tmp_path: Path) -> None:
    result = _ingest(messy, tmp_path)
    codes = {problem.code for problem in result.problems}
    assert result.state == messy.state, result.problems
    assert set(messy.codes) <= codes, result.problems
    assert IngestResult.from_dict(result.to_dict()) == result
    for problem in result.problems:
        assert len(problem.detail) > 30 and problem.detail.endswith("."), "a reason and a fix, in sentences"
        assert "\x00" not in problem.detail
    if messy.state == "rejected":
        assert any(problem.severity == "error" for problem in result.problems)
        assert not result.parts
    else:
        assert all(problem.severity == "warning" for problem in result.problems), result.problems
        assert result.rows and result.parts and result.columns
    if messy.codes:
        named = [problem for problem in result.problems if problem.code == messy.codes[0]]
        assert messy.row is None or messy.row in {problem.row for problem in named}, named
        assert messy.column is None or messy.column in {problem.column for problem in named}, named
        assert messy.words in " ".join(problem.detail for problem in named), named


def test_there_are_enough_messy_files() -> None:
    assert len(MESSY_FILES) >= 60
    assert len({messy.name for messy in MESSY_FILES}) == len(MESSY_FILES)


def test_problems_are_capped_and_counted(tmp_path: Path) -> None:
    messy = next(messy for messy in MESSY_FILES if messy.name == "many ragged rows")
    result = _ingest(messy, tmp_path)
    assert len(result.problems) == Limits().problems
    assert result.problem_count == 300
