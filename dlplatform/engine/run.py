"""One run, from its job directory to its package. See `run_job`."""

from __future__ import annotations

import faulthandler
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from dlplatform.engine import package
from dlplatform.engine.checkpoints import CheckpointStore, Loaded
from dlplatform.engine.config import parse_config
from dlplatform.engine.dataset import prepare
from dlplatform.engine.describe import counts_of
from dlplatform.engine.environment import choose_device, describe, is_out_of_memory, pin_threads
from dlplatform.engine.errors import EngineError, Interrupted, PackageError
from dlplatform.engine.events import SPOOL, EventWriter, SilentWriter
from dlplatform.engine.finetuning import Plan
from dlplatform.engine.job import CHECKPOINTS, OUTPUT, STACKS, JobSpec, read_spec, told_of
from dlplatform.engine.learner import Learner, RowLearner
from dlplatform.engine.learning import fresh_network, learner_of, settle_batch_size, tokenizer_of
from dlplatform.engine.nodes import read_group
from dlplatform.engine.processes import Processes, agreed, began_again, in_group, join, tell_outcome
from dlplatform.engine.reporter import Reporter
from dlplatform.engine.results import save_package
from dlplatform.engine.schema import Column
from dlplatform.engine.table import Table
from dlplatform.engine.training import Trainer

FINISHED: Final = 0
FAILED: Final = 1
INTERRUPTED: Final = 75


def run_job(job_dir: Path) -> int:
    """Train what ``spec.json`` asks for, or go on where an earlier attempt stopped.

    Returns the exit code: 0 when the package is whole, 1 after a ``failed`` event, 75 when interrupted by
    SIGTERM with a checkpoint to resume from. SIGUSR1 writes all stacks to ``stacks.txt``.
    """
    job_dir = Path(job_dir).resolve()
    devices, nodes = devices_of(job_dir), nodes_of(job_dir)
    if devices * nodes > 1 and not in_group():
        return _launched(job_dir, devices, nodes)
    processes = join()
    writer = EventWriter(job_dir / SPOOL, told_of(job_dir)) if processes.leads else SilentWriter()
    reporter = Reporter(writer)
    try:
        with _signals(job_dir, reporter):
            code = _run_guarded(job_dir, reporter, processes)
    finally:
        writer.close()
    if not in_group():
        return code
    if processes.leads:
        tell_outcome(job_dir, code)
    processes.close()
    return FINISHED


def devices_of(job_dir: Path) -> int:
    """How many the job asks for; what is wrong with its settings is told later, in the usual way."""
    try:
        devices = read_spec(job_dir).config.devices
    except EngineError:
        return 1
    return devices if isinstance(devices, int) else 1


def nodes_of(job_dir: Path) -> int:
    """For how many machines the job is; see `devices_of`."""
    try:
        return read_spec(job_dir).config.nodes
    except EngineError:
        return 1


def _launched(job_dir: Path, devices: int, nodes: int) -> int:
    """The job by several processes, whose threads share the cores of a machine."""
    spec = read_spec(job_dir)
    from dlplatform.engine.launch import launch  # large, and of no use to a job that runs alone

    try:
        group = read_group(job_dir, nodes) if nodes > 1 else None
    except EngineError as error:
        with closing(EventWriter(job_dir / SPOOL, told_of(job_dir))) as writer:
            writer.emit("failed", **error.payload())
        return FAILED
    pin_threads(job_dir, spec.config, None, devices)
    return launch(job_dir, devices, group=group)


def _run_guarded(job_dir: Path, reporter: Reporter, processes: Processes) -> int:
    writer = reporter.writer
    try:
        _run(job_dir, reporter, processes)
    except Interrupted:
        writer.log("warning", "The run was asked to stop; it can be resumed.")
        return INTERRUPTED
    except EngineError as error:
        writer.emit("failed", **error.payload())
        return FAILED
    # The boundary of the engine: whatever goes wrong must reach the user as a named failure.
    except Exception as error:
        if processes.world > 1:
            raise  # a peer may have died: the launcher starts all again from the last checkpoint
        writer.emit("failed", **unexpected(error, reporter).payload())
        return FAILED
    return FINISHED


def unexpected(error: Exception, reporter: Reporter) -> EngineError:
    """Any error as a named failure."""
    detail = "".join(traceback.format_exception(error))[-8000:]
    if is_out_of_memory(error):
        return EngineError("out_of_memory", f"Memory ran out while {reporter.phase}.", detail=detail)
    return EngineError("internal", f"The engine failed while {reporter.phase}: {error}"[:500], detail=detail)


def _run(job_dir: Path, reporter: Reporter, processes: Processes) -> None:
    reporter.report()
    spec = read_spec(job_dir)
    if agreed(int(processes.leads and _emit_finished_package(job_dir, reporter))):
        return
    store = CheckpointStore(job_dir / CHECKPOINTS)
    loaded = processes.from_leader(lambda: _latest_checkpoint(store, reporter))
    threads = agreed(pin_threads(job_dir, spec.config, loaded.state.get("threads") if loaded else None))
    torch.set_num_threads(threads)  # the leader's, on every machine: another number gives other weights
    learner, plan = learner_of(job_dir, spec, reporter, loaded)
    processes = processes.suited_to(learner.network, strategy_of(spec.config.strategy, plan, reporter))
    settle_batch_size(learner, plan, processes, reporter, loaded)
    trainer = Trainer(learner, reporter, store, processes, plan, spec.stop_after_epoch)
    trainer.environment = {**describe(trainer.device), "threads": threads, "processes": processes.world}
    tokenizer = tokenizer_of(learner)
    # What may not come out the same again.
    trainer.kept = {
        "batch_size": learner.config.batch_size,
        **({"tokenizer": tokenizer.to_json()} if tokenizer else {}),
    }
    if loaded is not None:
        trainer.restore(loaded)
    _emit_started(trainer, threads, loaded)
    trainer.fit()
    if processes.strategy == "fsdp":
        learner.network = _gathered(learner, processes)
    if not processes.leads:
        return
    metrics = save_package(job_dir, spec, trainer)
    reporter.enter("finished")
    reporter.writer.emit("finished", metrics=metrics, package=OUTPUT)


