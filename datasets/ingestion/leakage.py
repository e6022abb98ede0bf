"""Columns that give the target away: to be asked once a run has named its target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.ingestion.association import Association, strongest
from datasets.ingestion.result import Problem, shown

SAMPLE_ROWS = 50_000
BLOCK_ROWS = 2_000


def leakage_warnings(parts: Sequence[Path], target: str, columns: Sequence[str]) -> list[Problem]:
    """A warning for every one of `columns` that nearly determines `target` by itself, strongest first.

    Judged on at most 50,000 rows taken evenly from the parts. A class target is given away by a purity or
    AUC above 0.99, a quantity by a correlation above 0.999 in size; identifiers are ignored. Raises
    KeyError for an unknown column.
    """
    if not parts:
        return []
    known = pq.read_schema(parts[0]).names
    features = [name for name in columns if name != target]
    for name in (target, *features):
        if name not in known:
            raise KeyError(name)
    table = _sample(parts, [target, *features])
    truth = table.column(target).combine_chunks()
    found = [(name, strongest(table.column(name).combine_chunks(), truth)) for name in features]
    ranked = sorted(((name, link) for name, link in found if link), key=lambda pair: -pair[1].value)
    return [leakage_problem(name, target, link) for name, link in ranked]


def leakage_problem(name: str, target: str, link: Association) -> Problem:
    """The warning about one column."""
    return Problem(
        code="target_leakage",
        severity="warning",
        column=name,
        detail=f"Column {shown(name)} all but determines {shown(target)} ({link.measure} "
        f"{link.value:.4f}). If it is known "
        "only after the outcome, or is a copy of it, leave it out of the features; the model would look "
        "perfect and "
        "fail in use.",
    )


def _sample(parts: Sequence[Path], names: list[str]) -> Any:
    """All rows, or whole blocks of rows evenly spaced over the parts, rows in stored order."""
    total = sum(pq.read_metadata(part).num_rows for part in parts)
    chosen = _block_starts(total)
    pieces: list[Any] = []
    first = 0
    for part in parts:
        with pq.ParquetFile(part) as file:
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                wanted = chosen[(chosen >= first) & (chosen < first + rows)] - first
                if len(wanted):
                    table = file.read_row_group(group, columns=names, use_threads=False)
                    pieces += [table.slice(int(start), BLOCK_ROWS) for start in wanted]
                first += rows
    return pa.concat_tables(pieces)


def _block_starts(total: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    blocks = -(-total // BLOCK_ROWS)
    kept = min(blocks, SAMPLE_ROWS // BLOCK_ROWS)
    return np.unique(np.linspace(0, blocks - 1, kept).astype(np.int64)) * BLOCK_ROWS
