"""Two real steps of a job, to tell beforehand what all of it will take."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any, Final

import torch

from dlplatform.engine.durable import to_json, write_atomically
from dlplatform.engine.environment import describe, pin_threads
from dlplatform.engine.errors import EngineError
from dlplatform.engine.events import SilentWriter
from dlplatform.engine.finetuning import trainable
from dlplatform.engine.job import JobSpec, read_spec
from dlplatform.engine.learning import learner_of
from dlplatform.engine.reporter import Reporter
from dlplatform.engine.run import unexpected
from dlplatform.engine.training import Trainer

RESULT: Final = "trial.json"
STEPS: Final = 2


def try_out(job_dir: Path) -> int:
    """Take two optimisation steps and one validation of the job in this process; ``trial.json`` tells.

    It holds what `measured` returns, or {error: {code, sentence, next_step, detail}} and the exit code is 1. Memory is
    that of the process, so this is to be called in one of its own.
    """
    reporter = Reporter(SilentWriter())
    try:
        told, code = measured(job_dir, read_spec(job_dir), reporter), 0
    except EngineError as error:
        told, code = {"error": error.payload()}, 1
    # As of a run: whatever goes wrong must reach the user as a named failure.
    except Exception as error:
        told, code = {"error": unexpected(error, reporter).payload()}, 1
    write_atomically(job_dir / RESULT, to_json(told))
    return code


def measured(job_dir: Path, spec: JobSpec, reporter: Reporter) -> dict[str, Any]:
    """{seconds_per_step, validation_seconds, rows_per_epoch, batch_size, epochs, parameters, trainable, peak_bytes,
    device, threads}; the first step, which also warms up, does not count towards the seconds.

    Raises EngineError as a run would.
    """
    before = _peak(None)
    threads = pin_threads(job_dir, spec.config, None)
    learner, plan = learner_of(job_dir, spec, reporter, None)
    trainer = Trainer(learner, reporter, plan=plan)
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
        "parameters": sum(each.numel() for each in trainer.network.parameters()),
        "trainable": trainable(trainer.network, trainer.plan),
        "peak_bytes": _peak(learner.device) - (0 if on_device else before),
        "device": describe(learner.device)["device"],
        "threads": threads,
    }


def _peak(device: torch.device | None) -> int:
    """The most bytes so far: of the accelerator, or of this process in main memory."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
