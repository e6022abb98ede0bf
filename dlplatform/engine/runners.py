"""What answers encoded rows: a torch network or a graph of onnxruntime, behind one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dlplatform.engine import compact
from dlplatform.engine.dataset import batches
from dlplatform.engine.graphs import input_types
from dlplatform.engine.network import NetworkShape, RowNetwork
from dlplatform.engine.objective import DEEP_EVALUATION_ROWS, EVALUATION_ROWS, evaluation_rows, mean_prediction
from dlplatform.engine.preprocessing import Inputs
from dlplatform.engine.runtime import EXPORTED, runtime_of

Array = np.ndarray[Any, Any]
# Encoded rows → (G, n, K) float64: what each group says, probabilities or coded numbers.
Runner = Callable[[Inputs], Array]


class TorchRunner:
    """A network in evaluation mode; under autocast where its matrices are bfloat16 in memory."""

    def __init__(self, network: RowNetwork, lowered: bool = False) -> None:
        self.network = network
        self.lowered = lowered

    def __call__(self, inputs: Inputs) -> Array:
        with torch.inference_mode():
            if not self.lowered:  # entering autocast takes as long as a small layer
                return self._answers(inputs)
            with torch.autocast("cpu", torch.bfloat16):
                return self._answers(inputs)

    def _answers(self, inputs: Inputs) -> Array:
        parts = []
        for batch in batches(inputs, self.network.shape.groups, evaluation_rows(self.network)):
            parts.append(mean_prediction(self.network, self.network(batch)).double().numpy())
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


class ProgramRunner:
    """A module that torch.export traced, whose inputs are those of `graphs.input_types`."""

    def __init__(self, module: Any, shape: NetworkShape) -> None:
        self.module = module
        self.names = list(input_types(shape.inputs))
        self.most = DEEP_EVALUATION_ROWS if {"images", "sequences"} & set(self.names) else EVALUATION_ROWS

    def __call__(self, inputs: Inputs) -> Array:
        given = [torch.from_numpy(np.ascontiguousarray(getattr(inputs, name))) for name in self.names]
        parts = []
        with torch.inference_mode():
            for first in range(0, max(1, len(inputs.numbers)), self.most):
                answers = self.module(*(each[first : first + self.most] for each in given))
                parts.append(answers.double().numpy())
        return np.concatenate(parts, axis=1)


def whole_runner(session: Any, description: dict[str, Any]) -> Runner:
    """Of a network that is written down whole."""
    if runtime_of(description).kind == EXPORTED:
        return ProgramRunner(session, NetworkShape.from_dict(description["architecture"]))
    return GraphRunner(session)


def torch_runner(network: RowNetwork, description: dict[str, Any]) -> TorchRunner:
    """Of a package's network; bfloat16 weights are computed with as such where the processor can."""
    lowered = runtime_of(description).weights == "bfloat16" and compact.computes_in_bfloat16()
    if lowered:
        compact.lower(network)
    return TorchRunner(network, lowered)


class GraphRunner:
    """A session of onnxruntime whose inputs are called as the fields of `Inputs`."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.names = [each.name for each in session.get_inputs()]
        self.most = DEEP_EVALUATION_ROWS if {"images", "sequences"} & set(self.names) else EVALUATION_ROWS

    def __call__(self, inputs: Inputs) -> Array:
        arrays = {name: np.ascontiguousarray(getattr(inputs, name)) for name in self.names}
        parts = []
        for first in range(0, max(1, len(inputs.numbers)), self.most):
            chosen = {name: array[first : first + self.most] for name, array in arrays.items()}
            (answers,) = self.session.run(None, chosen)
            parts.append(answers.astype(np.float64))
        return np.concatenate(parts, axis=1)
