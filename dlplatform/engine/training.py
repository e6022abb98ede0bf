"""The training loop.

Resuming is exact: the order of rows is a function of (seed, epoch, group), the random state of dropout is
in the checkpoint, and nothing depends on the clock but when checkpoints and progress lines are written.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dlplatform.engine import metrics
from dlplatform.engine.checkpoints import CheckpointStore, Loaded
from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.dataset import Dataset, Tensors, to_tensors
from dlplatform.engine.errors import EngineError, Interrupted
from dlplatform.engine.network import NetworkShape, TabularNetwork, build_network
from dlplatform.engine.objective import Objective, class_weights, predict_rows, trust_candidates
from dlplatform.engine.optimization import build_optimizer, learning_rate
from dlplatform.engine.reporter import INTERVAL, Reporter
from dlplatform.engine.statistics import fit_statistics

# Seconds between two checkpoints at least, and the share of the time they may take.
MINIMUM_GAP: Final = 1.0
CHECKPOINT_SHARE: Final = 0.03
# The weights are averaged over about the epochs divided by this.
AVERAGE_SHARE: Final = 20

_CONFIG_OF_SHAPE: Final = ("layers", "width", "dropout", "bins", "embedding_size")

Array = np.ndarray[Any, Any]


@dataclass
class State:
    """Where training is; with the tensors, all that a checkpoint holds. ``position``: steps done in the
    epoch. ``stale``: epochs since the best one."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    best_loss: float | None = None
    best_epoch: int = -1
    stale: int = 0
    done: bool = False


def network_shape(dataset: Dataset) -> NetworkShape:
    """The shape of the network that the settings and the inputs ask for."""
    config, groups = dataset.config, dataset.split.groups
    params = {name: config.params[name] for name in _CONFIG_OF_SHAPE if name in config.params}
    return NetworkShape(
        architecture=config.architecture,
        groups=groups,
        members=config.params.get("members", groups) // groups,
        outputs=dataset.target.outputs,
        inputs=dataset.preprocessor.sizes(),
        **params,
    )


