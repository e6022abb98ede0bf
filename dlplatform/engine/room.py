"""Whether a network that starts from nothing can be trained here: told before any of it is allocated.

A machine whose memory runs out stands still for minutes, with all that others do on it, until the kernel ends somebody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import psutil
import torch
from torch import nn

from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.errors import EngineError
from dlplatform.engine.vitals import CGROUP

BESIDE: Final = 3  # of all weights: gradients, and the two moments of the optimizer
SETTINGS: Final[Mapping[str, str]] = {  # that make a part of a network what it is, by the part's name
    "images": "params.image_width or params.image_depth",
    "sequences": "params.text_width or params.text_layers",
    "blocks": "params.text_width or params.text_layers",
    "tokens": "params.text_width or vocabulary",
    "positions": "params.text_width or text_length",
    "hidden": "params.width or params.layers",
    "head": "params.width or params.members",
    "embedding": "params.embedding_size or params.bins",
}


def require_room(build: Callable[[], nn.Module], config: TrainingConfig) -> None:
    """Raises EngineError ``out_of_memory`` for a network that, with what training keeps beside it, is larger than the memory
    of the device, or of the machine where there is none, which its processes share. Several hold a part each of what is kept
    beside the weights, but with ``ddp``.

    Neither memory nor random numbers are taken for it.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = build()
    size = _bytes_of(network)
    devices = config.devices if isinstance(config.devices, int) else 1
    parts = 1 if config.strategy == "ddp" else devices * config.nodes
    needed = size + size * BESIDE // parts
    most = memory_of_device() // (1 if torch.cuda.is_available() else devices)
    if needed > most:
        sentence = (
            f"The network's weights are {_shown(size)}, training takes {_shown(needed)}, and there are {_shown(most)}."
        )
        raise EngineError("out_of_memory", sentence, f"Lower {_cause(network)}, or use a machine with more memory.")


def memory_of_device() -> int:
    """Bytes that there are in all, in use or not: of the accelerator, of the container, or of this machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return min(int(psutil.virtual_memory().total), _of_container(CGROUP / "memory.max"))


def _of_container(limit: Path) -> int:
    try:
        return int(limit.read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        return 1 << 62


def _bytes_of(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def _cause(network: nn.Module) -> str:
    """The settings of the largest part."""
    parts = {name: _bytes_of(part) for name, part in network.named_modules() if name.rpartition(".")[2] in SETTINGS}
    largest = max(parts, key=lambda name: parts[name], default="")
    return SETTINGS.get(largest.rpartition(".")[2], "the model's width")


def _shown(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
