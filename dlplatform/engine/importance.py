"""Permutation importance (Breiman, 2001; Fisher et al., 2019): the harm done by shuffling one column."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dlplatform.engine import metrics
from dlplatform.engine.dataset import Tensors
from dlplatform.engine.learner import RowLearner
from dlplatform.engine.objective import predict_rows
from dlplatform.engine.reporter import Reporter

# Rows times columns predicted at most.
BUDGET: Final = 400_000
DEEP_BUDGET: Final = 2_000


def permutation_importance(learner: RowLearner, reporter: Reporter) -> list[dict[str, Any]]:
    """For each feature column, most important first: ``increase`` of the validation loss (log loss, or
    RMSE in target units) when its values are shuffled among the validation rows."""
    dataset = learner.dataset
    codings = dataset.preprocessor.codings
    deep = any(coding.kind in ("sequences", "images") for coding in codings)
    budget = DEEP_BUDGET if deep else BUDGET
    limit = max(64 if deep else 256, budget // len(codings) // learner.validation_rows.shape[0])
    chosen = learner.validation_rows[:, :limit]
    tensors = learner.tensors.at(chosen.flatten())
    rows = torch.arange(chosen.numel(), device=chosen.device).view(chosen.shape)
    before = _loss(learner, tensors, rows)
    importance = []
    positions = {"numbers": 0, "categories": 0, "tokens": 0, "sequences": 0, "images": 0}
    for index, coding in enumerate(codings):
        reporter.beat()
        kind = coding.kind
        width = coding.width or 1
        columns = slice(positions[kind], positions[kind] + width)
        positions[kind] += width
        generator = torch.Generator().manual_seed(learner.config.seed + index)
        shuffled = _shuffle(tensors, kind, columns, generator)
        increase = _loss(learner, shuffled, rows) - before
        importance.append({"column": coding.column.name, "increase": increase})
    return sorted(importance, key=lambda entry: -entry["increase"])


def _shuffle(tensors: Tensors, kind: str, columns: slice, generator: torch.Generator) -> Tensors:
    values: Tensor = getattr(tensors, kind).clone()
    source = torch.randperm(len(values), generator=generator).to(values.device)
    values[:, columns] = values[source, columns]
    exchanged: dict[str, Any] = {kind: values}
    return replace(tensors, **exchanged)


def _loss(learner: RowLearner, tensors: Tensors, rows: Tensor) -> float:
    predicted = predict_rows(learner.network, tensors, rows)[0].double().cpu().numpy()
    target = learner.dataset.target
    actual = tensors.target[rows.flatten()].cpu().numpy()
    flat = predicted.reshape(len(actual), -1)
    if target.kind == "class":
        return metrics.log_loss(actual, flat)
    if target.kind == "labels":
        return metrics.binary_log_loss(actual, flat)
    units = np.array(target.units) if target.kind == "numbers" else target.unit
    wrong = (actual - (flat if target.kind == "numbers" else flat[:, 0])) * units
    return float(np.sqrt((wrong**2).mean()))
