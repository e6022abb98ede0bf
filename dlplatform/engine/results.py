"""What a finished training hands over: measures, explanations, the description, the card and the package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlplatform.engine import package
from dlplatform.engine.adapters import CONFIG as ADAPTER_CONFIG
from dlplatform.engine.adapters import merged, peft_config, save_tensors
from dlplatform.engine.card import language_card, model_card
from dlplatform.engine.describe import describe_language_model, describe_model
from dlplatform.engine.durable import to_json
from dlplatform.engine.evaluation import evaluate
from dlplatform.engine.importance import permutation_importance
from dlplatform.engine.job import BASE, CODE, OUTPUT, JobSpec
from dlplatform.engine.language_learner import LanguageLearner
from dlplatform.engine.learner import RowLearner, Values
from dlplatform.engine.learning import fresh_network, tokenizer_of
from dlplatform.engine.tokens import FILE as TOKENIZER
from dlplatform.engine.training import Trainer
from dlplatform.engine.user_code import files_of


@dataclass(frozen=True)
class Results:
    """The parts of a package besides its tensors."""

    description: dict[str, Any]
    card: str
    evaluation: dict[str, Any]


def save_package(job_dir: Path, spec: JobSpec, trainer: Trainer) -> Values:
    """Measure, explain and save; returns the final metrics."""
    learner, reporter = trainer.learner, trainer.reporter
    reporter.enter("evaluating")
    if isinstance(learner, LanguageLearner):
        results = _language_results(spec, trainer, learner)
    else:
        assert isinstance(learner, RowLearner)
        results = _row_results(spec, trainer, learner)
    reporter.enter("packaging")
    tokenizer = tokenizer_of(learner)
    extra = {TOKENIZER: tokenizer.to_json().encode()} if tokenizer else {}
    tensors = merged(learner.network)
    if spec.entry:
        extra |= {f"{CODE}/{name}": content for name, content in files_of(job_dir / CODE).items()}
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # a module may share some
    if spec.finetune and spec.finetune.mode == "lora":
        classes = results.description["output"].get("classes", [])
        base, _ = package.fitted_weights(package.read_base(job_dir / BASE), fresh_network(learner), classes)
        tensors = save_tensors(learner.network, base)
        version = str(spec.lineage.get("base_version", ""))
        extra[ADAPTER_CONFIG] = to_json(peft_config(learner.network, spec.finetune, version, tensors))
    package.save(job_dir / OUTPUT, results.description, tensors, results.card, results.evaluation, extra)
    metrics: Values = results.evaluation["metrics"]
    return metrics


def _training(trainer: Trainer) -> dict[str, int]:
    state = trainer.state
    return {"steps": state.step, "epochs": state.epoch, "best_epoch": state.best_epoch}


def _row_results(spec: JobSpec, trainer: Trainer, learner: RowLearner) -> Results:
    actual, predicted = learner.held_out()
    trainer.reporter.enter("explaining")
    importance = permutation_importance(learner, trainer.reporter) if trainer.config.importance else []
    evaluation = evaluate(learner.dataset, actual, predicted, importance)
    shape, metrics = learner.network.shape, evaluation["metrics"]
    description = describe_model(spec, learner.dataset, shape, metrics, _training(trainer))
    return Results(description, model_card(description, evaluation), evaluation)


def _language_results(spec: JobSpec, trainer: Trainer, learner: LanguageLearner) -> Results:
    loss, reference = learner.held_out_loss(learner.network), learner.unigram_loss()
    metrics: Values = {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}
    evaluation = {
        "task": spec.task,
        "rows": learner.corpus.documents[1],
        "held_out": "whole documents",
        "metrics": metrics,
        "baseline": {
            "kind": "how often each token occurs",
            "metrics": {"loss": reference, "perplexity": math.exp(min(reference, 50.0))},
        },
        "importance": [],
        "samples": learner.samples(learner.network),
    }
    description = describe_language_model(spec, learner, metrics, _training(trainer))
    return Results(description, language_card(description, evaluation), evaluation)
