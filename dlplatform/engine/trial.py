"""Two real steps of a job, to tell beforehand what all of it will take."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from dlplatform.engine.__main__ import die_with_launcher
from dlplatform.engine.durable import to_json, write_atomically
from dlplatform.engine.environment import describe, is_out_of_memory, pin_threads
from dlplatform.engine.errors import EngineError
from dlplatform.engine.events import SilentWriter
from dlplatform.engine.finetuning import trainable
from dlplatform.engine.job import JobSpec, read_spec
from dlplatform.engine.learning import learner_of, settle_batch_size
from dlplatform.engine.processes import Processes, in_group, join, largest, leave, tell_outcome
from dlplatform.engine.reporter import Reporter
from dlplatform.engine.run import devices_of, strategy_of, unexpected
from dlplatform.engine.training import Trainer

RESULT: Final = "trial.json"
STEPS: Final = 2


def try_out(job_dir: Path) -> int:
    """Take two optimisation steps and one validation of the job; ``trial.json`` tells.

    It holds what `measured` returns, or {error: {code, sentence, next_step, detail}} and the exit code is 1. Memory is
    that of the process, so this is to be called in one of its own. A job for several devices is tried by as many.
    """
    job_dir = Path(job_dir).resolve()
    devices = devices_of(job_dir)
    if devices > 1 and not in_group():
        return _launched(job_dir, devices)
    processes, reporter = join(), Reporter(SilentWriter())
    told = _tried(job_dir, processes, reporter)
    if processes.leads:
        write_atomically(job_dir / RESULT, to_json(told))
        tell_outcome(job_dir, int("error" in told))
    processes.close()
    return int("error" in told) if not in_group() else 0


def _launched(job_dir: Path, devices: int) -> int:
    from dlplatform.engine.launch import launch  # large, and of no use to a job that runs alone

    pin_threads(job_dir, read_spec(job_dir).config, None, devices)
    return launch(job_dir, devices, "dlplatform.engine.trial", restarts=0)


def _tried(job_dir: Path, processes: Processes, reporter: Reporter) -> dict[str, Any]:
    try:
        return measured(job_dir, read_spec(job_dir), reporter, processes)
    except EngineError as error:
        return {"error": error.payload()}
    # As of a run: whatever goes wrong must reach the user as a named failure.
    except Exception as error:
        if processes.world > 1 and not is_out_of_memory(error):
            raise  # the others wait for this process: the launcher ends them all
        return {"error": unexpected(error, reporter).payload()}


def measured(job_dir: Path, spec: JobSpec, reporter: Reporter, processes: Processes) -> dict[str, Any]:
    """{seconds_per_step, validation_seconds, rows_per_epoch, batch_size, epochs, parameters, trainable, peak_bytes,
    device, threads, processes, strategy}; the first step, which also warms up, does not count towards the seconds.
    ``peak_bytes`` is that of the device, or process, that needs most.

    Raises EngineError as a run would.
    """
    before = _peak(None)
    threads = pin_threads(job_dir, spec.config, None)
    learner, plan = learner_of(job_dir, spec, reporter, None)
    parameters = sum(each.numel() for each in learner.network.parameters())
    processes = processes.suited_to(learner.network, strategy_of(spec.config.strategy, plan, reporter))
    settle_batch_size(learner, plan, processes, reporter, None)
    trains = trainable(learner.network, plan)
    trainer = Trainer(learner, reporter, processes=processes, plan=plan)
    reporter.phase = "training"
    seconds = trainer.try_steps(STEPS)
    began = time.perf_counter()
    learner.validate(trainer.averaged)
    on_device = learner.device.type == "cuda"
    return {
        "seconds_per_step": seconds[-1],
        "validation_seconds": time.perf_counter() - began,
        "rows_per_epoch": trainer.rows_per_epoch,
        "batch_size": learner.config.batch_size,
        "epochs": learner.config.epochs,
        "parameters": parameters,
        "trainable": trains,
        "peak_bytes": largest(_peak(learner.device) - (0 if on_device else before)),
        "device": describe(learner.device)["device"],
        "threads": threads,
        "processes": processes.world,
        "strategy": processes.strategy,
    }


def _peak(device: torch.device | None) -> int:
    """The most bytes so far: of the accelerator, or of this process in main memory."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _peak_of_main_memory()


def _peak_of_main_memory() -> int:
    """Of this process alone: what getrusage tells on Linux is kept through exec from whoever started the process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":  # one of several that the launcher started
    die_with_launcher()
    leave(try_out(Path(sys.argv[1])))
