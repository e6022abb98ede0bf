"""A network of rows as a graph for onnxruntime, from encoded rows to what each group answers."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, Final

import torch
from torch import Tensor, nn

from dlplatform.engine.errors import EngineError
from dlplatform.engine.graphs import ANSWERS, MAXIMUM_BYTES, input_types
from dlplatform.engine.network import Batch, RowNetwork
from dlplatform.engine.objective import mean_prediction
from dlplatform.engine.programs import traced

OPSET: Final = 20
_ROWS: Final = 2  # of the example that is traced


class Answering(nn.Module):
    """Encoded rows → (G, B, K): the inputs that the network has, in the order of `graphs.input_types`."""

    def __init__(self, network: RowNetwork) -> None:
        super().__init__()
        self.names = list(input_types(network.shape.inputs))
        self.plain = _plain_layers(network) if _is_plain(network) else None
        self.network = network if self.plain is None else _without_layers(network)

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        batch = _batch(given, self.network)
        if self.plain is None:
            return mean_prediction(self.network, self.network(batch))
        numbers, rest = self.network.encoder(batch)
        state = torch.cat([numbers, rest], -1)[0] if rest.shape[-1] else numbers[0]
        return mean_prediction(self.network, self.plain(state).unsqueeze(0).unsqueeze(0))


def _batch(given: dict[str, Tensor], network: RowNetwork) -> Batch:
    """Every group sees the same rows; what the network does not read is empty."""
    groups, sizes = network.shape.groups, network.shape.inputs
    rows = next(iter(given.values())).shape[0]
    empty = {
        "numbers": torch.zeros(rows, 0),
        "categories": torch.zeros(rows, 0, dtype=torch.int32),
        "tokens": torch.zeros(rows, 0, sizes.tokens, dtype=torch.int32),
    }
    seen = {name: given.get(name, empty.get(name)) for name in Batch._fields}
    return Batch(
        **{name: None if each is None else each.expand(groups, *each.shape) for name, each in seen.items()}  # type: ignore[arg-type]
    )


def _is_plain(network: RowNetwork) -> bool:
    shape = network.shape
    return shape.architecture in ("mlp", "linear") and shape.groups == shape.members == 1


def _without_layers(network: RowNetwork) -> RowNetwork:
    """Its encoder and its statistics: the layers, which are in the plain ones already, would be written a second time."""
    bare = copy.copy(network)
    bare._modules = {"encoder": network.encoder}
    return bare


def _plain_layers(network: RowNetwork) -> nn.Sequential:
    """A single perceptron, or linear model, without the axes of groups and members: its matrices are then plain
    products, which can be quantised by channel."""
    found = [network.linear] if network.shape.architecture == "linear" else [*network.hidden, network.head]
    layers: list[nn.Module] = []
    for layer in found:
        plain = nn.Linear(layer.weight.shape[-2], layer.weight.shape[-1])
        plain.weight.data = layer.weight.detach()[0].T.contiguous()
        plain.bias.data = layer.bias.detach().reshape(-1)
        layers += [plain, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def exported(network: RowNetwork) -> Any:
    """The graph as onnx's ModelProto, checked by onnx. Raises EngineError ``not_exportable``."""
    import onnx

    names = list(input_types(network.shape.inputs))
    dynamic = tuple({0: torch.export.Dim("rows", min=1, max=1 << 20)} for _ in names)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                Answering(network).eval(), example_of(network), dynamo=True, opset_version=OPSET, input_names=names,
                output_names=[ANSWERS], dynamic_shapes=(dynamic,), verify=False, optimize=True,
            )  # fmt: skip
            model = program.model_proto  # type: ignore[union-attr]
            _forget_sources(model)
            onnx.checker.check_model(model)
        except Exception as error:  # whatever in the network cannot be traced or has no counterpart
            sentence = "The network cannot be written as a graph for onnxruntime."
            fix = "Choose a pass that keeps it in PyTorch."
            raise EngineError(
                "not_exportable", sentence, fix, detail=f"{type(error).__name__}: {error}"[:2000]
            ) from error
    if model.ByteSize() > MAXIMUM_BYTES:
        raise EngineError("not_exportable", "A graph of more than 2 GB cannot be one file.", "Choose another pass.")
    return model


def program_of(network: RowNetwork) -> bytes:
    """The file of the network as torch.export traces it. Raises EngineError ``not_exportable``."""
    with _quiet():
        try:
            return traced(Answering(network).eval(), example_of(network))
        except Exception as error:  # whatever in the network cannot be traced
            sentence, fix = "The network cannot be traced by torch.export.", "Choose another pass."
            raise EngineError(
                "not_exportable", sentence, fix, detail=f"{type(error).__name__}: {error}"[:2000]
            ) from error


def _forget_sources(model: Any) -> None:
    """The exporter notes at every node which line of which file it came from: bytes that nobody needs."""
    for each in [model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer]:
        del each.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""


def example_of(network: RowNetwork) -> tuple[Tensor, ...]:
    """Inputs as `Answering` takes them, to be traced with."""
    kinds = {1: torch.float32, 2: torch.uint8, 6: torch.int32}
    found = input_types(network.shape.inputs)
    return tuple(torch.ones(_ROWS, *rest, dtype=kinds[kind]) for kind, rest in found.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its progress, and of libraries that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
