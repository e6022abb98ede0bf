"""Documents as cells: read whole up to a mebibyte, and never so many at once that the memory fills."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.ingestion import csv_source, ndjson_source, parquet_source
from datasets.ingestion.isolation import ingest_in_child
from datasets.ingestion.limits import Limits
from datasets.ingestion.pipeline import _Ingestion
from datasets.ingestion.rows import group_batches, read_rows
from datasets.views.dataset import _cell
from tests.unit.datasets.ingestion.conftest import Ingest

DOCUMENT = 'the cat, the "mat" and é ' * 4_000  # 104,000 bytes
CELL = 1 << 20
MEMORY = 1 << 30  # what the child may take, libraries and all: a fraction of what the files below unpack to


def _csv(texts: list[str]) -> bytes:
    return (
        "n,text\n" + "".join(f'{n},"{text.replace(chr(34), 2 * chr(34))}"\n' for n, text in enumerate(texts))
    ).encode()


def _ndjson(texts: list[str]) -> bytes:
    return "".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(texts)).encode()


def _parquet(texts: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), sink, row_group_size=20)
    return sink.getvalue().to_pybytes()


FORMATS = [("d.csv", _csv), ("d.ndjson", _ndjson), ("d.parquet", _parquet)]


@pytest.mark.parametrize(("name", "written"), FORMATS)
def test_a_document_of_a_hundred_thousand_letters_is_read_whole(
    ingested: Ingest, name: str, written: Callable[[list[str]], bytes]
) -> None:
    result, rows = ingested(written([DOCUMENT, "short"]), filename=name)
    assert result.state == "ready", result.problems
    assert [row["text"] for row in rows] == [DOCUMENT, "short"]


@pytest.mark.parametrize(("name", "written"), FORMATS)
@pytest.mark.parametrize(("bytes_", "state"), [(CELL, "ready"), (CELL + 1, "rejected")])
def test_a_cell_may_have_a_mebibyte(
    ingested: Ingest, name: str, written: Callable[[list[str]], bytes], bytes_: int, state: str
) -> None:
    result, _ = ingested(written(["short", "é" * (bytes_ // 2) + "e" * (bytes_ % 2)]), filename=name)
    assert result.state == state
    assert [problem.code for problem in result.problems if problem.severity == "error"] == (
        [] if state == "ready" else ["cell_too_long"]
    )
    assert state == "ready" or "1,048,576" in result.problems[0].detail


def _hostile(name: str) -> bytes:
    """Hundreds of different cells of a mebibyte."""
    texts = [f"{number:08d}" + "y" * (CELL - 8) for number in range(400)]
    if name == "exact.csv":  # an odd quote calls the exact reader
        return b"n,text\n" + "".join(f'{n},{text[:-2]}"a\n' for n, text in enumerate(texts[:399])).encode()
    if name.endswith(".csv"):
        return _csv(texts)
    return _ndjson(texts) if name.endswith(".ndjson") else _parquet(texts)


@pytest.mark.parametrize(
    ("name", "memory"), [("d.csv", MEMORY), ("exact.csv", MEMORY), ("d.ndjson", MEMORY), ("d.parquet", 2 * MEMORY)]
)
def test_a_file_of_nothing_but_the_longest_cells_is_read_in_little_memory(
    tmp_path: Path, name: str, memory: int
) -> None:
    source = tmp_path / "upload"
    source.write_bytes(_hostile(name))
    limits = Limits(memory_bytes=memory, expansion_ratio=100_000)
    result = ingest_in_child(source, tmp_path / "parts", filename=name, content_type="", limits=limits)
    assert result.state == "ready", result.problems
    assert result.rows >= 399 and result.profile["text"]["distinct"] == result.rows


@pytest.mark.parametrize(("name", "written"), FORMATS)
def test_batches_of_documents_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ingested: Ingest, name: str, written: Callable[[list[str]], bytes]
) -> None:
    sizes: list[int] = []
    convert = _Ingestion._convert

    def watched(self: _Ingestion, source: object, *rest: object) -> object:
        sizes.extend(batch.nbytes for batch in source.batches())  # type: ignore[attr-defined]
        return convert(self, source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(_Ingestion, "_convert", watched)
    for module, ceiling in ((csv_source, "EXACT_BATCH_CHARACTERS"), (ndjson_source, "BATCH_BYTES"),
                            (parquet_source, "BATCH_BYTES")):  # fmt: skip
        monkeypatch.setattr(module, ceiling, 1 << 20)
    result, rows = ingested(written([DOCUMENT] * 100), filename=name)
    assert result.state == "ready" and len(rows) == 100, result.problems
    assert max(sizes) < 6 << 20 and sum(sizes) > 100 * 100_000


def test_batches_of_stored_rows_end_with_their_row_group(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": range(10), "y": range(10)}), tmp_path / "p", row_group_size=4)
    with pq.ParquetFile(tmp_path / "p") as file:
        assert [batch.num_rows for batch in group_batches(file, 3, ["x"])] == [3, 1, 3, 1, 2]


def test_documents_are_put_in_order_by_their_beginning(tmp_path: Path) -> None:
    same = "m" * 1_024
    pq.write_table(pa.table({"x": [same + "b", "z", same + "a", "a" * 5_000, None]}), tmp_path / "p")
    found = [row["x"] and row["x"][-1] for row in read_rows([tmp_path / "p"], 0, 5, order_by="x")]
    assert found == ["a", "b", "a", "z", None]


@pytest.mark.parametrize(("letters", "shown"), [(2_000, "a" * 2_000), (CELL, "a" * 2_000 + "…")])
def test_the_page_of_rows_is_sent_the_beginning_of_a_document(letters: int, shown: str) -> None:
    assert _cell("a" * letters) == {"numeric": False, "text": shown}
