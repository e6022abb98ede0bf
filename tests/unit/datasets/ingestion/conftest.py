"""Ingest a text or bytes in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.ingestion.limits import Limits
from datasets.ingestion.pipeline import ingest
from datasets.ingestion.result import IngestResult
from datasets.ingestion.rows import read_rows

Ingested = tuple[IngestResult, list[dict[str, object]]]
Ingest = Callable[..., Ingested]


@pytest.fixture
def ingested(tmp_path: Path) -> Ingest:
    """(result, first rows) of some content."""
    count = 0

    def run(
        content: str | bytes,
        *,
        filename: str = "data.csv",
        types: dict[str, str] | None = None,
        limits: Limits | None = None,
    ) -> Ingested:
        nonlocal count
        count += 1
        source, destination = tmp_path / f"upload{count}", tmp_path / f"parts{count}"
        source.write_bytes(content.encode() if isinstance(content, str) else content)
        destination.mkdir()
        result = ingest(source, destination, filename=filename, content_type="", limits=limits or Limits(), types=types)
        return result, read_rows([destination / part.path for part in result.parts], 0, 10_000)

    return run
