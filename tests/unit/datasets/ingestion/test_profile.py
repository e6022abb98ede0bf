"""The profile against numpy, exact and sampled."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datasets.ingestion import profile as profiling
from datasets.ingestion.hashing import hash_column, mix
from datasets.ingestion.profile import QUANTILES, TableProfiler
from datasets.ingestion.sketches import DistinctCounter, DuplicateCounter, Moments, RowSample
from tests.unit.datasets.ingestion.conftest import Ingest

RNG = np.random.default_rng(7)


def _profile(columns: dict[str, pa.Array], kinds: list[str], batch: int = 10_000) -> dict[str, dict[str, Any]]:
    profiler = TableProfiler(list(columns), kinds)
    for piece in pa.table(columns).to_batches(max_chunksize=batch):
        profiler.observe(piece)
    return profiler.finish()


def test_numbers_match_numpy() -> None:
    values = RNG.normal(1e6, 3, 50_000)
    values[:100] = 0
    values[100:200] = -5.5
    mask = RNG.random(50_000) < 0.1
    profile = _profile({"x": pa.array(values, mask=mask)}, ["number"])["x"]
    present = values[~mask]
    assert profile["count"] == len(present) and profile["missing"] == mask.sum()
    assert profile["distinct"] == len(np.unique(present))
    assert profile["mean"] == pytest.approx(present.mean(), rel=1e-9)
    assert profile["std"] == pytest.approx(present.std(ddof=1), rel=1e-8)
    assert (profile["min"], profile["max"]) == pytest.approx((present.min(), present.max()))
    assert profile["zeros"] == (present == 0).sum() and profile["negatives"] == (present < 0).sum()
    assert list(profile["quantiles"].values()) == pytest.approx(list(np.quantile(present, QUANTILES)), rel=1e-9)
    assert sum(profile["histogram"]["counts"]) == len(present)
    assert len(profile["histogram"]["edges"]) == len(profile["histogram"]["counts"]) + 1 <= 31
    assert "approximate" not in profile


def test_texts_are_abbreviated_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    abbreviated = profiling.abbreviated

    def counted(values: Any, hashes: Any) -> Any:
        calls.append(len(values))
        return abbreviated(values, hashes)

    monkeypatch.setattr(profiling, "abbreviated", counted)
    long = ["x" * 300 + str(row % 3) for row in range(30)]
    profile = _profile({"text": pa.array(long)}, ["text"], 10)["text"]
    assert calls == [10, 10, 10]
    assert [entry["count"] for entry in profile["top"]] == [10, 10, 10] and profile["length"]["max"] == 301


def test_large_columns_are_estimated_and_say_so() -> None:
    values = RNG.exponential(10, 600_000)
    profile = _profile({"x": pa.array(values)}, ["number"], 65_536)["x"]
    assert profile["approximate"] == ["distinct", "quantiles", "histogram"]
    assert profile["distinct"] == pytest.approx(600_000, rel=0.02)
    assert profile["mean"] == pytest.approx(values.mean(), rel=1e-9)
    for share, value in zip(QUANTILES, profile["quantiles"].values(), strict=True):
        assert (values < value).mean() == pytest.approx(share, abs=0.01)
    assert sum(profile["histogram"]["counts"]) == pytest.approx(600_000, rel=0.001)


def test_outliers_leave_the_histogram_readable() -> None:
    values = np.concatenate([RNG.normal(0, 1, 10_000), [1e9]])
    histogram = _profile({"x": pa.array(values)}, ["number"])["x"]["histogram"]
    assert histogram["edges"][-1] == 1e9
    assert max(histogram["counts"]) < 3000


def test_labels_dates_and_texts() -> None:
    moments = pa.array(np.arange("2024-01-01", "2024-04-10", dtype="M8[D]")).cast(pa.timestamp("us", "UTC"))
    words = [f"word {number % 3}" for number in range(100)]
    texts = [f"a sentence of its own, number {number}" * (1 + number % 4) for number in range(100)]
    flags = [number % 4 == 0 for number in range(100)]
    profile = _profile(
        {"when": moments, "word": pa.array(words), "text": pa.array(texts), "flag": pa.array(flags)},
        ["datetime", "text", "text", "boolean"],
    )
    assert (profile["when"]["min"], profile["when"]["max"]) == (
        "2024-01-01T00:00:00Z",
        "2024-04-09T00:00:00Z",
    )
    assert sum(profile["when"]["histogram"]["counts"]) == 100
    assert profile["word"]["type"] == "category"
    assert profile["word"]["top"][0] == {"value": "word 0", "count": 34}
    assert profile["text"]["type"] == "text" and len(profile["text"]["samples"]) == 5
    assert profile["text"]["length"] == {
        "min": min(map(len, texts)),
        "max": max(map(len, texts)),
        "mean": round(sum(map(len, texts)) / 100, 2),
    }
    assert profile["flag"]["top"] == [{"value": False, "count": 75}, {"value": True, "count": 25}]
    json.dumps(profile, allow_nan=False)


def test_extreme_numbers_stay_json(ingested: Ingest) -> None:
    result, _ = ingested("a,b\n1e308,1\n-1e308,2\n1e308,3\n5e-324,4\n")
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.profile["a"]["max"] == 1e308


def test_a_wide_profile_stays_small(ingested: Ingest) -> None:
    rows = [",".join(str(value) for value in row) for row in RNG.normal(size=(50, 2000)).round(4)]
    result, _ = ingested(",".join(f"c{number}" for number in range(2000)) + "\n" + "\n".join(rows))
    assert len(json.dumps(result.profile)) < 2_000_000


def test_hashes_tell_values_apart() -> None:
    texts = pa.array(["", "a", "b", "ab", "ba", "abcdefgh", "abcdefghi", "abcdefgh\0", None, "é", "x" * 300, "x" * 301])
    assert len(set(hash_column(texts).tolist())) == len(texts)
    assert hash_column(texts.slice(3, 4)).tolist() == hash_column(texts)[3:7].tolist()
    numbers = pa.array([0.0, -0.0, 1.0, None])
    assert len(set(hash_column(numbers).tolist())) == 3


def test_sketches_merge() -> None:
    hashes = mix(np.arange(50_000, dtype=np.uint64))
    left, right, both = DistinctCounter(1000), DistinctCounter(1000), DistinctCounter(1000)
    left.observe(hashes[:30_000])
    right.observe(hashes[20_000:])
    both.observe(hashes)
    left.merge(right)
    assert left.count() == both.count()
    assert left.count()[0] == pytest.approx(50_000, rel=0.15)
    values = RNG.normal(size=1000)
    one, two = Moments(), Moments()
    one.observe(values[:400])
    two.observe(values[400:])
    one.merge(two)
    assert (one.count, one.mean) == (1000, pytest.approx(values.mean()))
    assert one.squares / 999 == pytest.approx(values.var(ddof=1))


def test_row_sample_is_even_bounded_and_independent_of_batches() -> None:
    def chosen(batch: int) -> list[int]:
        sample, kept, first = RowSample(100), np.empty(0, np.int64), 0
        for first in range(0, 5000, batch):
            indices, mask = sample.take(batch)
            kept = np.concatenate([kept if mask is None else kept[mask], indices + first])
        return kept.tolist()

    assert 30 <= len(chosen(10)) <= 100
    assert set(chosen(10)) == set(chosen(500))


def test_duplicates_are_counted_and_estimated() -> None:
    exact, estimate = DuplicateCounter(10_000), DuplicateCounter(1_000)
    hashes = mix(np.concatenate([np.arange(4000), np.arange(1000)]).astype(np.uint64))
    exact.observe(hashes)
    estimate.observe(hashes)
    assert exact.count() == (1000, True)
    assert estimate.count()[0] == pytest.approx(1000, rel=0.4) and not estimate.count()[1]


def test_long_texts_are_told_apart_behind_their_beginning_and_kept_short() -> None:
    texts = ["a" * 300_000 + str(number) for number in range(20)] * 2 + ["short", None]
    profiler = TableProfiler(["x"], ["text"])
    for piece in pa.table({"x": texts}).to_batches(max_chunksize=7):
        profiler.observe(piece)
    profile = profiler.finish()["x"]
    assert profile["type"] == "text" and profile["distinct"] == 21 and profile["length"]["max"] == 300_002
    assert profiler.columns[0].sampled().nbytes < 42 * 1_200
    assert max(map(len, profiler.columns[0].top.counts)) < 300
    assert {entry["count"] for entry in profile["top"]} == {1, 2} or {entry["count"] for entry in profile["top"]} == {2}
    assert profile["samples"][0] == "a" * 80 + "…"
    assert len(profile["samples"]) == 5 and profiler.duplicate_rows() == (20, True)


def test_hashes_of_long_values_are_those_of_their_bytes() -> None:
    long = ["é" * 3_000, "é" * 2_999 + "e ", "x" * 4_096, "x" * 4_097, None, ""]
    hashes = hash_column(pa.array(long, pa.string()))
    assert len(set(hashes.tolist())) == 6
    assert (hash_column(pa.array(["before", *long], pa.string())[1:]) == hashes).all()
    assert (hash_column(pa.array(long[::-1], pa.string())) == hashes[::-1]).all()
