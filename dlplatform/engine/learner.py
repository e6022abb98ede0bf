"""What the training loop trains: a network with its data, its loss and its validation.

`Learner` is all that `dlplatform.engine.training` knows of a task; `RowLearner` predicts a target from the columns
of a row.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from dlplatform.engine import metrics
from dlplatform.engine.augmentation import augment
from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.dataset import Dataset, Tensors, to_tensors
from dlplatform.engine.dropout import Share, sharing
from dlplatform.engine.fields import CODE, TRANSFORMERS
from dlplatform.engine.network import Batch, NetworkShape, RowNetwork, build_network
from dlplatform.engine.objective import Objective, class_weights, label_weights, predict_rows, trust_candidates
from dlplatform.engine.room import require_room
from dlplatform.engine.statistics import fit_statistics
from dlplatform.engine.transformers_fresh import looks_at_images, naming, reads_texts
from dlplatform.engine.transformers_models import try_out
from dlplatform.engine.transformers_settings import SENSES

_CONFIG_OF_SHAPE: Final = (
    "layers",
    "width",
    "dropout",
    "bins",
    "embedding_size",
    "image_width",
    "image_depth",
    "text_width",
    "text_layers",
    "text_heads",
)

GLANCE_ROWS: Final = 256

Array = np.ndarray[Any, Any]
Values = dict[str, float | None]


class Learner(ABC):
    """One task on one set of data.

    ``train_rows``: positions of the training items of each cross-fitting group. ``network`` holds the weights that
    are trained; the loop may wrap it for several devices and passes what it wrapped to `loss`. ``waited``: seconds
    that steps have waited for their rows. ``begins_trained``: whether the network started from a base.
    """

    waited = 0.0
    begins_trained = False

    config: TrainingConfig
    device: torch.device
    network: nn.Module
    train_rows: list[Tensor]

    @abstractmethod
    def loss(self, model: nn.Module, rows: Tensor, share: Share) -> Tensor:
        """This process's part of the mean loss on the items (G, B), of which it computes the given share."""

    @abstractmethod
    def validate(self, network: nn.Module) -> Values:
        """Measures on the validation items; ``validation/loss`` is the one that is judged by."""

    @abstractmethod
    def reference(self) -> float:
        """The validation loss of a model without inputs."""

    @property
    @abstractmethod
    def judged(self) -> int:
        """Rows or documents that validate."""

    def glance(self, network: nn.Module) -> None:  # noqa: B027 - a task may have nothing to watch
        """Pass one batch of validation rows through the network, for those who watch its layers."""

    def places(self, rows: Tensor) -> list[int]:
        """Positions in the files of the items (G, B), the likeliest cause of trouble first, where items are rows."""
        return []

    def set_batch_size(self, size: int) -> None:
        """Settle what was to be tried out."""
        self.config = replace(self.config, batch_size=size)

    def samples(self, network: nn.Module, agree: Callable[[int], int] = int) -> list[str]:
        """What the network says at this point, of tasks in which it says something. ``agree``: see `language.write`."""
        return []


def network_shape(
    dataset: Dataset, transformer: dict[str, Any] | None = None, image_transformer: dict[str, Any] | None = None
) -> NetworkShape:
    """The shape of the network that the settings and the inputs ask for; ``transformer`` reads the texts and
    ``image_transformer`` looks at the images, if given.

    The params of somebody's own code are for that code alone.
    """
    config, groups = dataset.config, dataset.split.groups
    known = {} if config.architecture == CODE else config.params
    params = {name: known[name] for name in _CONFIG_OF_SHAPE if name in known}
    sizes = dataset.preprocessor.sizes()
    looking = image_transformer or looks_at_images(config, sizes)
    encoder = TRANSFORMERS if looking else config.image_encoder
    return NetworkShape(
        architecture=config.architecture,
        groups=groups,
        members=known.get("members", groups) // groups,
        outputs=dataset.target.outputs,
        inputs=sizes,
        kind=dataset.target.kind,
        image_encoder=encoder if sizes.images else "",
        transformer=transformer or reads_texts(config, sizes),
        image_transformer=looking,
        **params,
    )


