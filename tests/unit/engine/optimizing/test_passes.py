"""Passes over finished networks: what they keep and what they cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dlplatform.engine import package
from dlplatform.engine.optimizing import pruning
from dlplatform.engine.optimizing.plan import EXACTLY, KEEPING
from dlplatform.engine.optimizing.report import report
from dlplatform.engine.optimizing.rows import actual, held_out_answers
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.runners import TorchRunner
from tests.unit.engine.conftest import mixed_columns, write_job
from tests.unit.engine.optimizing.conftest import WIDE, Trained, read_back


@pytest.mark.parametrize("which", ["perceptron", "ensemble"])
def test_the_held_out_rows_are_those_of_the_run(which: str, request: pytest.FixtureRequest) -> None:
    found: Trained = request.getfixturevalue(which)
    answers = held_out_answers(Predictor(found.package).run, found.rows)
    right = (answers.argmax(1) == actual(found.rows)).mean()
    assert right == pytest.approx(found.loaded.description["metrics"]["accuracy"])
    for train, held in zip(found.rows.split.train, found.rows.split.validation, strict=True):
        assert not set(train) & set(held)


@pytest.mark.parametrize(
    ("which", "kept"),
    [*(("perceptron", kept) for kept in KEEPING), ("ensemble", "onnx-int8-dynamic"), ("ensemble", "bfloat16")],
)
def test_whatever_keeps_the_network_answers_as_before(
    which: str, kept: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found: Trained = request.getfixturevalue(which)
    predictor = found.variant(tmp_path / "made", kept)
    rows = found.rows.inputs
    before, after = TorchRunner(found.loaded.network)(rows), predictor.run(rows)
    assert np.abs(before - after).max() < (1e-4 if kept in EXACTLY else 0.1)
    assert (before.mean(0).argmax(1) == after.mean(0).argmax(1)).mean() > (0.9999 if kept in EXACTLY else 0.95)
    example = {column["name"]: column["example"] for column in predictor.description["inputs"]}
    again = Predictor(tmp_path / "made").predict([example])
    assert again == predictor.predict([example])
    assert again[0]["label"] in predictor.description["output"]["classes"]
    assert (tmp_path / "made" / "README.md").read_text().startswith("# Model of")


@pytest.mark.parametrize("which", ["perceptron", "ensemble"])
@pytest.mark.parametrize("shaping", ["structured", "sparse", "distil"])
def test_networks_are_cut_and_recover(which: str, shaping: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found: Trained = request.getfixturevalue(which)
    predictor = found.variant(tmp_path / "made", shaping, epochs=8, keep=0.5, sparsity=0.7)
    before, after = (
        sum(each.numel() for each in net.parameters()) for net in (found.loaded.network, predictor.network)
    )
    if shaping == "sparse":
        assert after == before
        weight = predictor.network.hidden[0].weight
        assert (weight == 0).float().mean() == pytest.approx(0.7, abs=0.02)
    else:
        assert after < before
        assert max(predictor.network.shape.layer_widths) == max(found.loaded.network.shape.layer_widths) // 2
    assert predictor.description["lineage"]["optimised"]["passes"] == [shaping]
    assert predictor.description["metrics"]["accuracy"] > 0.52
    assert found.loaded.network.shape.widths == ()  # the parent is as it was


def test_a_cut_without_recovery_keeps_the_units_that_matter(perceptron: Trained) -> None:
    """Units that are made to say nothing go first, and then the answers stay the same."""
    network = package.load(perceptron.package).network
    with torch.no_grad():
        network.hidden[0].weight[..., 10:45] = 0.0
        network.hidden[0].bias[..., 10:45] = 0.0
        network.hidden[1].weight[..., 5:38] = 0.0
        network.hidden[1].bias[..., 5:38] = 0.0
    narrow = pruning.structured(network, 0.5)
    assert narrow.shape.widths == (32, 32)
    rows = perceptron.rows.inputs
    assert np.abs(TorchRunner(network)(rows) - TorchRunner(narrow)(rows)).max() < 1e-5


@pytest.mark.parametrize("encoder", ["resnet", "convnext"])
def test_channels_are_cut_with_all_that_reads_and_writes_them(encoder: str) -> None:
    from dlplatform.engine.network import NetworkShape, RowNetwork
    from dlplatform.engine.preprocessing import InputSizes

    sizes = InputSizes(3, (), (), 0, images=2, image_channels=1, image_size=16)
    shape = NetworkShape(
        "mlp", 1, 1, 4, sizes, layers=1, width=24, kind="class", image_encoder=encoder, image_width=16, image_depth=2
    )
    network = RowNetwork(shape)
    for parameter in [*network.parameters(), *network.buffers()]:
        if parameter.is_floating_point():
            torch.nn.init.uniform_(parameter.detach(), 0.1, 1.0)
    narrow = pruning.structured(network.eval(), 0.5)
    assert narrow.shape.image_inner
    assert sum(each.numel() for each in narrow.parameters()) < 0.7 * sum(each.numel() for each in network.parameters())
    from dlplatform.engine.preprocessing import Inputs

    random = np.random.default_rng(0)
    rows = Inputs(
        random.normal(size=(5, 3)).astype(np.float32), np.zeros((5, 0), np.int32), np.zeros((5, 0, 64), np.int32),
        np.zeros((5, 0, 0), np.int32), random.integers(0, 255, (5, 2, 1, 16, 16)).astype(np.uint8),
    )  # fmt: skip
    assert TorchRunner(narrow)(rows).shape == (1, 5, 4)
    assert NetworkShape.from_dict(json.loads(json.dumps(narrow.shape.to_dict()))) == narrow.shape


def test_numbers_and_labels_are_optimised_too(tmp_path: Path) -> None:
    columns = mixed_columns(200)
    random = np.random.default_rng(3)
    columns["amount"] = ("number", [float(each) for each in random.normal(5, 2, 200)])
    columns["amount"] = ("number", [5 + 2 * (value or 0) for value in columns["number"][1]])
    job = write_job(tmp_path / "job", columns, task="regression", target="amount", config=WIDE)
    assert run_job(job) == 0
    found = read_back(job)
    predictor = found.variant(tmp_path / "made", "structured", "onnx", keep=0.5, epochs=8)
    assert predictor.description["metrics"]["r2"] > 0.2
    told = report(found.package, tmp_path / "made", found.rows, 0.5)
    assert told["quality"]["name"] == "R²"
