"""What is minimised, and how member outputs become predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlplatform.engine.dataset import Tensors
from dlplatform.engine.network import TabularNetwork

EVALUATION_ROWS = 1024
TRUST_STEPS = 5


class Objective(nn.Module):
    """Mean over members of each member's own loss: every member learns alone (TabM)."""

    weights: Tensor | None

    def __init__(self, classes: int, weights: Tensor | None, label_smoothing: float) -> None:
        super().__init__()
        self.classes = classes
        self.weights = weights
        self.label_smoothing = label_smoothing

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """outputs (G, M, B, K); target (G, B) codes, or standardised numbers."""
        expanded = target.unsqueeze(1).expand(outputs.shape[:3])
        if not self.classes:
            return nn.functional.mse_loss(outputs.squeeze(-1), expanded)
        return nn.functional.cross_entropy(
            outputs.reshape(-1, outputs.shape[-1]),
            expanded.reshape(-1),
            weight=self.weights,
            label_smoothing=self.label_smoothing,
        )


def class_weights(setting: str, codes: np.ndarray[Any, Any], classes: int) -> np.ndarray[Any, Any] | None:
    """(K,) weights with mean 1 over the rows, or None for equal ones; see the setting ``class_weights``."""
    counts = np.maximum(np.bincount(codes, minlength=classes), 1).astype(np.float64)
    if setting == "none" or (setting == "auto" and counts.max() < 4 * counts.min()):
        return None
    weights = 1 / counts if setting == "balanced" else 1 / np.sqrt(counts)
    normalised: np.ndarray[Any, Any] = weights * counts.sum() / (weights * counts).sum()
    return normalised


def mean_prediction(network: TabularNetwork, outputs: Tensor, trust: Tensor | None = None) -> Tensor:
    """(G, M, B, K) outputs → (G, B, K) class probabilities or (G, B, 1) targets, averaged over members.

    ``trust`` replaces the network's own trust in its deep members.
    """
    outputs = outputs.float()
    if network.shape.architecture == "tabm":
        linear = outputs[:, :1]
        outputs = torch.lerp(linear, outputs[:, 1:], network.trust if trust is None else trust)
    if network.shape.outputs > 1:
        return outputs.softmax(-1).mean(1)
    scale, center = network.target_scale.view(-1, 1, 1), network.target_center.view(-1, 1, 1)
    return outputs.mean(1) * scale + center


def trust_candidates(network: TabularNetwork) -> list[Tensor | None]:
    """Values to choose the trust in the deep members from; none to choose without a linear member."""
    if network.shape.architecture != "tabm":
        return [None]
    return [torch.tensor([step / TRUST_STEPS], device=network.trust.device) for step in range(TRUST_STEPS + 1)]


@torch.no_grad()
def predict_rows(
    network: TabularNetwork, tensors: Tensors, rows: Tensor, trusts: Sequence[Tensor | None] = (None,)
) -> Tensor:
    """Predictions (T, G, B, K) of each group for its own rows (G, B), in evaluation mode, for each trust."""
    training = network.training
    network.eval()
    parts = []
    for part in torch.split(rows, EVALUATION_ROWS, dim=1):
        outputs = network(tensors.batch(part))
        parts.append(torch.stack([mean_prediction(network, outputs, trust) for trust in trusts]))
    network.train(training)
    return torch.cat(parts, dim=2)
