"""Learning after a cut, or instead of one: from the labels and from the answers of the network that came before.

Distillation as Hinton et al., 2015 ("Distilling the Knowledge in a Neural Network"): softened answers at temperature 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from dlplatform.engine.dataset import Dataset
from dlplatform.engine.dropout import Share
from dlplatform.engine.errors import EngineError
from dlplatform.engine.learner import RowLearner
from dlplatform.engine.network import NetworkShape, RowNetwork, build_network
from dlplatform.engine.objective import mean_prediction
from dlplatform.engine.optimization import AdamW, build_optimizer, learning_rate
from dlplatform.engine.optimizing.folding import fold, normalise
from dlplatform.engine.statistics import fit_statistics
from dlplatform.engine.vision import FOLDED, GROUP_CHANNELS, FoldedResNet

TEMPERATURE: Final = 2.0
SOFT: Final = 0.7  # of the loss is about the teacher's answers
RATE: Final = 0.5  # of the run's learning rate, for a network that has learnt already
LEAST: Final = 1e-6
LANES: Final = 4  # channels that a processor computes at once; no number of them has to be normalised together

Beat = Callable[[float], None]


def teach(
    student: RowNetwork,
    teacher: RowNetwork,
    dataset: Dataset,
    epochs: int,
    *,
    fresh: bool = False,
    after_step: Callable[[], None] = lambda: None,
    beat: Beat = lambda _: None,
) -> None:
    """Train in place on the training rows of each group, so many passes; held-out rows are never looked at.

    ``fresh``: it begins with nothing, at the full learning rate. Raises EngineError ``diverged``.
    """
    learner = RowLearner(dataset, torch.device("cpu"), student)
    teacher.eval()
    config = replace(learner.config, schedule="cosine", warmup=0.05)
    optimizer = build_optimizer(student, config)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # of dropout and augmentation
        plan = [rows for _ in range(epochs) for rows in _epoch(learner, generator)]
        for step, rows in enumerate(plan):
            rate = learning_rate(config, step, len(plan)) * (1.0 if fresh else RATE)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            _step(learner, teacher, rows, optimizer)
            after_step()
            beat((step + 1) / len(plan))
    student.eval()


def _epoch(learner: RowLearner, generator: torch.Generator) -> list[Tensor]:
    """Batches (G, B) of nearly one size: each group's training rows in a new order."""
    size = learner.config.batch_size if isinstance(learner.config.batch_size, int) else 64
    shortest = min(len(rows) for rows in learner.train_rows)
    orders = [rows[torch.randperm(len(rows), generator=generator)][:shortest] for rows in learner.train_rows]
    return list(torch.tensor_split(torch.stack(orders), math.ceil(shortest / size), dim=1))


def _step(learner: RowLearner, teacher: RowNetwork, rows: Tensor, optimizer: AdamW) -> None:
    batch = learner.batch(rows, rows, Share(0, rows.shape[1], rows.shape[1]))
    outputs = learner.network(batch)
    with torch.no_grad():
        wanted = mean_prediction(teacher, teacher(batch))
    loss = (1 - SOFT) * learner.objective(outputs, learner.targets(rows)) + SOFT * _distance(learner, outputs, wanted)
    if not bool(torch.isfinite(loss)):
        raise EngineError("diverged", "The network did not learn on: its loss became infinite.", "Cut less.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(learner.network.parameters(), 5.0)
    optimizer.update()


def _distance(learner: RowLearner, outputs: Tensor, wanted: Tensor) -> Tensor:
    """Of each member's outputs (G, M, B, K) from the teacher's answers (G, B, K)."""
    kind = learner.dataset.target.kind
    if kind == "class":
        soft = (wanted.clamp(min=LEAST).log() / TEMPERATURE).softmax(-1).unsqueeze(1).expand(outputs.shape)
        log = (outputs / TEMPERATURE).log_softmax(-1)
        return nn.functional.kl_div(log, soft, reduction="none").sum(-1).mean() * TEMPERATURE**2
    if kind == "labels":
        return nn.functional.binary_cross_entropy_with_logits(outputs, wanted.unsqueeze(1).expand(outputs.shape))
    network = learner.network
    form = (network.shape.groups, 1, -1)
    standard = (wanted - network.target_center.view(form)) / network.target_scale.view(form)
    return nn.functional.mse_loss(outputs, standard.unsqueeze(1).expand(outputs.shape))


def smaller(shape: NetworkShape, keep: float) -> NetworkShape:
    """The shape of a student: one plain perceptron for each group, narrower encoders; a ResNet without its normalisations.

    Raises EngineError.
    """
    linear = shape.architecture == "linear"
    width = max(8, round(keep * max(shape.layer_widths, default=64)))
    heads = shape.text_heads
    looks = FOLDED if shape.image_encoder == "resnet" else shape.image_encoder
    together = LANES if looks == FOLDED else GROUP_CHANNELS
    small = replace(
        shape,
        architecture="linear" if linear else "mlp",
        members=1,
        bins=0,
        embedding_size=0,
        widths=(),
        width=0 if linear else width,
        image_encoder=looks,
        image_stages=(),
        image_inner=(),
        image_width=max(8, round(keep * shape.image_width / together) * together) if shape.image_width else 0,
        text_width=max(1, round(keep * shape.text_width / heads)) * heads if heads else 0,
    )
    if small == shape:
        raise EngineError("nothing_to_cut", "The network is so small that a student would be no smaller.", "Keep less.")
    return small


def taught_student(
    network: RowNetwork, dataset: Dataset, keep: float, epochs: int, beat: Beat = lambda _: None
) -> RowNetwork:
    """A new, smaller network for the same inputs that has learnt to answer as this one. Raises EngineError."""
    student = _student_of(network, dataset, keep)
    found = getattr(getattr(student.encoder, "images", None), "body", None)
    body = found if isinstance(found, FoldedResNet) else None
    if body is not None:
        normalise(body)
    teach(student, network, dataset, epochs, fresh=True, beat=beat)
    if body is not None:
        fold(body)
    return student.eval()


def _student_of(network: RowNetwork, dataset: Dataset, keep: float) -> RowNetwork:
    """With statistics of the training rows, and weights from the seed."""
    shape = smaller(network.shape, keep)
    numbers = dataset.target.values if dataset.target.kind in ("number", "numbers") else None
    student = build_network(shape)
    student.initialise(fit_statistics(dataset.inputs, shape.inputs, dataset.split, 1, numbers), dataset.config.seed)
    return student
