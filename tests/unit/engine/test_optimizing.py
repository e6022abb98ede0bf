"""Passes over finished networks: what they keep, what they cut, and that twenty broken results are all refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dlplatform.engine import package
from dlplatform.engine.dataset import Dataset
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.optimizing import pruning
from dlplatform.engine.optimizing.plan import EXACTLY, KEEPING, PASSES, Plan, PlanError, parse_plan, unfit
from dlplatform.engine.optimizing.report import notes, paired, problems, quality, report, wilson
from dlplatform.engine.optimizing.rows import actual, held_out_answers, inputs_at, split_again, targets_of
from dlplatform.engine.optimizing.verifying import BrokenPass, verified
from dlplatform.engine.optimizing.work import make_variant
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.runners import TorchRunner
from dlplatform.engine.runtime import GRAPH
from dlplatform.engine.schema import Column
from dlplatform.engine.table import read_table
from tests.unit.engine.conftest import mixed_columns, write_job

WIDE = {"architecture": "mlp", "folds": 1, "epochs": 6, "threads": 1, "params": {"layers": 2, "width": 64}}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished package with its rows."""

    package: Path
    loaded: package.Package
    rows: Dataset

    def variant(self, folder: Path, *passes: str, **settings: Any) -> Predictor:
        return make_variant(self.package, self.loaded, Plan(passes, **settings), self.rows, folder)


def trained(folder: Path, config: dict[str, Any], rows: int = 240, **more: Any) -> Trained:
    job = write_job(folder, mixed_columns(rows), config=config, **more)
    assert run_job(job) == 0, (job / "events.jsonl").read_text()[-2000:]
    return read_back(job)


def read_back(job: Path) -> Trained:
    loaded = package.load(job / "output")
    spec = json.loads((job / "spec.json").read_text())
    types = {column["name"]: column["type"] for column in spec["columns"]}
    targets = targets_of(loaded.description, types)
    columns = {name: Column(name, types[name]) for name in types}
    table = read_table([job / name for name in spec["data"]], list(columns.values()))
    return Trained(job / "output", loaded, split_again(loaded.description, loaded.preprocessor, table, targets, bytes))


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("perceptron") / "job", WIDE)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    config = {"epochs": 4, "threads": 1, "folds": 2, "params": {"members": 4, "width": 32}}
    return trained(tmp_path_factory.mktemp("ensemble") / "job", config)


# --- the rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["perceptron", "ensemble"])
def test_the_held_out_rows_are_those_of_the_run(which: str, request: pytest.FixtureRequest) -> None:
    found: Trained = request.getfixturevalue(which)
    answers = held_out_answers(Predictor(found.package).run, found.rows)
    right = (answers.argmax(1) == actual(found.rows)).mean()
    assert right == pytest.approx(found.loaded.description["metrics"]["accuracy"])
    for train, held in zip(found.rows.split.train, found.rows.split.validation, strict=True):
        assert not set(train) & set(held)


# --- passes ---------------------------------------------------------------------------------------------


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


# --- what a plan may say --------------------------------------------------------------------------------


def test_plans_are_read_and_written() -> None:
    plan = parse_plan({"passes": ["structured", "onnx-int8-static"], "keep": 0.25, "epochs": 3})
    assert plan.name == "structured 25% + onnx-int8-static"
    assert parse_plan(plan.to_dict()) == plan
    assert parse_plan({"passes": ["onnx"]}).to_dict() == {"passes": ["onnx"]}
    assert all(len(text) > 30 for text in PASSES.values())


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({}, "passes"), ({"passes": []}, "passes"), ({"passes": "onnx"}, "passes"), ({"passes": ["faster"]}, "passes"),
        ({"passes": ["onnx", "structured"]}, "passes"), ({"passes": ["sparse", "distil"]}, "passes"),
        ({"passes": ["sparse", "onnx"]}, "passes"), ({"passes": [["onnx"]]}, "passes"),
        ({"passes": ["structured"], "keep": 2}, "keep"), ({"passes": ["structured"], "keep": True}, "keep"),
        ({"passes": ["structured"], "epochs": 1.5}, "epochs"), ({"passes": ["onnx"], "keep": 0.5}, "keep"),
        ({"passes": ["structured"], "keep": float("nan")}, "keep"),
    ],
)  # fmt: skip
def test_plans_that_make_no_sense_are_refused_by_field(raw: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanError) as refused:
        parse_plan(raw)
    assert refused.value.field == field


