"""The training loop.

Resuming is exact: the order of items is a function of (seed, epoch, group), the random state of dropout and
augmentation is in the checkpoint, and nothing depends on the clock but when checkpoints and progress lines are
written. So is sharing: every process draws the same noise and uses its part of it.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import Tensor

from dlplatform.engine.checkpoints import CheckpointStore, Loaded, Snapshot
from dlplatform.engine.checkup import Checkup, rows_in_words
from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.doctor import Epoch
from dlplatform.engine.errors import EngineError, Interrupted
from dlplatform.engine.finetuning import Plan
from dlplatform.engine.learner import Learner, Values
from dlplatform.engine.optimization import build_optimizer, learning_rate
from dlplatform.engine.processes import Processes, agreed
from dlplatform.engine.reporter import INTERVAL, Reporter
from dlplatform.engine.training_state import Frozen, State, Trained
from dlplatform.engine.user_code import CodeNetwork

# Seconds between two checkpoints at least, and the share of the time they may take.
MINIMUM_GAP: Final = 1.0
CHECKPOINT_SHARE: Final = 0.03
# The weights are averaged over about the epochs divided by this.
AVERAGE_SHARE: Final = 20


class Trainer:
    """Trains one learner's network; owns everything that changes while it does."""

    def __init__(
        self,
        learner: Learner,
        reporter: Reporter,
        store: CheckpointStore | None = None,
        processes: Processes | None = None,
        plan: Plan | None = None,
        stop_after_epoch: int | None = None,
    ) -> None:
        self.learner = learner
        self.config: TrainingConfig = learner.config
        self.device = learner.device
        self.reporter = reporter
        self.store = store
        self.processes = processes or Processes()
        self.stop_after_epoch = stop_after_epoch
        self.environment: dict[str, Any] = {}
        self.kept: dict[str, Any] = {}  # more that every checkpoint holds, such as a fitted tokenizer
        self.state = State()
        self.network = learner.network
        self.averaged = copy.deepcopy(self.network)
        self.plan = plan or Plan()
        self.plan.apply(self.network, 0)
        self.model = self.processes.wrap(self.network)
        self.processes.spread(self.averaged)
        self.optimizer = build_optimizer(self.network, self.config, self.plan)
        self.train_rows = learner.train_rows
        self.rows_per_epoch = min(len(rows) for rows in self.train_rows)
        assert isinstance(self.config.batch_size, int)
        assert isinstance(self.config.epochs, int)
        self.steps_per_epoch = max(1, math.ceil(self.rows_per_epoch / self.config.batch_size))
        self.total_steps = self.steps_per_epoch * self.config.epochs
        self._check_shares()
        self.losses = torch.zeros(self.steps_per_epoch, device=self.device)
        held = (self.network, self.averaged, self.optimizer, self.losses, self.device, self.processes)
        self.trained = Trained(*held, Frozen(self.network, self.plan), best={})
        self.checkup = Checkup(learner, reporter, self.processes)
        torch.manual_seed(self.config.seed)
        self._last_checkpoint = time.monotonic()
        self._checkpoint_cost = 0.0

    def _check_shares(self) -> None:
        """Every process needs a row of every step: the mean over none is no number. Raises EngineError."""
        least, world = self.rows_per_epoch // self.steps_per_epoch, self.processes.world
        if least < world:
            sentence = f"A step has {least} of the training rows, which {world} processes cannot share."
            fix = f"Take a batch_size of at least {2 * world}, more rows, or fewer devices."
            raise EngineError("bad_config", sentence, fix)

    def fit(self) -> None:
        """Train to the end; afterwards the network holds the weights of the best epoch.

        Raises EngineError ``nan_loss``, and Interrupted after a checkpoint when asked to stop.
        """
        self.reporter.begin_training(self.state.step, self.total_steps)
        while not self.state.done:
            self.run_epoch()
        self._settle_checkpoint()
        self.trained.take_best()

    def run_epoch(self) -> None:
        """What is left of the current epoch, its validation, and a checkpoint when one is due."""
        self._run_steps()
        self._end_epoch()

    def try_steps(self, count: int) -> list[float]:
        """Take some steps without keeping account of them; the seconds of each."""
        order, seconds = self._epoch_order(0), []
        for position in range(count):
            began = time.perf_counter()
            first, last = self._edges(position % self.steps_per_epoch)
            float(self._train_step(order[:, first:last]))  # waits for the device
            seconds.append(time.perf_counter() - began)
        return seconds

    def _freeze(self, epoch: int) -> None:
        """Freeze and unfreeze for an epoch; processes that join gradients must know which ones there will be."""
        before = [parameter.requires_grad for parameter in self.network.parameters()]
        self.plan.apply(self.network, epoch)
        if before != [parameter.requires_grad for parameter in self.network.parameters()]:
            self.model = self.network  # lets go of what joined the former ones
            self.model = self.processes.wrap(self.network)

    def _run_steps(self) -> None:
        state = self.state
        self._freeze(state.epoch)
        order = self._epoch_order(state.epoch)
        interval = self._log_interval()
        while state.position < self.steps_per_epoch:
            first, last = self._edges(state.position)
            loss = self._train_step(order[:, first:last])
            stop, save = self.reporter.stop_requested, self._checkpoint_is_due()
            self.losses[state.position], stop, save = self.processes.settle(loss, stop, save)
            state.position += 1
            state.step += 1
            self.reporter.advance(state.epoch, state.step, last - first)
            if state.position < self.steps_per_epoch:
                if state.position % interval == 0:
                    self._report_window(interval)
                elif state.step == 1:  # the loss before anything is learned, and the sign that training is under way
                    self._report_window(1)
            self._tend(stop, save)

    def _edges(self, position: int) -> tuple[int, int]:
        """The part of an epoch's order that a step takes."""
        first, last = (at * self.rows_per_epoch // self.steps_per_epoch for at in (position, position + 1))
        return first, last

    def _train_step(self, rows: Tensor) -> Tensor:
        """One optimisation step on positions (G, B); returns the loss of this process without waiting for it."""
        rate = learning_rate(self.config, self.state.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
            for parameter in group["params"]:
                parameter.grad = None  # as zero_grad does, without its record for profilers
        loss = self._backward(rows)
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.optimizer.update()
        if isinstance(self.config.ema, float):
            self._follow(self.config.ema if self.state.step else 0.0)
        return loss

    def _backward(self, rows: Tensor) -> Tensor:
        """Gradients of the mean loss on the rows; this process's part of that loss."""
        parts, world = (
            min(self.config.accumulation, max(1, rows.shape[1] // self.processes.world)),
            self.processes.world,
        )
        if parts == 1:
            loss = self.learner.loss(self.model, rows, self.processes.share(rows.shape[1]))
            (loss * world if world > 1 else loss).backward()
            return loss.detach()
        total = torch.zeros((), device=self.device)
        random = torch.get_rng_state()
        for part in range(parts):
            torch.set_rng_state(random)  # every part uses its share of one and the same noise
            with self.processes.joining(self.model, join=part + 1 == parts):
                share = self.processes.share(rows.shape[1], part, parts)
                loss = self.learner.loss(self.model, rows, share)
                (loss * world).backward()
            total += loss.detach()
        return total

    def _epoch_order(self, epoch: int) -> Tensor:
        """(G, rows) positions: each group's own training rows in an order of its own."""
        orders = []
        for group, rows in enumerate(self.train_rows):
            # A large odd multiplier keeps the streams of (seed, epoch, group) apart.
            stream = ((self.config.seed * 1_000_003 + epoch) * 1_009 + group) % 2**63
            generator = torch.Generator().manual_seed(stream)
            orders.append(rows[torch.randperm(len(rows), generator=generator)[: self.rows_per_epoch]])
        return torch.stack(orders).to(self.device)

    def _log_interval(self) -> int:
        if self.config.log_interval != "auto":
            return self.config.log_interval
        return max(50, -(-self.steps_per_epoch // 10))

    def _report_window(self, interval: int) -> None:
        """A point of the training curve inside a long epoch."""
        self._check_losses()
        state = self.state
        window = self.losses[state.position - interval : state.position]
        values: Values = {
            "train/loss": float(window.mean()),
            "learning_rate": learning_rate(self.config, state.step - 1, self.total_steps),
        }
        self.reporter.writer.metric(state.step, state.epoch, values)
        self.checkup.window(state.step, float(window.mean()))

    def _tend(self, stop: bool, save: bool) -> None:
        """Between two steps: stop, checkpoint or report when it is time to."""
        if stop:
            self._check_losses()
            self.checkpoint()
            self._settle_checkpoint()
            raise Interrupted
        if time.monotonic() - self.reporter.last >= INTERVAL:
            self._check_losses()
            self._announce_checkpoint()
            self.reporter.report()
        if save:
            self._check_losses()
            self.checkpoint()

    def _check_losses(self) -> None:
        """Raise ``nan_loss`` naming the first step whose loss was not finite, and rows of its batch."""
        finite = torch.isfinite(self.losses[: self.state.position])
        if bool(finite.all()):
            return
        position = int(finite.logical_not().nonzero()[0])
        first, last = self._edges(position)
        rows = rows_in_words(self.learner.places(self._epoch_order(self.state.epoch)[:, first:last]))
        step = self.state.step - self.state.position + position + 1
        self._settle_checkpoint()  # the last good one must be whole
        raise self.checkup.not_finite(f"The loss became infinite or undefined at step {step}.{rows}")

    def _end_epoch(self) -> None:
        self._check_losses()
        state = self.state
        if self.config.ema == "auto":
            self._average()
        values = self.learner.validate(self.averaged)
        loss = values["validation/loss"]
        if loss is None or not math.isfinite(loss):
            raise self.checkup.not_finite(f"The validation loss became undefined at step {state.step}.")
        improved = self._judge(loss)
        trained = values["train/loss"] = float(self.losses.mean())
        values["learning_rate"] = learning_rate(self.config, state.step - 1, self.total_steps)
        self._show_samples()
        self.reporter.writer.metric(state.step, state.epoch, values)
        state.done = state.epoch + 1 >= int(self.config.epochs) or self._stale()
        self.checkup.window(state.step, trained)
        self.checkup.epoch(Epoch(state.epoch, trained, loss, state.done), self.network)
        state.epoch += 1
        state.position = 0
        _, _, due = self.processes.settle(torch.zeros((), device=self.device), False, self._epoch_checkpoint_is_due())
        if due:
            self.checkpoint(improved)
        self._stop_at_rung()

    def _show_samples(self) -> None:
        """Once for each evaluation, whatever the number of resumes; only the leader knows what was told already."""
        writer, divides = self.reporter.writer, self.processes.divides
        due = self.state.step > writer.last_metric_step
        if agreed(int(due)) if divides else due and self.processes.leads:
            for text in self.learner.samples(self.averaged, agreed if divides else int):
                writer.emit("sample", step=self.state.step, text=text)

    def _average(self) -> None:
        """Move the averaged weights towards those of this epoch.

        An average over the last epochs generalises better than any of them (Izmailov et al., 2018). It
        spans a twentieth of the epochs; the first epoch counts in full.
        """
        keep = max(0.0, 1 - AVERAGE_SHARE / int(self.config.epochs)) if self.state.epoch else 0.0
        self._follow(keep)

    @torch.no_grad()
    def _follow(self, keep: float) -> None:
        for average, current in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            average.lerp_(current, 1 - keep)
        if isinstance(self.network, CodeNetwork):  # the engine's own layers keep no statistics of batches
            for kept, moved in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
                kept.copy_(moved)

    def _judge(self, loss: float) -> bool:
        """Remember the weights if this epoch is the best so far."""
        state = self.state
        if state.best_loss is not None and loss >= state.best_loss:
            state.stale += 1
            return False
        state.best_loss, state.best_epoch, state.stale = loss, state.epoch, 0
        self.trained.keep_best()
        return True

    def _stale(self) -> bool:
        patience = self.config.early_stopping
        return patience is not False and self.state.stale >= int(patience)

    def _stop_at_rung(self) -> None:
        """Pause where a search over settings wants to judge first."""
        if self.stop_after_epoch is None or self.state.done or self.state.epoch < self.stop_after_epoch:
            return
        self.checkpoint()
        self._settle_checkpoint()
        self.reporter.writer.log("info", f"Paused after epoch {self.state.epoch}, as was asked for.")
        raise Interrupted

    # --- checkpoints ---------------------------------------------------------------------------------

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._last_checkpoint >= self.config.checkpoint_seconds

    def _epoch_checkpoint_is_due(self) -> bool:
        since = time.monotonic() - self._last_checkpoint
        gap = max(MINIMUM_GAP, self._checkpoint_cost / CHECKPOINT_SHARE)
        return self.state.done or since >= min(gap, self.config.checkpoint_seconds)

    def checkpoint(self, best: bool = False) -> None:
        """Take the state now and make it durable beside the training (nothing without a store)."""
        if self.store is None:
            return
        began = time.monotonic()
        self._settle_checkpoint()
        tensors = self.trained.tensors()
        if self.processes.leads:
            # Events that lead to this state must not be lost when the state is kept.
            self.reporter.writer.sync()
            state = {"training": asdict(self.state), "threads": torch.get_num_threads(),
                     "doctor": self.checkup.state(), "frozen": self.trained.frozen.sha256, **self.kept}  # fmt: skip
            self.store.begin(Snapshot(self.state.step, tensors, state, best, self.environment))
        self._last_checkpoint = time.monotonic()
        self._checkpoint_cost = self._last_checkpoint - began

    def _settle_checkpoint(self) -> None:
        """Wait until the last checkpoint is durable, and say so."""
        if self.store is not None:
            self.store.wait()
            self._announce_checkpoint()

    def _announce_checkpoint(self) -> None:
        saved = self.store.finished() if self.store is not None else None
        if saved is not None:
            path = f"{saved.path.parent.name}/{saved.path.name}"
            self.reporter.writer.emit("checkpoint", step=saved.step, path=path, sha256=saved.sha256, best=saved.best)

    def restore(self, loaded: Loaded) -> None:
        """Go on from a checkpoint. Raises EngineError ``checkpoint_corrupt`` when it is of another run."""
        try:
            self.trained.restore(loaded.tensors, loaded.state.get("frozen"))
            self.state = State(**loaded.state["training"])
            self.checkup.doctor.restore(loaded.state.get("doctor", {}))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if self.processes.world > 1 and isinstance(error, RuntimeError):
                raise  # more likely a peer that died
            sentence = f"The checkpoint of step {loaded.step} does not belong to this run."
            raise EngineError("checkpoint_corrupt", sentence, detail=str(error)) from error
