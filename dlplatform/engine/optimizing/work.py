"""One plan worked on one package: the network changed, kept as asked, written, read again and verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dlplatform.engine import compact, package
from dlplatform.engine.card import model_card
from dlplatform.engine.dataset import Dataset
from dlplatform.engine.errors import EngineError
from dlplatform.engine.evaluation import evaluate
from dlplatform.engine.network import RowNetwork, build_network
from dlplatform.engine.optimizing import pruning
from dlplatform.engine.optimizing.exporting import OPSET, exported, program_of
from dlplatform.engine.optimizing.learning import taught_student, teach
from dlplatform.engine.optimizing.plan import COMPILE, DISTIL, EXPORT, GRAPHS, SPARSE, STRUCTURED, Plan, unfit
from dlplatform.engine.optimizing.quantizing import quantized
from dlplatform.engine.optimizing.rows import actual, calibration, held_out_answers
from dlplatform.engine.optimizing.verifying import Opened, verified
from dlplatform.engine.package import Package
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import TorchRunner
from dlplatform.engine.runtime import COMPILED, EXPORTED, ONNX, Runtime
from dlplatform.engine.tokens import FILE as TOKENIZER

Beat = Callable[[float], None]


def make_variant(
    parent: Path, loaded: Package, plan: Plan, dataset: Dataset, folder: Path, beat: Beat = lambda _: None,
    opened: Opened = Predictor,
) -> Predictor:  # fmt: skip
    """Write what a plan makes of a loaded package into a new ``folder``; what answers from there.

    ``dataset``: see `rows.split_again`. ``opened`` gives what answers from a package, compiled where it is to be (see
    `compiling.Compiler.predictor`). Raises EngineError for what cannot be done, BrokenPass for a result that is not
    what it should be.
    """
    if reason := unfit(str(loaded.description["task"]), loaded.description["architecture"], plan):
        raise EngineError("unfit", reason)
    network = shaped(whole(loaded), plan, dataset, lambda done: beat(0.7 * done))
    beat(0.7)
    content, runtime = kept(network, plan, dataset)
    beat(0.9)
    described = _described(loaded.description, network, runtime, plan)
    extra = {TOKENIZER: (parent / TOKENIZER).read_bytes()} if (parent / TOKENIZER).is_file() else {}
    package.save_content(folder, described, content, "", {}, extra)
    predictor = verified(parent, folder, plan, dataset, TorchRunner(network), opened)
    evaluation = evaluate(dataset, actual(dataset), held_out_answers(predictor.run, dataset), [])
    described["metrics"] = evaluation["metrics"]
    package.save_content(folder, described, content, model_card(described, evaluation), evaluation, extra)
    predictor.description["metrics"] = evaluation["metrics"]
    return predictor


def whole(loaded: Package) -> RowNetwork:
    """A copy of the package's network, adapters worked in."""
    if not isinstance(loaded.network, RowNetwork):
        raise EngineError("unfit", "Only networks that answer rows are optimised.")
    network = build_network(loaded.network.shape)
    network.load_state_dict(package.merged_tensors(loaded))
    return network.eval()


def shaped(network: RowNetwork, plan: Plan, dataset: Dataset, beat: Beat) -> RowNetwork:
    """The network that the plan's first pass makes, recovered or taught by the one that was."""
    if plan.shaping == STRUCTURED:
        narrow = pruning.structured(network, plan.keep)
        teach(narrow, network, dataset, plan.epochs, beat=beat)
        return narrow
    if plan.shaping == DISTIL:
        return taught_student(network, dataset, plan.keep, plan.epochs, beat)
    if plan.shaping == SPARSE:
        thin = build_network(network.shape)
        thin.load_state_dict(network.state_dict())
        masks = pruning.masks(thin, plan.sparsity)
        pruning.apply_masks(thin, masks)
        teach(thin, network, dataset, plan.epochs, after_step=lambda: pruning.apply_masks(thin, masks), beat=beat)
        return thin
    return network


def kept(network: RowNetwork, plan: Plan, dataset: Dataset) -> tuple[bytes, Runtime]:
    """The file of the network as the plan's last pass keeps it."""
    if plan.keeping in GRAPHS:
        return _graph(network, GRAPHS[plan.keeping], dataset)
    if plan.keeping == EXPORT:
        content = program_of(network)
        return content, Runtime(
            EXPORTED, sha256=hashlib.sha256(content).hexdigest(), program=f"torch {torch.__version__}"
        )
    if plan.keeping == COMPILE:
        return package.weights_content(network.state_dict()), Runtime(COMPILED)
    weights = plan.keeping or "float32"
    tensors = compact.stored(network, network.state_dict(), weights)
    return package.weights_content(tensors), Runtime(weights=weights)


def _graph(network: RowNetwork, precision: str, dataset: Dataset) -> tuple[bytes, Runtime]:
    import onnxruntime

    model = exported(network)
    if precision != "float32":
        model = quantized(model, precision, calibration(dataset))
    content = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    return content, Runtime(ONNX, "float32", precision, OPSET, digest, f"onnxruntime {onnxruntime.__version__}")


def _described(parent: dict[str, Any], network: RowNetwork, runtime: Runtime, plan: Plan) -> dict[str, Any]:
    """The parent's description of another network; it is no adapter any more."""
    described = {name: value for name, value in parent.items() if name not in ("finetune", "runtime", "metrics")}
    lineage = {**parent["lineage"], "optimised": plan.to_dict()}
    told = {} if runtime == Runtime() else {"runtime": runtime.to_dict()}
    return {**described, "architecture": network.shape.to_dict(), "lineage": lineage, "metrics": {}, **told}