def strategy_of(asked: str, plan: Plan, reporter: Reporter) -> str:
    """What trains in part is held whole: a part of a frozen weight would be gathered for nothing, and stages change
    what is frozen."""
    if plan.begins is None:
        return asked
    if asked == "fsdp":
        reporter.writer.log("warning", "The base is held whole by every process: only a part of it trains.")
    return "ddp"


def _gathered(learner: Learner, processes: Processes) -> nn.Module:
    """The network in one piece again."""
    weights = processes.weights(learner.network)
    network = fresh_network(learner)
    if processes.leads:
        network.load_state_dict(weights)
    return network.to(learner.device)


def _emit_finished_package(job_dir: Path, reporter: Reporter) -> bool:
    """An earlier attempt got as far as the package: say so again."""
    if not (job_dir / OUTPUT).exists():
        return False
    try:
        description = package.verify(job_dir / OUTPUT)
    except PackageError as error:
        reporter.writer.log("warning", f"The package of an earlier attempt is made again: {error}")
        return False
    reporter.writer.emit("finished", metrics=description["metrics"], package=OUTPUT)
    return True


def _latest_checkpoint(store: CheckpointStore, reporter: Reporter) -> Loaded | None:
    loaded = store.load_latest()
    if loaded is None:
        return None
    for problem in loaded.skipped:
        reporter.writer.log("warning", f"A damaged checkpoint was skipped. {problem}")
    if loaded.step < 0:
        reporter.writer.log("warning", "No checkpoint is whole; training begins again.")
        return None
    return loaded


def _emit_started(trainer: Trainer, threads: int, loaded: Loaded | None) -> None:
    trainer.reporter.writer.emit(
        "started",
        environment=trainer.environment,
        threads=threads,
        device=str(trainer.device),
        resumed_from=loaded.step if loaded else None,
        parameters=sum(parameter.numel() for parameter in trainer.network.parameters()),
        rows=counts_of(trainer.learner),
        config=trainer.config.to_dict(),
    )
    if began_again():
        place = f"from step {loaded.step:,}" if loaded else "from the beginning"
        trainer.reporter.writer.log(
            "warning", f"One of the processes ended before its time; all of them go on {place}."
        )


@contextmanager
def _signals(job_dir: Path, reporter: Reporter) -> Iterator[None]:
    """SIGTERM asks the loop to stop; SIGUSR1 dumps stacks. Restored afterwards."""
    with (job_dir / STACKS).open("a") as stacks:
        faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
        previous: Any = None
        main = threading.current_thread() is threading.main_thread()

        def stop(_number: int, _frame: Any) -> None:
            reporter.stop_requested = True

        if main:
            previous = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            if main:
                signal.signal(signal.SIGTERM, previous)
            faulthandler.unregister(signal.SIGUSR1)


def prepare_arrays(
    features: np.ndarray[Any, Any],
    target: np.ndarray[Any, Any],
    task: str,
    job_dir: Path,
    store: CheckpointStore | None = None,
    **config: Any,
) -> Trainer:
    """A trainer for a plain (n, D) array, made by the same code as `run_job`'s but without job files.

    For benchmarks and experiments. ``job_dir`` receives the event spool. Raises ConfigError, EngineError.
    """
    names = [f"x{index}" for index in range(features.shape[1])]
    values = {name: features[:, index].astype(np.float64) for index, name in enumerate(names)}
    label = Column("y", "integer" if task == "classification" else "number")
    columns = tuple(Column(name, "number") for name in names)
    table = Table({**values, "y": target.astype(np.float64)}, len(target))
    spec = JobSpec("", 1, task, (label,), columns, (), parse_config(config, task))
    reporter = Reporter(EventWriter(job_dir / SPOOL))
    dataset = prepare(spec, table, reporter.writer.log, reporter.beat)
    return Trainer(RowLearner(dataset, choose_device()), reporter, store)


def train_arrays(
    features: np.ndarray[Any, Any], target: np.ndarray[Any, Any], task: str, job_dir: Path, **config: Any
) -> Trainer:
    """`prepare_arrays`, then train to the end in this process."""
    trainer = prepare_arrays(features, target, task, job_dir, **config)
    trainer.fit()
    trainer.reporter.writer.close()
    return trainer


def warm_up() -> None:
    """Do, in a worker that will fork, everything that a first training step does only once.

    Builds a network, steps an optimizer and predicts on one thread: no pool of compute threads may exist
    in the parent, or the forked child would wait forever for threads it did not inherit. The child's
    `run_job` sets its own thread count.
    """
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    features = random.normal(size=(32, 2))
    with tempfile.TemporaryDirectory() as directory:
        train_arrays(features, (features[:, 0] > 0) * 1, "classification", Path(directory), epochs=1)
