"""The contents of ``model.json`` for a trained model."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlplatform.engine.dataset import Dataset
from dlplatform.engine.description import FORMAT
from dlplatform.engine.environment import versions
from dlplatform.engine.evaluation import json_value, json_values
from dlplatform.engine.job import JobSpec
from dlplatform.engine.language_learner import LanguageLearner
from dlplatform.engine.learner import Learner, RowLearner
from dlplatform.engine.network import NetworkShape
from dlplatform.engine.preprocessing import ColumnCoding
from dlplatform.engine.schema import InputColumn
from dlplatform.engine.table import missing

SHOWN_CATEGORIES = 100


def describe_model(
    spec: JobSpec,
    dataset: Dataset,
    shape: NetworkShape,
    metrics: dict[str, float | None],
    training: dict[str, Any],
) -> dict[str, Any]:
    """Everything but the weights."""
    return {
        "format": FORMAT,
        "task": spec.task,
        "target": spec.target_name,
        "targets": [column.name for column in spec.targets],
        "architecture": shape.to_dict(),
        "inputs": [_describe_input(dataset, coding).to_dict() for coding in dataset.preprocessor.codings],
        "output": _describe_output(dataset),
        "preprocessing": dataset.preprocessor.to_dict(),
        "config": dataset.config.to_dict(),
        "rows": row_counts(dataset),
        "training": training,
        "metrics": metrics,
        "versions": versions(),
        "lineage": {"run": spec.run, **spec.lineage},
        **({"finetune": spec.finetune.to_dict()} if spec.finetune else {}),
    }


def describe_language_model(
    spec: JobSpec, learner: LanguageLearner, metrics: dict[str, float | None], training: dict[str, Any]
) -> dict[str, Any]:
    """Everything but the weights and the tokenizer."""
    prompt = InputColumn(
        "prompt", "text", nullable=True, example=learner.corpus.tokenizer.decode(learner.corpus.prompts[0])
    )
    return {
        "format": FORMAT,
        "task": spec.task,
        "target": spec.target_name,
        "targets": [column.name for column in spec.targets],
        "architecture": learner.network.shape.to_dict(),
        "inputs": [prompt.to_dict()],
        **_describe_chat(learner),
        "output": {"kind": "text"},
        "preprocessing": [],
        "config": learner.config.to_dict(),
        "rows": counts_of(learner),
        "training": training,
        "metrics": metrics,
        "versions": versions(),
        "lineage": {"run": spec.run, **spec.lineage},
        **({"finetune": spec.finetune.to_dict()} if spec.finetune else {}),
    }


def _describe_chat(learner: LanguageLearner) -> dict[str, Any]:
    """How the model takes messages, of one that was taught chats or has a template for them; nothing of others."""
    chat = learner.corpus.tokenizer.chat
    if chat is None and not learner.corpus.chats:
        return {}
    return {"chat": chat.to_dict() if chat is not None else {"template": None}}


def counts_of(learner: Learner) -> dict[str, int]:
    """Rows or documents that are trained and validated on."""
    if isinstance(learner, LanguageLearner):
        return dict(zip(("train", "validation"), learner.corpus.documents, strict=True))
    assert isinstance(learner, RowLearner)
    return row_counts(learner.dataset)


def row_counts(dataset: Dataset) -> dict[str, int]:
    """Rows with a target: those trained on (by at least one group) and those validated on."""
    trained = dataset.table.rows if dataset.split.groups > 1 else len(dataset.split.train[0])
    return {"train": trained, "validation": sum(len(part) for part in dataset.split.validation)}


def _describe_output(dataset: Dataset) -> dict[str, Any]:
    target = dataset.target
    if target.kind == "number":
        return {"kind": "number", "offset": target.offset, "unit": target.unit}
    named = {"kind": target.kind, "classes": list(target.classes), "values": list(target.natural)}
    if target.kind == "numbers":
        return {**named, "offset": list(target.offsets), "unit": list(target.units)}
    return named


def _describe_input(dataset: Dataset, coding: ColumnCoding) -> InputColumn:
    column = coding.column
    values = dataset.table.columns[column.name]
    present = np.flatnonzero(~missing(values))
    example = json_values(column.type, dataset.table.take(present[:1]).columns[column.name]) or [None]
    low = middle = high = None
    if coding.width and len(present):
        numbers: np.ndarray[Any, Any] = np.asarray(values)[present]
        # The lower median is a value that occurs, so that an integer column gets an integer.
        middle_value = np.partition(numbers, (len(numbers) - 1) // 2)[(len(numbers) - 1) // 2]
        low, middle, high = (
            json_value(column.type, float(number)) for number in (numbers.min(), middle_value, numbers.max())
        )
    return InputColumn(
        name=column.name,
        type=column.type,
        nullable=coding.nullable,
        categories=coding.vocabulary[:SHOWN_CATEGORIES],
        minimum=low,
        maximum=high,
        median=middle,
        example=example[0],
    )
