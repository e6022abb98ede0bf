"""What a checkpoint holds of a training, and how a training takes it up again.

Where only a part of a network trains, the frozen weights are those of the base, which lies beside the checkpoints: they
are left out, and their SHA-256 is kept in their place. Buffers stay: a network may count or average in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dlplatform.engine.finetuning import Plan
from dlplatform.engine.processes import Processes
from dlplatform.engine.user_code import CodeNetwork

Tensors = dict[str, Tensor]


@dataclass
class State:
    """Where training is; with the tensors, all that a checkpoint holds. ``position``: steps done in the
    epoch. ``stale``: epochs since the best one."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    best_loss: float | None = None
    best_epoch: int = -1
    stale: int = 0
    done: bool = False


class Frozen:
    """The parameters of a network that its plan never trains.

    Of somebody's own network there are none: its code may write whatever it holds.
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        partly = plan.begins is not None and not isinstance(network, CodeNetwork)
        named = network.named_parameters(remove_duplicate=False) if partly else ()
        self._tensors = {name: each.detach() for name, each in named if not plan.ever_trains(name, each)}

    def without(self, weights: Mapping[str, Tensor]) -> Tensors:
        """The weights that may have changed."""
        return {name: tensor for name, tensor in weights.items() if name not in self._tensors}

    def beside(self, weights: Mapping[str, Tensor]) -> Tensors:
        """All weights, where those that may have changed are given."""
        return {**self._tensors, **weights}

    @cached_property
    def sha256(self) -> str:
        """Of all of them; empty where there are none."""
        if not self._tensors:
            return ""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass
class Trained:
    """All tensors that a training moves, held together for checkpoints.

    ``averaged`` follows ``network``; ``best`` are the averaged weights of the best epoch without frozen ones; ``losses``
    those of the steps of the epoch.
    """

    network: nn.Module
    averaged: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Tensor
    device: torch.device
    processes: Processes
    frozen: Frozen
    best: Tensors

    def tensors(self) -> Tensors:
        """What a checkpoint holds, by name; of several processes the leader's is whole."""
        tensors = self._weights("model", self.network) | self._weights("average", self.averaged)
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for index, entry in self.processes.optimizer_state(self.network, self.optimizer).items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in entry.items()}
        tensors["losses"] = self.losses
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_device"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def _weights(self, name: str, network: nn.Module) -> Tensors:
        changed = self.frozen.without(self.processes.weights(network))
        return {f"{name}/{tensor}": value for tensor, value in changed.items()}

    def keep_best(self) -> None:
        """Remember the averaged weights."""
        changed = self.frozen.without(self.processes.weights(self.averaged))
        self.best = {name: tensor.clone() for name, tensor in changed.items()}

    def take_best(self) -> None:
        """Put the weights of the best epoch into both networks."""
        for network in (self.network, self.averaged):
            self.processes.load_weights(network, self.frozen.beside(self.best))

    def restore(self, tensors: Tensors, frozen: str | None) -> None:
        """Take over what `tensors` gave. ``frozen``: the SHA-256 of what was left out; None if nothing was.

        Raises KeyError, RuntimeError or ValueError for tensors of another training.
        """
        if frozen and frozen != self.frozen.sha256:
            raise ValueError("The frozen weights are not those that the checkpoint was made beside.")
        for name, network in (("model/", self.network), ("average/", self.averaged)):
            self.processes.load_weights(network, self.frozen.beside(_under(name, tensors)))
        # Copies, so that no tensor keeps the alignment it had in the file: kernels may depend on it.
        place = self.device if self.processes.strategy != "fsdp" else torch.device("cpu")
        best = self.frozen.without(_under("best/", tensors))
        self.best = {name: tensor.to(place, copy=True) for name, tensor in best.items()}
        self._restore_optimizer(_under("optimizer/", tensors))
        self.losses.copy_(tensors["losses"])
        torch.set_rng_state(tensors["random"].clone())
        if "random_device" in tensors:
            torch.cuda.set_rng_state(tensors["random_device"].clone(), self.device)

    def _restore_optimizer(self, tensors: Tensors) -> None:
        entries: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.rsplit("/", 1)
            entries.setdefault(index, {})[name] = value.clone()
        self.processes.load_optimizer_state(self.network, self.optimizer, entries)


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
