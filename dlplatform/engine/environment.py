"""Where a run computes: device, threads and versions; pinned for all attempts of a job."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import safetensors
import torch

from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.durable import to_json, write_atomically

PINNED: Final = "runtime.json"
MAXIMUM_THREADS: Final = 8


def versions() -> dict[str, str]:
    """Library versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "safetensors": safetensors.__version__,
    }


def describe(device: torch.device) -> dict[str, Any]:
    """The environment as the ``started`` event and every checkpoint record it."""
    return {
        "versions": versions(),
        "platform": sys.platform,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def choose_device() -> torch.device:
    """The first accelerator, or the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def pin_threads(job_dir: Path, config: TrainingConfig, recorded: int | None, processes: int = 1) -> int:
    """Set torch's thread count: that of the first attempt, since another count gives other weights.

    ``recorded``: the count in a checkpoint, if there is one. ``processes``: how many share the cores.
    """
    path = job_dir / PINNED
    try:
        threads = int(orjson.loads(path.read_bytes())["threads"])
    except (OSError, ValueError, KeyError, TypeError):
        threads = recorded or config.threads or max(1, _free_cores() // processes)
        write_atomically(path, to_json({"threads": threads}))
    torch.set_num_threads(threads)
    return threads


def serving_threads(processes: int = 1) -> int:
    """Those of torch where a model answers: half of the cores that are left to one of so many processes, four at most. Its
    threads wait for each other, and one that shares its core with the Python around it makes a small model ten times as slow
    (measured on two cores)."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // 2 // processes))


def is_out_of_memory(error: Exception) -> bool:
    """Python's, the accelerator's and the CPU allocator's ways of saying so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _free_cores() -> int:
    """Cores that nobody uses now: a thread waiting for a busy core slows all the others down."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(MAXIMUM_THREADS, cores - round(os.getloadavg()[0])))
