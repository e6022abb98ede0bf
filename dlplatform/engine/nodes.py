"""Machines that train one model together: which of them this one is, and where they meet. Torch-free.

Whoever starts the engine on several machines writes ``group.json`` into the job directory of each.
"""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson
import psutil

from dlplatform.engine.durable import to_json, write_atomically
from dlplatform.engine.errors import EngineError

GROUP: Final = "group.json"


@dataclass(frozen=True)
class Group:
    """This machine's place among those of a job.

    ``node``: its number, 0 leads and keeps checkpoints and results. ``address`` and ``port``: where the leader listens.
    ``own_address``: the one over which this machine reaches the others. ``name``: of this attempt, the same on all.
    """

    name: str
    nodes: int
    node: int
    address: str
    port: int
    own_address: str

    def write(self, job_dir: Path) -> None:
        write_atomically(job_dir / GROUP, to_json(asdict(self)))


def read_group(job_dir: Path, nodes: int) -> Group:
    """What was written for this attempt. Raises EngineError ``no_group`` when the machines were not told of each other."""
    try:
        group = Group(**orjson.loads((job_dir / GROUP).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(
            "no_group", f"The job is for {nodes} machines, but nobody told this one where the others are ({error})."
        ) from None
    if group.nodes != nodes:
        raise EngineError("no_group", f"The job is for {nodes} machines, and {group.nodes} were gathered.")
    return group


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an address; None when no interface of this machine has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.split("%")[0] == address for one in addresses):
            return str(name)
    return None


def free_port(address: str) -> int:
    """A port on which nobody listens now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind((address, 0))
        return int(listening.getsockname()[1])
