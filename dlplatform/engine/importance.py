"""Permutation importance (Breiman, 2001; Fisher et al., 2019): the harm done by shuffling one column."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dlplatform.engine import metrics
from dlplatform.engine.dataset import Tensors
from dlplatform.engine.objective import predict_rows
from dlplatform.engine.training import Trainer

# Rows times columns predicted at most.
BUDGET: Final = 400_000


def permutation_importance(trainer: Trainer) -> list[dict[str, Any]]:
    """For each feature column, most important first: ``increase`` of the validation loss (log loss, or
    RMSE in target units) when its values are shuffled among the validation rows."""
    dataset = trainer.dataset
    codings = dataset.preprocessor.codings
    limit = max(256, BUDGET // len(codings) // trainer.validation_rows.shape[0])
    rows = trainer.validation_rows[:, :limit]
    before = _loss(trainer, trainer.tensors, rows)
    importance = []
    positions = {"numbers": 0, "categories": 0, "tokens": 0}
    for index, coding in enumerate(codings):
        trainer.reporter.beat()
        kind = "numbers" if coding.width else "categories" if coding.column.type == "category" else "tokens"
        width = coding.width or 1
        columns = slice(positions[kind], positions[kind] + width)
        positions[kind] += width
        generator = torch.Generator().manual_seed(trainer.config.seed + index)
        shuffled = _shuffle(trainer.tensors, kind, columns, rows, generator)
        increase = _loss(trainer, shuffled, rows) - before
        importance.append({"column": coding.column.name, "increase": increase})
    return sorted(importance, key=lambda entry: -entry["increase"])


def _shuffle(tensors: Tensors, kind: str, columns: slice, rows: Tensor, generator: torch.Generator) -> Tensors:
    values: Tensor = getattr(tensors, kind).clone()
    flat = rows.flatten()
    source = flat[torch.randperm(len(flat), generator=generator).to(flat.device)]
    values[flat, columns] = getattr(tensors, kind)[source, columns]
    return replace(tensors, **{kind: values})


def _loss(trainer: Trainer, tensors: Tensors, rows: Tensor) -> float:
    predicted = predict_rows(trainer.network, tensors, rows)[0].double().cpu().numpy()
    target = trainer.dataset.target
    actual = target.values[rows.cpu().numpy()].reshape(-1)
    flat = predicted.reshape(len(actual), -1)
    if target.classes:
        return metrics.log_loss(actual, flat)
    return float(np.sqrt(((actual - flat[:, 0]) ** 2).mean()) * target.unit)
