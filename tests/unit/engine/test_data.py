"""From files to arrays: tables, codings, splits, fitted statistics, metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as reference

from dlplatform.engine import metrics
from dlplatform.engine.errors import EngineError
from dlplatform.engine.objective import class_weights
from dlplatform.engine.preprocessing import (
    MISSING,
    SPECIAL,
    TEXT_TOKENS,
    UNKNOWN,
    Inputs,
    InputSizes,
    Preprocessor,
    fit_preprocessor,
    tokenize,
)
from dlplatform.engine.schema import Column
from dlplatform.engine.split import split_rows
from dlplatform.engine.statistics import fit_statistics, normalise
from dlplatform.engine.table import Table, read_table


def part(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parts_are_read_in_order(tmp_path: Path) -> None:
    paths = [part(tmp_path / f"{n}.parquet", a=pa.array([n * 1.0, None])) for n in range(2)]
    table = read_table(paths, [Column("a", "number")])
    assert list(table.columns) == ["a"]
    np.testing.assert_array_equal(table.columns["a"], [0, np.nan, 1, np.nan])


def test_each_type_has_one_form(tmp_path: Path) -> None:
    path = part(
        tmp_path / "p.parquet",
        n=pa.array([1.5, float("inf"), None]),
        i=pa.array([2**60, None, 3]),
        b=pa.array([True, False, None]),
        c=pa.array(["x", None, "y"]),
        d=pa.array([0, 1_500_000, None], pa.timestamp("us", tz="UTC")),
    )
    kinds = {"n": "number", "i": "integer", "b": "boolean", "c": "category", "d": "datetime"}
    table = read_table([path], [Column(name, kind) for name, kind in kinds.items()])
    np.testing.assert_array_equal(table.columns["n"], [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(table.columns["i"], [2.0**60, np.nan, 3])
    np.testing.assert_array_equal(table.columns["b"], [1, 0, np.nan])
    np.testing.assert_array_equal(table.columns["d"], [0, 1.5, np.nan])
    assert table.columns["c"].to_pylist() == ["x", None, "y"]


@pytest.mark.parametrize(
    ("content", "said"),
    [({"b": pa.array([1.0])}, "is missing"), ({"a": pa.array(["x"])}, "does not hold values")],
)
def test_wrong_files_are_named(tmp_path: Path, content: dict[str, pa.Array], said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        read_table([part(tmp_path / "p.parquet", **content)], [Column("a", "number")])
    assert caught.value.code == "bad_data"


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"hello")
    with pytest.raises(EngineError, match="not a readable Parquet"):
        read_table([tmp_path / "p.parquet"], [Column("a", "number")])


def test_parts_that_disagree_are_refused(tmp_path: Path) -> None:
    paths = [part(tmp_path / "1", a=pa.array([1.0])), part(tmp_path / "2", a=pa.array(["x"]))]
    with pytest.raises(EngineError, match="same columns"):
        read_table(paths, [Column("a", "number")])


def categories(values: list[str | None]) -> Table:
    return Table({"c": pa.array(values, pa.string())}, len(values))


def test_categories_are_coded_by_frequency() -> None:
    coding = fit_preprocessor(categories(["b", "a", "b", None]), (Column("c", "category"),))
    assert coding.codings[0].vocabulary == ("b", "a")
    codes = coding.transform(categories(["a", "b", None, "new"])).categories[:, 0]
    assert codes.tolist() == [SPECIAL + 1, SPECIAL, MISSING, UNKNOWN]
    assert Preprocessor.from_dict(coding.to_dict()) == coding


def test_large_numbers_keep_their_differences() -> None:
    years = 1.7e9 + np.arange(5.0)
    table = Table({"d": years}, 5)
    coded = fit_preprocessor(table, (Column("d", "integer"),)).transform(table).numbers[:, 0]
    assert len(np.unique(coded)) == 5


def test_a_datetime_gives_its_cycles() -> None:
    day = 86_400.0
    table = Table({"d": np.array([0.0, day / 4, day, np.nan])}, 4)
    numbers = fit_preprocessor(table, (Column("d", "datetime"),)).transform(table).numbers
    assert numbers.shape == (4, 7)
    np.testing.assert_allclose(numbers[0, 1:3], numbers[2, 1:3], atol=1e-5)
    np.testing.assert_allclose(numbers[1, 1:3], [1, 0], atol=1e-5)
    assert np.isnan(numbers[3]).all()


def test_texts_share_tokens_of_like_words() -> None:
    assert len(set(tokenize("Colour")) & set(tokenize("colours"))) >= 4
    assert tokenize("a b") == tokenize("A  b!")
    assert len(tokenize("word " * 5 + " ".join(map(str, range(500))))) == TEXT_TOKENS
    assert tokenize("…") == []
    assert min(tokenize("anything at all")) >= 1


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_are_disjoint_whole_and_stratified(folds: int) -> None:
    target = np.repeat([0, 1, 2], [60, 30, 10])
    split = split_rows(target, folds, 0.2, seed=1)
    assert sorted(np.concatenate(split.validation).tolist()) == list(range(100))
    for train, held in zip(split.train, split.validation, strict=True):
        assert not set(train) & set(held)
        counts = np.bincount(target[held], minlength=3) * folds
        assert (np.abs(counts - [60, 30, 10]) <= folds).all()


def test_a_held_out_part_has_its_share_of_each_class() -> None:
    target = np.repeat([0, 1], [160, 40])
    split = split_rows(target, 1, 0.25, seed=3)
    assert np.bincount(target[split.validation[0]]).tolist() == pytest.approx([40, 10], abs=1)
    same = split_rows(target, 1, 0.25, seed=3)
    other = split_rows(target, 1, 0.25, seed=4)
    assert (same.validation[0] == split.validation[0]).all()
    assert (other.validation[0] != split.validation[0]).any()


def inputs_of(numbers: Any, categories: Any = None) -> Inputs:
    rows = len(numbers)
    return Inputs(
        numbers,
        np.zeros((rows, 0), np.int32) if categories is None else categories,
        tokens=np.zeros((rows, 0, 1), np.int32),
        sequences=np.zeros((rows, 0, 0), np.int32),
        images=np.zeros((rows, 0, 1, 8, 8), np.uint8),
    )


def test_statistics_see_training_rows_only() -> None:
    numbers = np.array([[0.0], [2.0], [1000.0]], np.float32)
    inputs = inputs_of(numbers)
    split = split_rows(np.array([0.0, 1.0, 2.0]), 3, 0.3, seed=0)
    fitted = fit_statistics(inputs, InputSizes(1, (), (), 0), split, 4, np.array([0.0, 1.0, 2.0]))
    for group, rows in enumerate(split.train):
        assert fitted.center[group, 0] == pytest.approx(numbers[rows].mean())
        assert fitted.target_center[group] == pytest.approx(rows.mean())


def test_constant_and_empty_columns_say_nothing() -> None:
    numbers = np.array([[5.0, np.nan]] * 4, np.float32)
    inputs = inputs_of(numbers)
    split = split_rows(np.arange(4), 2, 0.5, seed=0)
    fitted = fit_statistics(inputs, InputSizes(2, (1,), (), 0), split, 4, None)
    assert (fitted.inverse_scale == 0).all()
    assert (normalise(numbers, fitted.center[0], fitted.inverse_scale[0]) == 0).all()


def test_a_category_a_group_never_saw_is_unknown_to_it() -> None:
    codes = np.array([[2], [2], [3]], np.int32)
    inputs = inputs_of(np.zeros((3, 0), np.float32), codes)
    split = split_rows(np.arange(3), 3, 0.3, seed=0)
    fitted = fit_statistics(inputs, InputSizes(0, (), (4,), 0), split, 1, None)
    for group, rows in enumerate(split.train):
        assert fitted.known[group].tolist() == [0, 1, 2, 3 if 2 in rows else UNKNOWN]


def test_metrics_agree_with_the_reference() -> None:
    random = np.random.default_rng(0)
    actual = random.integers(0, 3, 200)
    probabilities = random.dirichlet([1, 1, 1], 200).round(2) + 1e-3
    probabilities /= probabilities.sum(1, keepdims=True)
    measured = metrics.classification(actual, probabilities)
    chosen = probabilities.argmax(1)
    expected = {
        "accuracy": reference.accuracy_score(actual, chosen),
        "balanced_accuracy": reference.balanced_accuracy_score(actual, chosen),
        "f1_macro": reference.f1_score(actual, chosen, average="macro"),
        "log_loss": reference.log_loss(actual, probabilities),
        "roc_auc": reference.roc_auc_score(actual, probabilities, multi_class="ovr"),
    }
    assert measured == pytest.approx(expected, abs=1e-6)


def test_regression_metrics_and_undefined_ones() -> None:
    measured = metrics.regression(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
    assert measured == pytest.approx({"rmse": 3**-0.5, "mae": 1 / 3, "r2": 0.5})
    assert metrics.regression(np.ones(3), np.ones(3))["r2"] is None
    assert metrics.roc_auc(np.ones(3, bool), np.arange(3)) is None
    one_class = metrics.classification(np.zeros(2, int), np.array([[0.9, 0.1], [0.8, 0.2]]))
    assert one_class["roc_auc"] is None


def test_curves_end_where_they_must() -> None:
    random = np.random.default_rng(1)
    positive, scores = random.random(500) < 0.3, random.random(500).round(2)
    points = metrics.roc_points(positive, scores, limit=20)
    assert len(points["recall"]) <= 20
    assert points["true_positive_rate"][-1] == points["false_positive_rate"][-1] == 1.0
    assert points["precision"][-1] == pytest.approx(positive.mean())


@pytest.mark.parametrize(
    ("setting", "counts", "expected"),
    [
        ("none", [90, 10], None),
        ("auto", [60, 40], None),
        ("auto", [90, 10], [1 / 3, 1]),
        ("balanced", [60, 40], [2 / 3, 1]),
    ],
)
def test_class_weights(setting: str, counts: list[int], expected: list[float] | None) -> None:
    codes = np.repeat([0, 1], counts)
    weights = class_weights(setting, codes, 2)
    if expected is None:
        assert weights is None
        return
    assert weights is not None
    assert weights / weights.max() == pytest.approx(expected)
    assert weights[codes].mean() == pytest.approx(1)
