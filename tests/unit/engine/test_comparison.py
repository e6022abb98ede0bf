"""Comparing two models: tensor by tensor, and answer by answer."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from dlplatform.engine import weights
from dlplatform.engine.behaviour import Answers, compare_behaviour
from dlplatform.engine.table import Table
from dlplatform.engine.weights import compare_weights


def rows_by_name(tmp_path, base, head, **more):
    save_file(base, tmp_path / "base")
    save_file(head, tmp_path / "head")
    return {row["name"]: row for row in compare_weights(tmp_path / "base", tmp_path / "head", **more)}


def test_every_tensor_gets_its_distance(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ELEMENTS", 8)  # several pieces
    torch.manual_seed(0)
    old = torch.randn(10, 3)
    new = old.clone()
    new[4] += 1.0
    seen = []
    found = rows_by_name(
        tmp_path, {"a": old, "b": torch.ones(2), "c": torch.ones(1), "s": torch.tensor(2.0), "e": torch.ones(0, 3)},
        {"a": new, "b": torch.ones(2), "d": torch.ones(4), "s": torch.tensor(3.0), "e": torch.ones(0, 3)}, beat=seen.append,
    )  # fmt: skip
    row = found["a"]
    assert row["status"] == "changed" and row["share"] == pytest.approx(0.1) and row["largest"] == pytest.approx(1.0)
    assert row["relative_norm"] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-6)
    assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(old.flatten(), new.flatten(), 0)), rel=1e-5)
    assert found["b"]["status"] == found["e"]["status"] == "same" and found["b"]["relative_norm"] == 0
    assert (found["c"]["status"], found["d"]["status"]) == ("removed", "added")
    assert found["s"]["relative_norm"] == pytest.approx(0.5)
    assert seen[-1] == 1.0 and seen == sorted(seen)


def test_half_precision_zeros_and_other_shapes(tmp_path):
    found = rows_by_name(
        tmp_path,
        {"h": torch.ones(4, dtype=torch.bfloat16), "z": torch.zeros(3), "r": torch.ones(2, 3)},
        {"h": torch.full((4,), 1.5, dtype=torch.bfloat16), "z": torch.ones(3), "r": torch.ones(3, 2)},
    )
    assert found["h"]["relative_norm"] == pytest.approx(0.5) and found["h"]["cosine"] == pytest.approx(1.0)
    assert found["z"]["relative_norm"] is None and found["z"]["cosine"] is None
    assert found["r"]["status"] == "reshaped" and found["r"]["base_shape"] == [2, 3]


def table(count):
    colours = pa.array([None if index % 10 == 9 else ("red", "blue")[index % 2] for index in range(count)])
    return Table({"x": np.arange(count, dtype=float), "colour": colours, "y": pa.array(["a"] * count)}, count)


def answers(values, actual):
    values = np.array(values, dtype=float)
    return Answers(values, (values != actual).astype(float))


def test_flips_agreement_and_slices_of_classes():
    actual = np.zeros(100)
    old = np.where(np.arange(100) < 25, 1, 0)  # wrong on the first quarter
    new = np.where(np.arange(100) >= 75, 1, 0)  # wrong on the last
    found = compare_behaviour(table(100), answers(old, actual), answers(new, actual), ["no", "yes"])
    assert found["agreement"] == 0.5 and found["confusion"] == {"classes": ["no", "yes"], "counts": [[50, 25], [25, 0]]}
    assert found["loss"] == {"base": 0.25, "head": 0.25}
    assert found["flipped"]["to_right"]["count"] == found["flipped"]["to_wrong"]["count"] == 25
    example = found["flipped"]["to_right"]["examples"][0]
    assert example == {"row": 1, "values": {"x": 0.0, "colour": "red", "y": "a"}, "base": "yes", "head": "no"}
    best, worst = found["slices"]["better"][0], found["slices"]["worse"][0]
    assert (best["column"], best["rows"], best["base"], best["head"]) == ("x", 25, 1.0, 0.0)
    assert best["value"].startswith("0 to") and worst["value"].endswith("to 99")


def test_numbers_are_compared_by_their_error():
    actual = np.arange(40, dtype=float)
    base = Answers(actual + 2, np.full(40, 2.0))
    head = Answers(actual + 1, np.full(40, 1.0))
    found = compare_behaviour(table(40), base, head, None)
    assert found["difference"] == {"mean": -1.0, "mean_absolute": 1.0, "largest": -1.0}
    assert found["flipped"]["to_right"]["count"] == 40 and found["flipped"]["to_wrong"]["count"] == 0
    assert not found["slices"]["worse"] and found["slices"]["better"]


def test_rows_without_a_label_count_for_agreement_alone():
    nothing = np.full(12, np.nan)
    found = compare_behaviour(table(12), Answers(np.zeros(12), nothing), Answers(np.zeros(12), nothing), ["a"])
    assert found["agreement"] == 1.0 and found["labelled"] == 0 and "slices" not in found
