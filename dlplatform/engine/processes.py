"""Processes that train one model together: who they are, what each computes, and what they agree on.

The batch of a step is the same whatever their number: each takes a share of its rows, and the gradients of the shares
add up to that of the whole. One process is the plain case and costs nothing; what several need is in
`dlplatform.engine.distributed`, which is imported by a group alone because it is large.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn

from dlplatform.engine.checkpoints import Loaded
from dlplatform.engine.dropout import Share
from dlplatform.engine.durable import to_json, write_atomically

OUTCOME: Final = "outcome.json"


class Processes:
    """One process that trains alone."""

    rank = 0
    world = 1
    strategy = "alone"

    @property
    def divides(self) -> bool:
        """Whether each holds a part of the weights, so that a pass through the network takes all of them."""
        return self.strategy == "fsdp"

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all: writes events, checkpoints and the package."""
        return self.rank == 0

    def share(self, rows: int, part: int = 0, parts: int = 1) -> Share:
        """What this process computes of a batch in the given one of its successive parts."""
        first = rows * (self.rank + part * self.world) // (self.world * parts)
        last = rows * (self.rank + part * self.world + 1) // (self.world * parts)
        return Share(first, last, rows)

    def wrap(self, network: nn.Module) -> nn.Module:
        """What is called to compute with the network, its gradients joined over the processes."""
        return network

    def suited_to(self, network: nn.Module, strategy: str) -> Processes:
        """These processes in the way that is asked for, or that the size of the network suggests (``auto``)."""
        return self

    def spread(self, network: nn.Module) -> None:
        """Place another network's weights as `wrap` places those that are trained."""

    def joining(self, model: nn.Module, join: bool) -> contextlib.AbstractContextManager[Any]:
        """Inside, gradients are joined over the processes, or only gathered for later."""
        return contextlib.nullcontext()

    def settle(self, loss: Tensor, stop: bool, save: bool) -> tuple[Tensor, bool, bool]:
        """The loss of the whole batch; whether any process must stop; whether the leader wants a checkpoint."""
        return loss, stop, save

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """All weights; of many processes only the leader's answer is whole."""
        return network.state_dict()

    def load_weights(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        """Take over what `weights` gave to the leader."""
        network.load_state_dict(weights)

    def optimizer_state(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of each parameter by its index; of many processes only the leader's answer is whole."""
        state: dict[str, Any] = optimizer.state_dict()["state"]
        return {str(index): entry for index, entry in state.items()}

    def load_optimizer_state(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Tensor]]
    ) -> None:
        """Take over what `optimizer_state` gave."""
        entries = {int(index): entry for index, entry in state.items()}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})

    def from_leader(self, load: Callable[[], Loaded | None]) -> Loaded | None:
        """A checkpoint as the leader finds it; only the leader's machine is sure to have its files."""
        return load()

    def close(self) -> None:
        """Part from the others."""


def began_again() -> bool:
    """Whether this process is of a group that was started again because one of it died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def in_group() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> Processes:
    """Meet the other processes that the launcher started; alone when there are none.

    Raises RuntimeError when they never meet.
    """
    if not in_group():
        return Processes()
    from dlplatform.engine.distributed import meet

    return meet()


def agreed(number: int) -> int:
    """The leader's number, in all processes that train together."""
    if not in_group():
        return number
    from dlplatform.engine.distributed import told_by_leader

    return told_by_leader(number)


def largest(number: int) -> int:
    """The largest of the numbers that the processes which train together have."""
    if not in_group():
        return number
    from dlplatform.engine.distributed import largest_of_all

    return largest_of_all(number)


def smallest(number: int) -> int:
    """The smallest of the numbers that the processes which train together have."""
    return -largest(-number)


def leave(code: int) -> NoReturn:
    """End this process of a group without the interpreter's clearing up: it sometimes meets threads of torch's backends at
    work and aborts, and a process whose work is whole would count as crashed (the others wait minutes for it)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def tell_outcome(job_dir: Path, code: int) -> None:
    """Write down for the launcher how the group ended."""
    write_atomically(job_dir / OUTCOME, to_json({"code": code}))
