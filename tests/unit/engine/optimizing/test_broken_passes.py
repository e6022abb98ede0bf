"""Twenty broken results of passes are all refused."""

from __future__ import annotations

import hashlib
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
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.optimizing import pruning
from dlplatform.engine.optimizing.plan import Plan
from dlplatform.engine.optimizing.rows import inputs_at, targets_of
from dlplatform.engine.optimizing.verifying import BrokenPass, verified
from dlplatform.engine.runners import TorchRunner
from dlplatform.engine.runtime import GRAPH
from tests.unit.engine.optimizing.conftest import Trained, described


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
