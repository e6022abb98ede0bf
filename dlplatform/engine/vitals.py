"""Looks at a training process from outside its loop: silent units, and memory against its limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from dlplatform.engine.layers import EnsembleLinear
from dlplatform.engine.vision import FoldedBlock, FoldedResNet

PAGE: Final = 4096
CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes in use and the most there may be; ``where``: this machine, its container, or the accelerator."""

    used: int
    limit: int
    where: str


def memory_of(device: torch.device) -> Memory | None:
    """What the process uses of the memory that it could have; None where that cannot be told."""
    if device.type == "cuda":
        limit = torch.cuda.get_device_properties(device).total_memory
        return Memory(torch.cuda.max_memory_allocated(device), limit, "of the accelerator")
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        return _main_memory(resident)
    except (OSError, ValueError, IndexError):
        return None


def _main_memory(resident: int) -> Memory:
    """Ours and what is still free: what others hold is out of reach."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    machine = Memory(resident, resident + free, "of this machine")
    try:
        free = _free_in_container()
    except (OSError, ValueError, StopIteration):  # no container, or one without a limit
        return machine
    container = resident + free
    return Memory(resident, container, "of the container") if container < machine.limit else machine


def _free_in_container() -> int:
    """What is left below the limit, with the files in memory that can be dropped."""
    limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    lines = (CGROUP / "memory.stat").read_text().splitlines()
    files = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, limit - used + files)


@contextmanager
def silent_units(network: nn.Module) -> Iterator[Callable[[], dict[str, float]]]:
    """While inside, watch what comes before every ReLU; the answer is the share of units of each layer that stayed
    at zero for all rows that passed."""
    alive: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            rows = -2 if isinstance(module, EnsembleLinear) else (0, 2, 3)  # (G, M, B, out), or (B, C, H, W)
            active = (output > 0).any(dim=rows)
            alive[name] = alive[name] | active if name in alive else active

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in rectified(network)]
    try:
        yield lambda: {name: 1 - float(active.float().mean()) for name, active in alive.items()}
    finally:
        for handle in handles:
            handle.remove()


def rectified(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that a ReLU follows, by name: hidden ones, the normalisations of the ResNet, and the convolutions of one
    without these that no sum comes after."""
    kinds = (EnsembleLinear, nn.GroupNorm)
    found: list[tuple[str, nn.Module]] = []
    for name, module in network.named_modules():
        if isinstance(module, kinds):
            found.append((name, module))
        elif isinstance(module, FoldedResNet):
            found.append((f"{name}.stem", module.stem))
        elif isinstance(module, FoldedBlock):
            found.append((f"{name}.first", module.first))
    return found
