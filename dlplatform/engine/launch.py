"""Several processes on one job: started, watched, started again together from the last checkpoint when one dies.

The launcher is `torchrun`'s elastic agent, used as a library. A planned end of the group is no failure to it: the
leader writes the outcome down and every process leaves with 0, so that only a crash starts the group again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import psutil
from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dlplatform.engine.nodes import Group, interface_of
from dlplatform.engine.processes import OUTCOME

MAXIMUM_RESTARTS: Final = 10
MONITOR_SECONDS: Final = 0.2
MEETING_SECONDS: Final = 60
CRASHED: Final = 70
HOUSE: Final = Path(__file__).resolve().parents[2]


def launch(
    job_dir: Path,
    processes: int,
    module: str = "dlplatform.engine",
    restarts: int = MAXIMUM_RESTARTS,
    group: Group | None = None,
) -> int:
    """Work on a job with so many processes on this machine; the exit code that one process would have had.

    ``module``: what each of them is, given the job directory. ``group``: the other machines that work on it; the crash
    of one process then ends all, for whoever gathered the machines knows which of them are left. 70 when the processes
    died more often than they are started again. On a machine that does not lead: 0 when its processes ended in order.
    """
    (job_dir / OUTCOME).unlink(missing_ok=True)
    # The processes start in the job directory, with no other word of where we are.
    os.environ["PYTHONPATH"] = str(HOUSE)
    config = LaunchConfig(
        min_nodes=group.nodes if group else 1,
        max_nodes=group.nodes if group else 1,
        nproc_per_node=processes,
        run_id=group.name if group else uuid.uuid4().hex,
        max_restarts=0 if group else restarts,
        monitor_interval=MONITOR_SECONDS,
        **(_meeting(group) if group else {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}),
    )
    if group:
        config.signals_to_handle = "SIGINT"
    # A signal is passed on to the processes, which leave after a checkpoint and say so.
    with contextlib.suppress(SignalException), _passing_on() if group else contextlib.nullcontext():
        try:
            elastic_launch(config, sys.executable)("-m", module, str(job_dir))
        except (ChildFailedError, DistNetworkError):
            if group and group.node:
                return CRASHED
    return 0 if group and group.node else _outcome(job_dir)


def _meeting(group: Group) -> dict[str, Any]:
    """The machines meet at the leader's address, and talk over the interface that this one's own address belongs to."""
    if name := interface_of(group.own_address):
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
    host = f"[{group.address}]" if ":" in group.address else group.address
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{host}:{group.port}",
        "rdzv_configs": {"rank": group.node, "timeout": MEETING_SECONDS},
        "local_addr": group.own_address,
    }


@contextlib.contextmanager
def _passing_on() -> Iterator[None]:
    """Pass a request to stop on, and wait as before: the agent would leave at once, and those of the other machines wait
    for it at their end."""

    def pass_on(number: int, _frame: Any) -> None:
        for child in psutil.Process().children():
            child.send_signal(number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _outcome(job_dir: Path) -> int:
    try:
        return int(orjson.loads((job_dir / OUTCOME).read_bytes())["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return CRASHED
