"""Rows a piece at a time: bounded in rows and bytes, and gone on with from anywhere as from the beginning."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.serving import pieces
from registry.serving.pieces import bytes_of_rows


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Two files with several row groups each, whose texts are short, then long, with one that is longer than a piece."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10_000)
    chance, made, number = random.Random(3), [], 0
    for part, lengths in enumerate([[5] * 700, [*[900] * 40, 25_000, *[chance.randrange(3000) for _ in range(60)]]]):
        rows = {"n": [*range(number, number + len(lengths))], "text": ["ä" * (size // 2) for size in lengths]}
        rows["kind"] = pa.array(["k" * 2000 if n % 9 == 0 else None for n in rows["n"]]).dictionary_encode()
        number += len(lengths)
        made.append(tmp_path / f"{part}.parquet")
        pq.write_table(pa.table(rows), made[-1], row_group_size=150)
    return made


def numbers(found):
    return [batch.column("n").to_pylist() for batch in found]


def flat(found):
    return [number for piece in numbers(found) for number in piece]


def test_all_rows_come_in_order_and_none_is_too_much(parts):
    found = list(pieces.pieces(parts, 64, 0))
    assert flat(found) == [*range(801)]
    assert max(batch.num_rows for batch in found) <= 64
    assert all(batch.num_rows == 1 or bytes_of_rows(batch).sum() <= 10_000 for batch in found)
    assert any(batch.num_rows == 1 and bytes_of_rows(batch)[0] > 25_000 for batch in found)
    assert len(found) < 140, "as many as there is room for"


def test_who_goes_on_cuts_as_who_went_there_before(parts):
    whole = numbers(pieces.pieces(parts, 64, 0))
    begin = 0
    for position, piece in enumerate(whole):
        assert numbers(pieces.pieces(parts, 64, begin)) == whole[position:]
        begin += len(piece)
    assert numbers(pieces.pieces(parts, 64, begin)) == []


@pytest.mark.parametrize("first", [1, 63, 149, 150, 151, 699, 700, 740, 800])
def test_anywhere_else_nothing_is_lost_or_twice(parts, first):
    assert flat(pieces.pieces(parts, 64, first)) == [*range(first, 801)]


def test_a_long_text_that_repeats_counts_each_time(tmp_path, monkeypatch):
    """Parquet holds it once, and says so of its bytes; a list of rows would hold it a thousand times."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100_000)
    table = pa.table({"n": [*range(1000)], "text": ["x" * 10_000] * 1000})
    pq.write_table(table, tmp_path / "one.parquet", use_dictionary=True)
    assert pq.read_metadata(tmp_path / "one.parquet").row_group(0).total_byte_size < 50_000
    read = []
    cut = pieces._cut
    monkeypatch.setattr(pieces, "_cut", lambda batch: read.append(batch.nbytes) or cut(batch))
    found = list(pieces.pieces([tmp_path / "one.parquet"], 2048, 0))
    assert max(read) < 200_000 and all(batch.schema.field("text").type == pa.string() for batch in found)
    assert {batch.num_rows for batch in found} <= {9, 10, 1} and flat(found) == [*range(1000)]