class Trainer:
    """Trains one network on one dataset; owns everything that changes while it does."""

    def __init__(
        self, dataset: Dataset, device: torch.device, reporter: Reporter, store: CheckpointStore | None = None
    ) -> None:
        self.dataset = dataset
        self.config: TrainingConfig = dataset.config
        self.device = device
        self.reporter = reporter
        self.store = store
        self.environment: dict[str, Any] = {}
        self.state = State()
        self.network = self._new_network()
        self.optimizer = build_optimizer(self.network, self.config)
        self.objective = self._new_objective()
        self.tensors: Tensors = to_tensors(dataset.inputs, dataset.target.values, device)
        self.train_rows = [torch.from_numpy(rows) for rows in dataset.split.train]
        self.validation_rows = _stack_padded(dataset.split.validation).to(device)
        self.rows_per_epoch = min(len(rows) for rows in self.train_rows)
        assert isinstance(self.config.batch_size, int)
        assert isinstance(self.config.epochs, int)
        self.steps_per_epoch = max(1, math.ceil(self.rows_per_epoch / self.config.batch_size))
        self.total_steps = self.steps_per_epoch * self.config.epochs
        self.losses = torch.zeros(self.steps_per_epoch, device=device)
        self.averaged = copy.deepcopy(self.network)
        self.best: dict[str, Tensor] = {}
        torch.manual_seed(self.config.seed)
        self._last_checkpoint = time.monotonic()
        self._checkpoint_cost = 0.0

    def _new_network(self) -> TabularNetwork:
        dataset = self.dataset
        shape = network_shape(dataset)
        numbers = None if dataset.target.classes else dataset.target.values
        statistics = fit_statistics(dataset.inputs, shape.inputs, dataset.split, max(1, shape.bins), numbers)
        network = build_network(shape)
        network.initialise(statistics, self.config.seed)
        return network.to(self.device).train()

    def _new_objective(self) -> Objective:
        target, config = self.dataset.target, self.config
        assert config.label_smoothing != "auto"
        weights = None
        if target.classes:
            rows = np.concatenate(self.dataset.split.train)
            weights = class_weights(config.class_weights, target.values[rows], len(target.classes))
        tensor = None if weights is None else torch.from_numpy(weights).float().to(self.device)
        return Objective(len(target.classes), tensor, config.label_smoothing)

    def fit(self) -> None:
        """Train to the end; afterwards the network holds the weights of the best epoch.

        Raises EngineError ``nan_loss``, and Interrupted after a checkpoint when asked to stop.
        """
        self.reporter.begin_training(self.state.step, self.total_steps)
        while not self.state.done:
            self.run_epoch()
        self.network.load_state_dict(self.best)
        self.averaged.load_state_dict(self.best)

    def run_epoch(self) -> None:
        """What is left of the current epoch, its validation, and a checkpoint when one is due."""
        self._run_steps()
        self._end_epoch()

    def _run_steps(self) -> None:
        state = self.state
        order = self._epoch_order(state.epoch)
        edges = [step * self.rows_per_epoch // self.steps_per_epoch for step in range(self.steps_per_epoch + 1)]
        interval = self._log_interval()
        while state.position < self.steps_per_epoch:
            first, last = edges[state.position], edges[state.position + 1]
            self.losses[state.position] = self._train_step(order[:, first:last])
            state.position += 1
            state.step += 1
            self.reporter.advance(state.epoch, state.step, last - first)
            if state.position < self.steps_per_epoch:
                if state.position % interval == 0:
                    self._report_window(interval)
                elif state.step == 1:  # the loss before anything is learned, and the sign that training is under way
                    self._report_window(1)
            self._tend()

    def _train_step(self, rows: Tensor) -> Tensor:
        """One optimisation step on positions (G, B); returns the loss without waiting for it."""
        rate = learning_rate(self.config, self.state.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        batch = self.tensors.batch(rows)
        if self.config.precision == "bfloat16":
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                outputs = self.network(batch)
        else:
            outputs = self.network(batch)
        loss = self.objective(outputs.float(), self._targets(rows))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        return loss.detach()  # type: ignore[no-any-return]

    def _targets(self, rows: Tensor) -> Tensor:
        target = self.tensors.target[rows]
        if self.dataset.target.classes:
            return target
        network = self.network
        return (target - network.target_center.unsqueeze(1)) / network.target_scale.unsqueeze(1)

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
        values: dict[str, float | None] = {
            "train/loss": float(window.mean()),
            "learning_rate": learning_rate(self.config, state.step - 1, self.total_steps),
        }
        self.reporter.writer.metric(state.step, state.epoch, values)

    def _tend(self) -> None:
        """Between two steps: stop, checkpoint or report when it is time to."""
        if self.reporter.stop_requested:
            self._check_losses()
            self.checkpoint()
            raise Interrupted
        now = time.monotonic()
        if now - self.reporter.last >= INTERVAL:
            self._check_losses()
            self.reporter.report()
        if now - self._last_checkpoint >= self.config.checkpoint_seconds:
            self._check_losses()
            self.checkpoint()

    def _check_losses(self) -> None:
        """Raise ``nan_loss`` naming the first step whose loss was not finite."""
        finite = torch.isfinite(self.losses[: self.state.position])
        if bool(finite.all()):
            return
        first = self.state.step - self.state.position + int(finite.logical_not().nonzero()[0]) + 1
        raise EngineError("nan_loss", f"The loss became infinite or undefined at step {first}.")

    def _end_epoch(self) -> None:
        self._check_losses()
        state = self.state
        self._average()
        actual, predicted = self._choose_trust()
        values = self._validation_values(actual, predicted)
        loss = values["validation/loss"]
        if loss is None or not math.isfinite(loss):
            raise EngineError("nan_loss", f"The validation loss became undefined at step {state.step}.")
        improved = self._judge(loss)
        values["train/loss"] = float(self.losses.mean())
        values["learning_rate"] = learning_rate(self.config, state.step - 1, self.total_steps)
        self.reporter.writer.metric(state.step, state.epoch, values)
        state.epoch += 1
        state.position = 0
        state.done = state.epoch >= int(self.config.epochs) or self._stale()
        self._checkpoint_if_due(improved)

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards those of this epoch.

        An average over the last epochs generalises better than any of them (Izmailov et al., 2018). It
        spans a twentieth of the epochs; the first epoch counts in full.
        """
        keep = max(0.0, 1 - AVERAGE_SHARE / int(self.config.epochs)) if self.state.epoch else 0.0
        for average, current in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
            average.lerp_(current, 1 - keep)

    def _judge(self, loss: float) -> bool:
        """Remember the weights if this epoch is the best so far."""
        state = self.state
        if state.best_loss is not None and loss >= state.best_loss:
            state.stale += 1
            return False
        state.best_loss, state.best_epoch, state.stale = loss, state.epoch, 0
        self.best = {name: tensor.clone() for name, tensor in self.averaged.state_dict().items()}
        return True

    def _stale(self) -> bool:
        patience = self.config.early_stopping
        return patience is not False and self.state.stale >= int(patience)

    def validate(self) -> tuple[Array, Array]:
        """(actual (n,), predicted (n, K)) of all validation rows, each by the groups that never saw it,
        in the order of the split's validation parts."""
        return self._held_out_target(), self._held_out_predictions([None])[0]

    def _held_out_target(self) -> Array:
        return self.dataset.target.values[np.concatenate(self.dataset.split.validation)]

    def _held_out_predictions(self, trusts: Sequence[Tensor | None]) -> list[Array]:
        predicted = predict_rows(self.averaged, self.tensors, self.validation_rows, trusts).double().cpu().numpy()
        parts = self.dataset.split.validation
        return [np.concatenate([each[group, : len(rows)] for group, rows in enumerate(parts)]) for each in predicted]

    def _choose_trust(self) -> tuple[Array, Array]:
        """Set the trust in the deep members that gives the lowest validation loss; as `validate`."""
        actual = self._held_out_target()
        candidates = trust_candidates(self.averaged)
        predictions = self._held_out_predictions(candidates)
        losses = [self._validation_loss(actual, predicted) for predicted in predictions]
        best = int(np.argmin(losses))
        chosen = candidates[best]
        if chosen is not None:
            self.averaged.trust.copy_(chosen)
        return actual, predictions[best]

    def _validation_loss(self, actual: Array, predicted: Array) -> float:
        """Log loss, or the mean squared error in units of the target's variance."""
        if self.dataset.target.classes:
            return metrics.log_loss(actual, predicted)
        spread = float(self.network.target_scale.double().mean())
        return float((((actual - predicted[:, 0]) / spread) ** 2).mean())

    def _validation_values(self, actual: Array, predicted: Array) -> dict[str, float | None]:
        values: dict[str, float | None] = {"validation/loss": self._validation_loss(actual, predicted)}
        if self.dataset.target.classes:
            values["validation/accuracy"] = float((predicted.argmax(1) == actual).mean())
            return values
        unit = self.dataset.target.unit
        measured = metrics.regression(actual * unit, predicted[:, 0] * unit)
        return values | {f"validation/{name}": value for name, value in measured.items()}

    def _checkpoint_if_due(self, improved: bool) -> None:
        since = time.monotonic() - self._last_checkpoint
        gap = max(MINIMUM_GAP, self._checkpoint_cost / CHECKPOINT_SHARE)
        if self.state.done or since >= min(gap, self.config.checkpoint_seconds):
            self.checkpoint(improved)

    def checkpoint(self, best: bool = False) -> None:
        """Write a checkpoint now (nothing without a store)."""
        if self.store is None:
            return
        began = time.monotonic()
        # Events that lead to this state must not be lost when the state is kept.
        self.reporter.writer.sync()
        saved = self.store.save(
            self.state.step,
            self._tensors_of_state(),
            {"training": asdict(self.state), "threads": torch.get_num_threads()},
            best,
            self.environment,
        )
        path = f"{saved.path.parent.name}/{saved.path.name}"
        self.reporter.writer.emit("checkpoint", step=self.state.step, path=path, sha256=saved.sha256, best=best)
        self._last_checkpoint = time.monotonic()
        self._checkpoint_cost = self._last_checkpoint - began

    def _tensors_of_state(self) -> dict[str, Tensor]:
        tensors = {f"model/{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in entry.items()}
        tensors["losses"] = self.losses
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_device"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def restore(self, loaded: Loaded) -> None:
        """Go on from a checkpoint. Raises EngineError ``checkpoint_corrupt`` when it is of another run."""
        try:
            self._restore(loaded.tensors, State(**loaded.state["training"]))
        except (KeyError, TypeError, RuntimeError) as error:
            sentence = f"The checkpoint of step {loaded.step} does not belong to this run."
            raise EngineError("checkpoint_corrupt", sentence, detail=str(error)) from error

    def _restore(self, tensors: dict[str, Tensor], state: State) -> None:
        self.network.load_state_dict(_under("model/", tensors))
        self.averaged.load_state_dict(_under("average/", tensors))
        # Copies, so that no tensor keeps the alignment it had in the file: kernels may depend on it.
        self.best = {name: tensor.to(self.device, copy=True) for name, tensor in _under("best/", tensors).items()}
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in _under("optimizer/", tensors).items():
            index, name = key.split("/")
            entries.setdefault(int(index), {})[name] = value.clone()
        described = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**described, "state": entries})
        self.losses.copy_(tensors["losses"])
        torch.set_rng_state(tensors["random"].clone())
        if "random_device" in tensors:
            torch.cuda.set_rng_state(tensors["random_device"].clone(), self.device)
        self.state = state


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _stack_padded(parts: tuple[np.ndarray[Any, Any], ...]) -> Tensor:
    """Rows of different length → (G, longest), short ones repeating their first position."""
    longest = max(len(part) for part in parts)
    return torch.from_numpy(np.stack([np.append(part, [part[0]] * (longest - len(part))) for part in parts])).long()
