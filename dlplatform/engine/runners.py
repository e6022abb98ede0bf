"""What answers encoded rows: a torch network or a graph of onnxruntime, behind one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dlplatform.engine import compact
from dlplatform.engine.dataset import batches
from dlplatform.engine.graphs import input_types
from dlplatform.engine.layers import EnsembleLinear, MemberLinear
from dlplatform.engine.network import Batch, InputEncoder, NetworkShape, RowNetwork
from dlplatform.engine.objective import DEEP_EVALUATION_ROWS, EVALUATION_ROWS, evaluation_rows, mean_prediction
from dlplatform.engine.preprocessing import Inputs
from dlplatform.engine.runtime import EXPORTED, runtime_of
from dlplatform.engine.statistics import CLIP

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
            parts.append(mean_prediction(self.network, self._outputs(batch)).double().numpy())
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _outputs(self, batch: Batch) -> Tensor:
        """(G, M, B, K) as the network gives them."""
        return self.network(batch)  # type: ignore[no-any-return]


class PerceptronRunner(TorchRunner):
    """A plain perceptron, without the modules around its layers and with as few calls as it can do with: for a single row of
    a small one these take several times as long as the matrices. Its answers are the network's own, to the bit."""

    def __init__(self, network: RowNetwork) -> None:
        super().__init__(network)
        encoder, head = network.encoder, network.head
        self._numbers_alone = encoder.width == network.shape.inputs.numbers
        self._center, self._inverse_scale = encoder.center.numpy(), encoder.inverse_scale.numpy()
        layers = cast(Iterable[EnsembleLinear], network.hidden)
        self._layers = [(layer.weight.detach(), layer.bias.detach().squeeze(1)) for layer in layers]
        self._head = (head.weight.detach(), head.bias.detach())

    @staticmethod
    def fits(network: RowNetwork) -> bool:
        """Whether it is one: no members that share a matrix, no adapters, nobody's own modules."""
        if type(network) is not RowNetwork or network.shape.architecture != "mlp" or network.shape.members > 1:
            return False
        layers_fit = all(type(layer) is EnsembleLinear for layer in network.hidden)
        return layers_fit and type(network.head) is MemberLinear and type(network.encoder) is InputEncoder

    def __call__(self, inputs: Inputs) -> Array:
        if not self._numbers_alone or len(inputs.numbers) > EVALUATION_ROWS:
            return super().__call__(inputs)
        # No weight here asks for gradients, so that nothing is gained by torch's modes, which take time to enter.
        outputs = self._deep(torch.from_numpy(self._normalised(inputs.numbers)))
        return mean_prediction(self.network, outputs).numpy().astype(np.float64)

    def _outputs(self, batch: Batch) -> Tensor:
        return self._deep(torch.cat(self.network.encoder(batch), -1))

    def _deep(self, state: Tensor) -> Tensor:
        """(G, B, in) → (G, 1, B, K) as `RowNetwork` does."""
        for weight, bias in self._layers:
            state = torch.baddbmm(bias, state, weight).relu_()
        weight, bias = self._head
        return torch.baddbmm(bias, state, weight).unsqueeze(1)

    @np.errstate(over="ignore", invalid="ignore")  # what is beyond the numbers is drawn in
    def _normalised(self, numbers: Array) -> Array:
        """(B, D) → (G, B, D) as `InputEncoder.normalised` does: NumPy takes a third of torch's time for so few."""
        scaled: Array = numbers - self._center
        scaled *= self._inverse_scale
        if not np.isfinite(scaled).all():
            np.nan_to_num(scaled, copy=False, nan=0.0)
        drawn: Array = scaled * np.float32(1 / CLIP)
        drawn *= drawn
        drawn += np.float32(1)
        np.sqrt(drawn, out=drawn)
        np.divide(np.float32(1), drawn, out=drawn)
        drawn *= scaled
        return drawn


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
    elif PerceptronRunner.fits(network):
        return PerceptronRunner(network)
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
