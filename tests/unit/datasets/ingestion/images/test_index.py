"""The list of a version's images, and the packs in which the child hands them over."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from datasets.ingestion.images.index import RECORD, ImageRecord, find_record, read_records, sorted_index
from datasets.ingestion.images.packs import ImageWriter, pack_name, read_index, read_packs


def _record(number: int) -> ImageRecord:
    generator = random.Random(number)
    return ImageRecord(generator.randbytes(32).hex(), generator.randbytes(32).hex(), number + 1, 3, "JPEG", "PNG")


def test_every_image_is_found_and_no_other() -> None:
    records = [_record(number) for number in range(300)]
    content = sorted_index([*records, *records])
    assert len(content) == 300 * RECORD.size
    stream = io.BytesIO(content)
    assert all(find_record(stream, len(content), record.sha256) == record for record in records)
    assert all(find_record(stream, len(content), digest * 64) is None for digest in "0f")
    assert find_record(io.BytesIO(), 0, "0" * 64) is None
    assert {*read_records(io.BytesIO(content))} == {*records}


@pytest.mark.parametrize("content", [b"x", sorted_index([_record(1)])[:-1], b"\xff" * RECORD.size])
def test_what_is_no_index_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="record"):
        list(read_records(io.BytesIO(content)))


def test_packs_give_back_what_went_in_each_content_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.ingestion.images.packs.PACK_BYTES", 100)
    contents = [bytes([number]) * (number % 60 + 1) for number in range(40)]
    writer = ImageWriter(tmp_path)
    for number, content in [*enumerate(contents), (3, contents[3])]:
        record = _record(number)._replace(size=len(content))
        writer.add(record, content, b"abc")
    files = writer.close()
    assert (files.count, files.bytes) == (40, sum(map(len, contents))) and files.packs > 5
    records, names = read_index(tmp_path), [pack_name(number) for number in range(files.packs)]
    sizes = [record.size for record in records]
    assert list(read_packs(tmp_path, names, sizes)) == contents
    for wrong in ([*sizes, 1], sizes[:-1], [sizes[0] + 1, *sizes[1:]]):
        with pytest.raises(ValueError, match="pack"):
            list(read_packs(tmp_path, names, wrong))
