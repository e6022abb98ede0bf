"""One run, from its job directory to its package. See `run_job`."""

from __future__ import annotations

import faulthandler
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dlplatform.engine import package
from dlplatform.engine.adapters import CONFIG as ADAPTER_CONFIG
from dlplatform.engine.adapters import merged, peft_config, save_tensors
from dlplatform.engine.card import model_card
from dlplatform.engine.checkpoints import CheckpointStore, Loaded
from dlplatform.engine.config import parse_config
from dlplatform.engine.dataset import Base, prepare
from dlplatform.engine.describe import describe_model, row_counts
from dlplatform.engine.distributed import Processes
from dlplatform.engine.durable import to_json
from dlplatform.engine.environment import choose_device, describe, pin_threads
from dlplatform.engine.errors import EngineError, Interrupted, PackageError
from dlplatform.engine.evaluation import evaluate
from dlplatform.engine.events import SPOOL, EventWriter, SilentWriter
from dlplatform.engine.finetuning import Plan, plan_of
from dlplatform.engine.image_arrays import DIRECTORY as IMAGES
from dlplatform.engine.image_arrays import source_in
from dlplatform.engine.importance import permutation_importance
from dlplatform.engine.job import BASE, CHECKPOINTS, OUTPUT, JobSpec, read_spec
from dlplatform.engine.learner import RowLearner
from dlplatform.engine.network import build_network
from dlplatform.engine.reporter import Reporter
from dlplatform.engine.schema import Column
from dlplatform.engine.table import Table, read_table
from dlplatform.engine.tokens import FILE as TOKENIZER
from dlplatform.engine.training import Trainer

FINISHED: Final = 0
FAILED: Final = 1
INTERRUPTED: Final = 75
STACKS: Final = "stacks.txt"


def run_job(job_dir: Path) -> int:
    """Train what ``spec.json`` asks for, or go on where an earlier attempt stopped.

    Returns the exit code: 0 when the package is whole, 1 after a ``failed`` event, 75 when interrupted by
    SIGTERM with a checkpoint to resume from. SIGUSR1 writes all stacks to ``stacks.txt``.
    """
    job_dir = Path(job_dir).resolve()
    processes = Processes()
    writer = EventWriter(job_dir / SPOOL) if processes.leads else SilentWriter()
    reporter = Reporter(writer)
    try:
        with _signals(job_dir, reporter):
            return _run_guarded(job_dir, reporter, processes)
    finally:
        writer.close()


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
        writer.emit("failed", **_unexpected(error, reporter).payload())
        return FAILED
    return FINISHED


def _unexpected(error: Exception, reporter: Reporter) -> EngineError:
    detail = "".join(traceback.format_exception(error))[-8000:]
    if is_out_of_memory(error):
        return EngineError("out_of_memory", f"Memory ran out while {reporter.phase}.", detail=detail)
    return EngineError("internal", f"The engine failed while {reporter.phase}: {error}"[:500], detail=detail)


def is_out_of_memory(error: Exception) -> bool:
    """Python's, the accelerator's and the CPU allocator's ways of saying so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _run(job_dir: Path, reporter: Reporter, processes: Processes) -> None:
    reporter.report()
    spec = read_spec(job_dir)
    if _emit_finished_package(job_dir, reporter):
        return
    store = CheckpointStore(job_dir / CHECKPOINTS)
    loaded = _latest_checkpoint(store, reporter)
    threads = pin_threads(job_dir, spec.config, loaded.state.get("threads") if loaded else None)
    learner, plan = _learner(job_dir, spec, reporter, loaded)
    trainer = Trainer(learner, reporter, store, processes, plan, spec.stop_after_epoch)
    trainer.environment = {**describe(trainer.device), "threads": threads, "processes": processes.world}
    trainer.kept = _kept(learner)
    if loaded is not None:
        trainer.restore(loaded)
    _emit_started(trainer, threads, loaded)
    trainer.fit()
    metrics = _package(job_dir, spec, trainer, learner)
    reporter.enter("finished")
    reporter.writer.emit("finished", metrics=metrics, package=OUTPUT)


def _learner(job_dir: Path, spec: JobSpec, reporter: Reporter, loaded: Loaded | None) -> tuple[RowLearner, Plan]:
    base = package.load(job_dir / BASE) if spec.finetune else None
    table = read_table(spec.data, [*spec.targets, *spec.features])
    reporter.beat()
    tokenizer = str(loaded.state.get("tokenizer", "")) if loaded else ""
    source = source_in(job_dir / "data" / IMAGES)
    known = Base(base.description, base.preprocessor) if base else None
    dataset = prepare(spec, table, reporter.writer.log, reporter.beat, source, tokenizer, known)
    if base is None or spec.finetune is None:
        return RowLearner(dataset, choose_device()), Plan()
    weights, fresh = package.fitted_weights(base, dataset.target.classes)
    network = build_network(replace(base.network.shape, outputs=dataset.target.outputs))
    network.load_state_dict(weights)
    plan = plan_of(network, spec.finetune, fresh, spec.config.seed)
    return RowLearner(dataset, choose_device(), network), plan


def _kept(learner: RowLearner) -> dict[str, Any]:
    """What a checkpoint holds besides the state of training: what was fitted and may not come out the same again."""
    tokenizer = learner.dataset.preprocessor.tokenizer
    return {"tokenizer": tokenizer.to_json()} if tokenizer else {}


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
    assert isinstance(trainer.learner, RowLearner)
    trainer.reporter.writer.emit(
        "started",
        environment=trainer.environment,
        threads=threads,
        device=str(trainer.device),
        resumed_from=loaded.step if loaded else None,
        parameters=sum(parameter.numel() for parameter in trainer.network.parameters()),
        rows=row_counts(trainer.learner.dataset),
        config=trainer.config.to_dict(),
    )


def _package(job_dir: Path, spec: JobSpec, trainer: Trainer, learner: RowLearner) -> dict[str, float | None]:
    """Measure, explain and save; returns the final metrics."""
    reporter, dataset = trainer.reporter, learner.dataset
    reporter.enter("evaluating")
    actual, predicted = learner.held_out()
    reporter.enter("explaining")
    importance = permutation_importance(learner, reporter) if trainer.config.importance else []
    reporter.enter("packaging")
    evaluation = evaluate(dataset, actual, predicted, importance)
    metrics: dict[str, float | None] = evaluation["metrics"]
    state = trainer.state
    training = {"steps": state.step, "epochs": state.epoch, "best_epoch": state.best_epoch}
    description = describe_model(spec, dataset, learner.network.shape, metrics, training)
    card = model_card(description, evaluation)
    tokenizer = dataset.preprocessor.tokenizer
    extra = {TOKENIZER: tokenizer.to_json().encode()} if tokenizer else {}
    tensors = merged(learner.network)
    if spec.finetune and spec.finetune.mode == "lora":
        base, _ = package.fitted_weights(package.load(job_dir / BASE), dataset.target.classes)
        tensors = save_tensors(learner.network, base)
        version = str(spec.lineage.get("base_version", ""))
        extra[ADAPTER_CONFIG] = to_json(peft_config(learner.network, spec.finetune, version))
    package.save(job_dir / OUTPUT, description, tensors, card, evaluation, extra)
    return metrics


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