def test_models_that_no_plan_fits_say_why() -> None:
    assert "Language" in (unfit("language-model", {}, Plan(("onnx",))) or "")
    assert "sandbox" in (unfit("classification", {"architecture": "code"}, Plan(("onnx",))) or "")
    assert unfit("classification", {"architecture": "linear", "layers": 0}, Plan(("structured",)))
    assert unfit("classification", {"architecture": "mlp", "layers": 2}, Plan(("structured",))) is None


def test_a_narrow_network_is_not_cut_for_nothing(perceptron: Trained, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cut nothing"):
        make_variant(
            perceptron.package, perceptron.loaded, Plan(("structured",), keep=1.0), perceptron.rows, tmp_path / "made"
        )


# --- the report -----------------------------------------------------------------------------------------


def test_the_report_measures_both_in_turns(perceptron: Trained, tmp_path: Path) -> None:
    perceptron.variant(tmp_path / "made", "onnx-int8-dynamic")
    told = report(perceptron.package, tmp_path / "made", perceptron.rows, 0.5)
    assert set(told["latency"]) == {"1", "32", "64"}
    for each in told["latency"].values():
        assert each["runs"] >= 60
        assert each["ratio"][0] <= each["ratio"][1] <= each["ratio"][2]
        assert 0 < each["variant"]["p50"] <= each["variant"]["p99"]
        assert each["whole"]["parent"]["throughput"] > 0
    assert told["size"]["variant"]["bytes"] < told["size"]["parent"]["bytes"]
    low, share, high = told["quality"]["variant"]
    assert 0 <= low < share < high <= 1
    assert told["agreement"] > 0.9
    assert json.loads(json.dumps(told)) == told


def a_report(**changed: Any) -> dict[str, Any]:
    turn = {"ratio": [0.9, 1.0, 1.04], "work": [0.9, 1.0, 1.04]}
    told = {
        "tolerance": 0.5, "rows": {"held_out": 500},
        "quality": {"name": "accuracy", "change": [-0.2, 0.0, 0.2]},
        "latency": {"1": turn, "64": turn},
        "size": {"parent": {"bytes": 10**6, "compressed": 9**6}, "variant": {"bytes": 10**6, "compressed": 9**6}},
    }  # fmt: skip
    return told | changed


def test_what_speaks_against_a_variant_is_said_by_name() -> None:
    assert problems(a_report()) == []
    assert notes(a_report()) == ["It is neither faster nor smaller than its parent."]
    slow = problems(
        a_report(
            latency={
                "1": {"ratio": [1.2, 1.3, 1.5], "work": [1.1, 1.2, 1.3]},
                "64": {"ratio": [0.5, 0.6, 0.7], "work": [0.5, 0.6, 0.7]},
            }
        )
    )
    assert [each["code"] for each in slow] == ["slower"]
    assert "1.30 times as long for one row" in slow[0]["sentence"]
    busy = {"1": {"ratio": [1.2, 1.3, 1.5], "work": [0.9, 1.0, 1.1]}}  # interrupted more often, no more work
    assert problems(a_report(latency=busy)) == []
    big = {"parent": {"bytes": 10**6, "compressed": 1}, "variant": {"bytes": 2 * 10**6, "compressed": 1}}
    assert [each["code"] for each in problems(a_report(size=big))] == ["bigger"]
    worse = a_report(quality={"name": "accuracy", "change": [-2.0, -0.8, 0.1]})
    assert [each["code"] for each in problems(worse)] == ["worse"]
    unsure = a_report(quality={"name": "accuracy", "change": [-0.9, -0.3, 0.3]})
    assert "cannot be ruled out" in notes(unsure)[0]


def test_intervals_hold_what_they_promise() -> None:
    """Simulated: of 400 experiments about 95 in 100 intervals hold the truth."""
    random = np.random.default_rng(0)
    held = changed = 0
    for _ in range(400):
        before = (random.random(200) < 0.9).astype(float)
        flips = random.random(200) < 0.06
        after = np.where(flips, 1 - before, before)
        low, _, high = wilson(before)
        held += low <= 0.9 <= high
        low, _, high = paired(before, after)
        changed += low <= 0.06 * (0.1 - 0.9) <= high
    assert held > 365
    assert changed > 365
    same = np.ones(50)
    assert paired(same, same)[0] < 0 < paired(same, same)[2]  # no flipped row is no certainty
    assert quality(same, same, "number")["change"] == [0.0, 0.0, 0.0]


# --- twenty broken passes -------------------------------------------------------------------------------


def described(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description, and make the manifest agree: whoever breaks a package may know that much."""
    path = folder / "model.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    (folder / "manifest.json").unlink(missing_ok=True)


def regraphed(folder: Path, change: Callable[[Any], None], sign: bool = True) -> None:
    """Change the graph; with its new SHA-256 in the description unless not signed."""
    path = folder / GRAPH
    model = onnx.load(str(path))
    change(model)
    content = model.SerializeToString()
    path.write_bytes(content)
    if sign:
        described(folder, lambda told: told["runtime"].update(sha256=hashlib.sha256(content).hexdigest()))
    else:
        (folder / "manifest.json").unlink(missing_ok=True)


def weights_of(model: Any) -> list[Any]:
    return [each for each in model.graph.initializer if len(each.dims) == 2 and each.data_type == 1]


def replaced(tensor: Any, values: Any) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def spoil(model: Any, change: Callable[[Any], Any]) -> None:
    tensor = weights_of(model)[-1]
    replaced(tensor, change(numpy_helper.to_array(tensor).copy()))


def with_nan(values: Any) -> Any:
    values[0, 0] = np.nan
    return values


def swapped_layers(model: Any) -> None:
    """The first two square matrices change places."""
    square = [each for each in weights_of(model) if each.dims[0] == each.dims[1]]
    other = numpy_helper.to_array(square[0])[::-1].copy()
    replaced(square[0], other)


def without_opset(model: Any) -> None:
    del model.opset_import[:]


def outside(model: Any) -> None:
    tensor = weights_of(model)[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def foreign_operator(model: Any) -> None:
    model.opset_import.add(domain="evil.example", version=1)
    model.graph.node[0].domain = "evil.example"


def renamed_input(model: Any) -> None:
    model.graph.input[0].name = "anything"


def permuted_output(model: Any) -> None:
    """Classes in another order: a Gather behind the last node."""
    last = model.graph.node[-1]
    outputs = model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    last.output[0] = "before_order"
    order = numpy_helper.from_array(np.arange(outputs)[::-1].astype(np.int64).copy(), "order")
    model.graph.initializer.append(order)
    model.graph.node.append(onnx.helper.make_node("Gather", ["before_order", "order"], ["answers"], axis=2))


def depends_on_neighbours(model: Any) -> None:
    """Answers take the mean over the rows beside."""
    last = model.graph.node[-1]
    last.output[0] = "each"
    mean = onnx.helper.make_node("ReduceMean", ["each"], ["mean"], keepdims=1)
    mean.attribute.extend([])
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    model.graph.initializer.append(axes)
    mean.input.append("axes")
    model.graph.node.extend([
        mean,
        onnx.helper.make_node("Mul", ["each", "tenth"], ["less"]),
        onnx.helper.make_node("Mul", ["mean", "rest"], ["more"]),
        onnx.helper.make_node("Add", ["less", "more"], ["answers"]),
    ])  # fmt: skip
    for name, value in (("tenth", 0.1), ("rest", 0.9)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))


def padded(folder: Path) -> None:
    """Twice the weights: a tensor that nothing reads."""
    bulk = numpy_helper.from_array(np.random.default_rng(0).normal(size=(1 << 21)).astype(np.float32), "bulk")
    regraphed(folder, lambda model: model.graph.initializer.append(bulk))


def truncated(folder: Path) -> None:
    path = folder / GRAPH
    path.write_bytes(path.read_bytes()[:-1000])


def stale_scales(model: Any) -> None:
    """Calibrated on rows of another unit: every scale of what flows through is a thousandth."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale") and not len(tensor.dims):
            replaced(tensor, numpy_helper.to_array(tensor) / 1000)


BROKEN_GRAPHS: dict[str, Callable[[Path], None]] = {
    "a weight is not a number": lambda folder: regraphed(folder, lambda model: spoil(model, with_nan)),
    "weights of noise": lambda folder: regraphed(
        folder, lambda model: spoil(model, lambda w: np.random.default_rng(0).normal(size=w.shape).astype(np.float32))
    ),
    "weights off by a thousandth": lambda folder: regraphed(
        folder, lambda model: spoil(model, lambda w: w + np.float32(0.01) * np.sign(w))
    ),
    "rows of a layer in another order": lambda folder: regraphed(folder, swapped_layers),
    "outputs in another order": lambda folder: regraphed(folder, permuted_output),
    "a row's answer depends on its neighbours": lambda folder: regraphed(folder, depends_on_neighbours),
    "the set of operators is missing": lambda folder: regraphed(folder, without_opset),
    "weights in a file outside": lambda folder: regraphed(folder, outside),
    "an operator of strangers": lambda folder: regraphed(folder, foreign_operator),
    "an input of another name": lambda folder: regraphed(folder, renamed_input),
    "changed after it was checked": lambda folder: regraphed(
        folder, lambda model: spoil(model, lambda w: w * np.float32(1.0001)), sign=False
    ),
    "a file that was cut off": truncated,
    "a file with a second copy in it": padded,
    "no file at all": lambda folder: (folder / GRAPH).unlink(),
    "classes in another order": lambda folder: described(
        folder, lambda told: told["output"]["classes"].reverse()
    ),
    "other preprocessing": lambda folder: described(
        folder, lambda told: told["preprocessing"][0].update(unit=1234.5)
    ),
    "said to be of another precision": lambda folder: described(
        folder, lambda told: told["runtime"].update(precision="int8-static")
    ),
    "a description that is no JSON": lambda folder: (folder / "model.json").write_text("{"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN_GRAPHS)
def test_broken_graphs_are_refused(how: str, perceptron: Trained, exact_graph: Path, tmp_path: Path) -> None:
    shutil.copytree(exact_graph, tmp_path / "made")
    BROKEN_GRAPHS[how](tmp_path / "made")
    with pytest.raises(BrokenPass) as refused:
        verified(
            perceptron.package, tmp_path / "made", Plan(("onnx",)), perceptron.rows,
            TorchRunner(perceptron.loaded.network),
        )  # fmt: skip
    assert str(refused.value).endswith((".", ")")) or ":" in str(refused.value)


@pytest.fixture(scope="module")
def exact_graph(perceptron: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph") / "made"
    perceptron.variant(folder, "onnx")
    return folder


def test_stale_calibration_is_refused(perceptron: Trained, tmp_path: Path) -> None:
    perceptron.variant(tmp_path / "made", "onnx-int8-static")
    regraphed(tmp_path / "made", stale_scales)
    with pytest.raises(BrokenPass, match="agrees"):
        verified(
            perceptron.package, tmp_path / "made", Plan(("onnx-int8-static",)), perceptron.rows,
            TorchRunner(perceptron.loaded.network),
        )  # fmt: skip


def test_a_network_that_was_cut_to_nothing_is_refused(perceptron: Trained, tmp_path: Path) -> None:
    """Cut to 5 % and never taught again it knows no more than a guess."""
    with pytest.raises(BrokenPass, match="knows no more"):
        for keep in (0.05, 0.051):  # whichever of the two happens to guess right
            network = pruning.structured(perceptron.loaded.network, keep)
            with torch.no_grad():
                network.head.weight.zero_()
            folder = tmp_path / str(keep)
            told = perceptron.loaded.description | {"architecture": network.shape.to_dict()}
            package.save(folder, told, network.state_dict(), "", {})
            verified(perceptron.package, folder, Plan(("structured",)), perceptron.rows, TorchRunner(network))


def test_a_traced_program_that_was_changed_is_refused(perceptron: Trained, tmp_path: Path) -> None:
    perceptron.variant(tmp_path / "made", "torch-export")
    path = tmp_path / "made" / "model.pt2"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (tmp_path / "made" / "manifest.json").unlink()
    with pytest.raises(PackageError, match="not the file that was checked"):
        package.verify(tmp_path / "made")


def test_graphs_are_read_as_files_of_strangers(exact_graph: Path, tmp_path: Path) -> None:
    """What the registry checks before it keeps an uploaded package."""
    assert package.verify(exact_graph)["runtime"]["kind"] == "onnx"
    with pytest.raises(PackageError, match="made from"):
        package.load(exact_graph)
    for runtime in ({"kind": "tensorrt"}, {"kind": "onnx"}, "onnx", {"weights": "int4"}, {"unknown": 1}):
        folder = tmp_path / str(abs(hash(str(runtime))))
        shutil.copytree(exact_graph, folder)
        described(folder, lambda told, runtime=runtime: told.update(runtime=runtime))  # type: ignore[misc]
        with pytest.raises(PackageError):
            package.verify(folder)


def test_rows_of_another_kind_are_refused(perceptron: Trained, tmp_path: Path) -> None:
    described_ = perceptron.loaded.description
    with pytest.raises(EngineError, match="predicts"):
        targets_of(described_, {"number": "number"})
    assert inputs_at(perceptron.rows.inputs, np.arange(3)).numbers.shape[0] == 3
