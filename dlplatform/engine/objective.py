"""What is minimised, and how member outputs become predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlplatform.engine.dataset import Tensors
from dlplatform.engine.network import RowNetwork

EVALUATION_ROWS = 1024
DEEP_EVALUATION_ROWS = 256
TRUST_STEPS = 5


class Objective(nn.Module):
    """Mean over members of each member's own loss: every member learns alone (TabM).

    ``kind``: that of the target, see `dlplatform.engine.target.Target`.
    """

    weights: Tensor | None

    def __init__(self, kind: str, weights: Tensor | None, label_smoothing: float) -> None:
        super().__init__()
        self.kind = kind
        self.weights = weights
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, target: Tensor, whole: Tensor | None = None) -> Tensor:
        """outputs (G, M, B, K); target (G, B) codes or standardised numbers, or (G, B, K) for several.

        ``whole``: the target of the whole batch when these rows are a part of it; then the result is the part's
        share of the whole batch's mean.
        """
        loss = self._mean(outputs, target)
        return loss if whole is None else loss * self._share(target, whole)

    def _mean(self, outputs: Tensor, target: Tensor) -> Tensor:
        if self.kind == "class":
            expanded = target.unsqueeze(1).expand(outputs.shape[:3])
            return nn.functional.cross_entropy(
                outputs.reshape(-1, outputs.shape[-1]),
                expanded.reshape(-1),
                weight=self.weights,
                label_smoothing=self.label_smoothing,
            )
        if self.kind == "number":
            return nn.functional.mse_loss(outputs.squeeze(-1), target.unsqueeze(1).expand(outputs.shape[:3]))
        expanded = target.unsqueeze(1).expand(outputs.shape)
        if self.kind == "numbers":
            return nn.functional.mse_loss(outputs, expanded)
        smooth = expanded * (1 - self.label_smoothing) + self.label_smoothing / 2
        return nn.functional.binary_cross_entropy_with_logits(outputs, smooth, pos_weight=self.weights)

    def _share(self, target: Tensor, whole: Tensor) -> Tensor | float:
        if self.kind == "class" and self.weights is not None:
            return self.weights[target].sum() / self.weights[whole].sum()
        return target.numel() / whole.numel()


def class_weights(setting: str, codes: np.ndarray[Any, Any], classes: int) -> np.ndarray[Any, Any] | None:
    """(K,) weights with mean 1 over the rows, or None for equal ones; see the setting ``class_weights``."""
    counts = np.maximum(np.bincount(codes, minlength=classes), 1).astype(np.float64)
    if setting == "none" or (setting == "auto" and counts.max() < 4 * counts.min()):
        return None
    weights = 1 / counts if setting == "balanced" else 1 / np.sqrt(counts)
    normalised: np.ndarray[Any, Any] = weights * counts.sum() / (weights * counts).sum()
    return normalised


def label_weights(setting: str, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """(K,) weights of a present label against an absent one; None for equal ones. ``labels``: (n, K)."""
    if setting != "balanced":
        return None
    present = np.maximum(labels.sum(0), 1.0)
    weights: np.ndarray[Any, Any] = np.maximum(len(labels) - present, 1.0) / present
    return weights


def mean_prediction(network: RowNetwork, outputs: Tensor, trust: Tensor | None = None) -> Tensor:
    """(G, M, B, K) outputs → (G, B, K) probabilities or targets, averaged over members.

    ``trust`` replaces the network's own trust in its deep members.
    """
    outputs = outputs.float()
    if network.shape.architecture == "tabm":
        linear = outputs[:, :1]
        outputs = torch.lerp(linear, outputs[:, 1:], network.trust if trust is None else trust)
    kind = network.shape.predicts
    if kind == "class":
        return _mean(outputs.softmax(-1), 1)
    if kind == "labels":
        return _mean(outputs.sigmoid(), 1)
    groups = network.shape.groups
    return _mean(outputs, 1) * network.target_scale.view(groups, 1, -1) + network.target_center.view(groups, 1, -1)


def _mean(values: Tensor, dim: int) -> Tensor:
    """The mean over a dimension; over a single one, without computing it."""
    return values.squeeze(dim) if values.shape[dim] == 1 else values.mean(dim)


def trust_candidates(network: RowNetwork) -> list[Tensor | None]:
    """Values to choose the trust in the deep members from; none to choose without a linear member."""
    if network.shape.architecture != "tabm":
        return [None]
    return [torch.tensor([step / TRUST_STEPS], device=network.trust.device) for step in range(TRUST_STEPS + 1)]


def evaluation_rows(network: RowNetwork) -> int:
    """Rows predicted at once."""
    inputs = network.shape.inputs
    return DEEP_EVALUATION_ROWS if inputs.images or inputs.sequences else EVALUATION_ROWS


@torch.no_grad()
def predict_rows(
    network: RowNetwork, tensors: Tensors, rows: Tensor, trusts: Sequence[Tensor | None] = (None,)
) -> Tensor:
    """Predictions (T, G, B, K) of each group for its own rows (G, B), in evaluation mode, for each trust."""
    training = network.training
    network.eval()
    parts = []
    for part in torch.split(rows, evaluation_rows(network), dim=1):
        outputs = network(tensors.batch(part))
        parts.append(torch.stack([mean_prediction(network, outputs, trust) for trust in trusts]))
    network.train(training)
    return torch.cat(parts, dim=2)
