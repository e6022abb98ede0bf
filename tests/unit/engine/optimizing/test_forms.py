"""Graphs that are made of networks on this machine: the same answers, found again, refused where they would be of no use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlplatform.engine import compiling, forms
from dlplatform.engine.compiling import Compiler, name_of
from dlplatform.engine.errors import EngineError
from dlplatform.engine.forms import GRAPH, GRAPH_BYTES, gains_by_graph
from dlplatform.engine.likeness import answers_alike, sample, times_as_fast
from dlplatform.engine.optimizing.report import threads
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import GraphRunner, TorchRunner
from tests.unit.engine.optimizing.conftest import Trained


def test_a_child_makes_a_graph_that_answers_as_the_network_does_and_it_is_found_again(
    ensemble: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")  # it needs none
    compiler, network = Compiler(tmp_path / "cache", form=GRAPH), ensemble.loaded.network
    with threads(1):
        assert compiler.found(ensemble.package, network) is None
        runner = compiler.runner(ensemble.package, network)
        assert isinstance(runner, GraphRunner)
        assert answers_alike(runner, TorchRunner(network), sample(network, 300))
        assert runner(sample(network, 0)).shape == (2, 0, network.shape.outputs)
        (made,) = (tmp_path / "cache").glob("*.onnx")
        told = compiler.told(ensemble.package)
        assert told["bytes"] == made.stat().st_size > 0 and told["seconds"] > 0
        assert not list((tmp_path / "cache").glob("work-*"))

        monkeypatch.setattr(compiling.Compiler, "_compile", None)  # whoever comes later finds it
        again = Compiler(tmp_path / "cache", form=GRAPH).found(ensemble.package, network)
        assert again is not None
        np.testing.assert_array_equal(again(sample(network, 9)), runner(sample(network, 9)))
        assert Compiler(tmp_path / "cache").found(ensemble.package, network) is None  # compiled it is not

        made.write_bytes(b"no graph")
        assert compiler.found(ensemble.package, network) is None and not made.exists()


def test_a_graph_of_another_network_is_not_trusted(ensemble: Trained, perceptron: Trained, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    perceptron.variant(tmp_path / "made", "onnx")
    (tmp_path / "made" / "model.onnx").rename(path)
    with pytest.raises(EngineError) as told:
        GRAPH.opened(path, ensemble.loaded.network)
    assert told.value.code in ("compiled_differs", "not_compiled")
    assert isinstance(GRAPH.opened(path, perceptron.loaded.network), GraphRunner)
    with pytest.raises(EngineError, match="cannot be opened"):
        GRAPH.opened(tmp_path / "made" / "model.json", perceptron.loaded.network)


def test_its_name_depends_on_the_program_that_runs_it(ensemble: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of(ensemble.package, 1, GRAPH)
    assert before != name_of(ensemble.package, 1)
    monkeypatch.setattr(forms, "_version", lambda _program: "0")
    assert name_of(ensemble.package, 1, GRAPH) != before


def test_only_networks_of_this_platform_that_torch_runs_whole_gain_by_it(
    ensemble: Trained, perceptron: Trained, tmp_path: Path
) -> None:
    assert gains_by_graph(Predictor(ensemble.package), 1000)
    assert not gains_by_graph(Predictor(ensemble.package), GRAPH_BYTES + 1)
    assert not gains_by_graph(Predictor(perceptron.package), 1000)  # which has a shorter way
    for kind in ("torch-compile", "bfloat16", "int8", "onnx"):
        ensemble.variant(tmp_path / kind, kind)
        assert not gains_by_graph(Predictor(tmp_path / kind), 1000), kind

    def changed(**more: Any) -> Predictor:
        predictor = Predictor(ensemble.package)
        predictor.description |= more
        return predictor

    assert not gains_by_graph(changed(finetune={"mode": "lora"}), 1000)
    assert not gains_by_graph(changed(task="language-model"), 1000)


def test_how_many_times_as_fast_goes_by_the_least_of_the_times(
    ensemble: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([2.0, 3.0, 9.0, 4.0] + [5.0, 8.0] * 5)
    clock = SimpleNamespace(now=0.0)

    def takes(rows: Any) -> Any:
        assert len(rows.numbers) == 8
        clock.now += next(seconds)

    monkeypatch.setattr("dlplatform.engine.likeness.time.perf_counter", lambda: clock.now)
    assert times_as_fast(takes, takes, ensemble.loaded.network, 8) == 1.5