def new_network(
    dataset: Dataset,
    transformer: dict[str, Any] | None = None,
    build: Callable[[NetworkShape], RowNetwork] = build_network,
    image_transformer: dict[str, Any] | None = None,
) -> RowNetwork:
    """A network for the data with statistics fitted to them and weights from the seed."""
    shape = network_shape(dataset, transformer, image_transformer)
    numbers = dataset.target.values if dataset.target.kind in ("number", "numbers") else None
    statistics = fit_statistics(dataset.inputs, shape.inputs, dataset.split, max(1, shape.bins), numbers)
    if build is build_network and transformer is None and image_transformer is None:
        require_room(lambda: build(shape), dataset.config)
    network = build(shape)
    network.initialise(statistics, dataset.config.seed)
    with naming(next((name for name in SENSES if getattr(dataset.config, name) is not None), None)):
        try_out(network)
    return network


class RowLearner(Learner):
    """Classes, labels or numbers of rows."""

    network: RowNetwork

    def __init__(
        self,
        dataset: Dataset,
        device: torch.device,
        network: RowNetwork | None = None,
        build: Callable[[NetworkShape], RowNetwork] = build_network,
    ) -> None:
        self.build = build
        self.dataset = dataset
        self.config = dataset.config
        self.device = device
        self.begins_trained = network is not None
        self.network = network if network is not None else new_network(dataset, build=build)
        self.network.to(device).train()
        self.objective = self._new_objective()
        self.tensors: Tensors = to_tensors(dataset.inputs, dataset.target.values, device).normalise(self.network)
        self.train_rows = [torch.from_numpy(rows) for rows in dataset.split.train]
        self.validation_rows = _stack_padded(dataset.split.validation).to(device)

    def _new_objective(self) -> Objective:
        target, config = self.dataset.target, self.config
        assert config.label_smoothing != "auto"
        weights = None
        train = np.concatenate(self.dataset.split.train)
        if target.kind == "class":
            weights = class_weights(config.class_weights, target.values[train], len(target.classes))
        elif target.kind == "labels":
            weights = label_weights(config.class_weights, target.values[train])
        tensor = None if weights is None else torch.from_numpy(weights).float().to(self.device)
        return Objective(target.kind, tensor, config.label_smoothing)

    def set_batch_size(self, size: int) -> None:
        super().set_batch_size(size)
        self.dataset = replace(self.dataset, config=self.config)

    def loss(self, model: nn.Module, rows: Tensor, share: Share) -> Tensor:
        if share.whole:
            return self.objective(self._outputs(model, rows, rows, share), self.targets(rows))  # type: ignore[no-any-return]
        mine = rows[:, share.first : share.last]
        with sharing(share):
            outputs = self._outputs(model, mine, rows, share)
        return self.objective(outputs, self.targets(mine), self.targets(rows))  # type: ignore[no-any-return]

    def batch(self, rows: Tensor, together: Tensor, share: Share) -> Batch:
        """The rows (G, B) as they train: a part of those ``together``, images changed at random."""
        began = time.perf_counter()
        batch = self.tensors.batch(rows, together)
        self.waited += time.perf_counter() - began
        if batch.images is not None and self.config.augmentation != "none":
            flat = batch.images.flatten(0, 2)
            each = Share(*(edge * batch.images.shape[2] for edge in (share.first, share.last, share.total)))
            batch = batch._replace(images=augment(flat, self.config.augmentation, each).view(batch.images.shape))
        return batch

    def _outputs(self, model: nn.Module, rows: Tensor, together: Tensor, share: Share) -> Tensor:
        batch = self.batch(rows, together, share)
        if self.config.precision != "bfloat16":
            return model(batch)  # type: ignore[no-any-return]
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            outputs: Tensor = model(batch)
        return outputs.float()

    def targets(self, rows: Tensor) -> Tensor:
        """What the outputs for the rows (G, B) should be, as the objective takes it."""
        target = self.tensors.target[rows]
        kind, network = self.dataset.target.kind, self.network
        if kind in ("class", "labels"):
            return target
        return (target - network.target_center.unsqueeze(1)) / network.target_scale.unsqueeze(1)

    def validate(self, network: nn.Module) -> Values:
        assert isinstance(network, RowNetwork)
        actual, predicted = self._choose_trust(network)
        return self._values(actual, predicted)

    def reference(self) -> float:
        target = self.dataset.target
        train = target.values[self.dataset.split.train[0]]
        actual = self._held_out_target()
        if target.kind == "class":
            share = (np.bincount(train, minlength=len(target.classes)) + 1.0) / (len(train) + len(target.classes))
        else:
            share = np.atleast_1d(train.mean(0))
        return self._loss(actual, np.tile(share, (len(actual), 1)))

    @property
    def judged(self) -> int:
        return sum(len(part) for part in self.dataset.split.validation)

    @torch.no_grad()
    def glance(self, network: nn.Module) -> None:
        network.eval()
        network(self.tensors.batch(self.validation_rows[:, :GLANCE_ROWS]))
        network.train()

    def places(self, rows: Tensor) -> list[int]:
        found = np.unique(rows.cpu().numpy())
        values = self.dataset.target.values
        if self.dataset.target.kind == "number":
            found = found[np.argsort(-np.abs(values[found] - np.median(values)), kind="stable")]
        return [int(place) for place in self.dataset.kept[found]]

    def held_out(self) -> tuple[Array, Array]:
        """(actual (n,) or (n, K), predicted (n, K)) of all validation rows, each by the groups that never saw it,
        in the order of the split's validation parts."""
        return self._held_out_target(), self._held_out_predictions(self.network, [None])[0]

    def _held_out_target(self) -> Array:
        return self.dataset.target.values[np.concatenate(self.dataset.split.validation)]

    def _held_out_predictions(self, network: RowNetwork, trusts: Sequence[Tensor | None]) -> list[Array]:
        predicted = predict_rows(network, self.tensors, self.validation_rows, trusts).double().cpu().numpy()
        parts = self.dataset.split.validation
        return [np.concatenate([each[group, : len(rows)] for group, rows in enumerate(parts)]) for each in predicted]

    def _choose_trust(self, network: RowNetwork) -> tuple[Array, Array]:
        """Set the trust in the deep members that gives the lowest validation loss; as `held_out`."""
        actual = self._held_out_target()
        candidates = trust_candidates(network)
        predictions = self._held_out_predictions(network, candidates)
        losses = [self._loss(actual, predicted) for predicted in predictions]
        best = int(np.argmin(losses))
        chosen = candidates[best]
        if chosen is not None:
            network.trust.copy_(chosen)
        return actual, predictions[best]

    def _loss(self, actual: Array, predicted: Array) -> float:
        """Log loss, or the mean squared error in units of the target's variance."""
        kind = self.dataset.target.kind
        if kind == "class":
            return metrics.log_loss(actual, predicted)
        if kind == "labels":
            return metrics.binary_log_loss(actual, predicted)
        spread = self.network.target_scale.double().mean(0).cpu().numpy()
        return float((((actual - (predicted if kind == "numbers" else predicted[:, 0])) / spread) ** 2).mean())

    def _values(self, actual: Array, predicted: Array) -> Values:
        values: Values = {"validation/loss": self._loss(actual, predicted)}
        target = self.dataset.target
        if target.kind == "class":
            values["validation/accuracy"] = float((predicted.argmax(1) == actual).mean())
            return values
        if target.kind == "labels":
            measured = metrics.multilabel(actual, predicted)
            return values | {f"validation/{name}": measured[name] for name in ("f1_micro", "exact_match")}
        if target.kind == "numbers":
            measured = metrics.regressions(target.original(actual), target.original(predicted), target.classes)
            return values | {f"validation/{name}": measured[name] for name in ("rmse", "mae", "r2")}
        measured = metrics.regression(actual * target.unit, predicted[:, 0] * target.unit)
        return values | {f"validation/{name}": value for name, value in measured.items()}


def _stack_padded(parts: tuple[Array, ...]) -> Tensor:
    """Rows of different length → (G, longest), short ones repeating their first position."""
    longest = max(len(part) for part in parts)
    return torch.from_numpy(np.stack([np.append(part, [part[0]] * (longest - len(part))) for part in parts])).long()
