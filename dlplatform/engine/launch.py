"""Several processes on one job: started, watched, started again together from the last checkpoint when one dies.

The launcher is `torchrun`'s elastic agent, used as a library. A planned end of the group is no failure to it: the
leader writes the outcome down and every process leaves with 0, so that only a crash starts the group again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from pathlib import Path
from typing import Final

import orjson
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dlplatform.engine.processes import OUTCOME

MAXIMUM_RESTARTS: Final = 10
MONITOR_SECONDS: Final = 0.2
CRASHED: Final = 70
HOUSE: Final = Path(__file__).resolve().parents[2]


def launch(job_dir: Path, processes: int, module: str = "dlplatform.engine", restarts: int = MAXIMUM_RESTARTS) -> int:
    """Work on a job with so many processes on this machine; the exit code that one process would have had.

    ``module``: what each of them is, given the job directory. 70 when the processes died more often than they are
    started again.
    """
    (job_dir / OUTCOME).unlink(missing_ok=True)
    os.environ["PYTHONPATH"] = str(
        HOUSE
    )  # the processes start in the job directory, with no other word of where we are
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=MONITOR_SECONDS,
    )
    # A signal is passed on to the processes, which leave after a checkpoint and say so.
    with contextlib.suppress(ChildFailedError, SignalException):
        elastic_launch(config, sys.executable)("-m", module, str(job_dir))
    return _outcome(job_dir)


def _outcome(job_dir: Path) -> int:
    try:
        return int(orjson.loads((job_dir / OUTCOME).read_bytes())["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return CRASHED
