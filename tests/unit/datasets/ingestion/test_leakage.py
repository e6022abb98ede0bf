"""Columns that give the target away are named; honest ones are not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.ingestion.leakage import leakage_warnings

RNG = np.random.default_rng(11)
ROWS = 120_000


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    label = RNG.integers(0, 2, ROWS)
    kind = RNG.integers(0, 4, ROWS)
    price = RNG.normal(size=ROWS)
    table = pa.table(
        {
            "id": np.arange(ROWS),
            "noise": RNG.normal(size=ROWS),
            "useful": label + RNG.normal(size=ROWS),
            "score": label * 10 + RNG.normal(size=ROWS),
            "only_for_one": pa.array(RNG.normal(size=ROWS), mask=label == 0),
            "copy": pa.array([("no", "yes")[value] for value in label]),
            "code": pa.array([f"user {value}" for value in range(ROWS)]),
            "kind_name": pa.array([f"kind {value}" for value in kind]),
            "price_in_cents": price * 100,
            "price_squeezed": np.exp(price),
            "label": label,
            "kind": kind,
            "price": price,
        }
    )
    paths = [folder / f"part-{number:05d}.parquet" for number in range(2)]
    for number, path in enumerate(paths):
        pq.write_table(table.slice(number * ROWS // 2, ROWS // 2), path, row_group_size=20_000)
    return paths


@pytest.mark.parametrize(
    ("target", "leaking"),
    [
        ("label", {"score", "only_for_one", "copy"}),
        ("kind", {"kind_name"}),
        ("price", {"price_in_cents", "price_squeezed"}),
        ("noise", set()),
    ],
)
def test_leaking_columns_are_named(parts: list[Path], target: str, leaking: set[str]) -> None:
    names = [name for name in pq.read_schema(parts[0]).names if name not in ("label", "kind", "price")]
    begun = time.monotonic()
    problems = leakage_warnings(parts, target, names)
    assert time.monotonic() - begun < 60, "with room for a busy machine"
    assert {problem.column for problem in problems} == leaking
    assert all(problem.severity == "warning" and "leave it out" in problem.detail for problem in problems)


def test_an_unknown_target_is_refused(parts: list[Path]) -> None:
    with pytest.raises(KeyError):
        leakage_warnings(parts, "nope", ["noise"])
    assert leakage_warnings([], "nope", []) == []
