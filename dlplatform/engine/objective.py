"""What is minimised, and how member outputs become predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlplatform.engine.dataset import Tensors
from dlplatform.engine.network import TabularNetwork

EVALUATION_ROWS = 1024


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


def mean_prediction(network: TabularNetwork, outputs: Tensor) -> Tensor:
    """(G, M, B, K) outputs → (G, B, K) class probabilities or (G, B, 1) targets, averaged over members."""
    if network.shape.outputs > 1:
        return outputs.float().softmax(-1).mean(1)
    return outputs.float().mean(1) * network.target_scale.view(-1, 1, 1) + network.target_center.view(
        -1, 1, 1
    )


@torch.no_grad()
def predict_rows(network: TabularNetwork, tensors: Tensors, rows: Tensor) -> Tensor:
    """Predictions (G, B, K) of each group for its own rows (G, B), in evaluation mode."""
    training = network.training
    network.eval()
    parts = [
        mean_prediction(network, network(tensors.batch(part)))
        for part in torch.split(rows, EVALUATION_ROWS, dim=1)
    ]
    network.train(training)
    return torch.cat(parts, dim=1)
