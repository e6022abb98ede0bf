"""From a job to what is trained: the learner of its task, new or started from a base, and the plan of what trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dlplatform.engine import package
from dlplatform.engine.batch_size import fitting_batch_size
from dlplatform.engine.checkpoints import Loaded
from dlplatform.engine.dataset import Base, prepare
from dlplatform.engine.environment import choose_device
from dlplatform.engine.errors import EngineError
from dlplatform.engine.finetuning import Plan, plan_of
from dlplatform.engine.image_arrays import DIRECTORY as IMAGES
from dlplatform.engine.image_arrays import source_in
from dlplatform.engine.job import BASE, CODE, JobSpec
from dlplatform.engine.language import LanguageNetwork
from dlplatform.engine.language_learner import LanguageLearner, read_corpus
from dlplatform.engine.learner import Learner, RowLearner
from dlplatform.engine.network import NetworkShape, RowNetwork, build_network
from dlplatform.engine.processes import agreed
from dlplatform.engine.reporter import Reporter
from dlplatform.engine.table import Table, read_table
from dlplatform.engine.tokens import Tokenizer
from dlplatform.engine.user_code import CodeNetwork, load_build


def learner_of(job_dir: Path, spec: JobSpec, reporter: Reporter, loaded: Loaded | None) -> tuple[Learner, Plan]:
    """Read the data and build what learns from them. Raises EngineError, PackageError for the base."""
    base = package.load(job_dir / BASE) if spec.finetune else None
    if base is not None and base.description["task"] != spec.task:
        raise EngineError("bad_config", f"The base is a model for {base.description['task']}, not for {spec.task}.")
    table = read_table(spec.data, [*spec.targets, *spec.features])
    reporter.beat()
    tokenizer = str(loaded.state.get("tokenizer", "")) if loaded else ""
    make = _language_learner if spec.task == "language-model" else _row_learner
    learner, plan = make(job_dir, spec, table, reporter, tokenizer, base)
    if learner.config.batch_size == "fit":
        known = loaded.state.get("batch_size") if loaded else None
        learner.set_batch_size(int(known) if known else agreed(fitting_batch_size(learner)))
        reporter.writer.log("info", f"The batch size that fits is {learner.config.batch_size}.")
    return learner, plan


def _row_learner(
    job_dir: Path, spec: JobSpec, table: Table, reporter: Reporter, tokenizer: str, base: package.Package | None
) -> tuple[Learner, Plan]:
    source = source_in(job_dir / "data" / IMAGES)
    known = Base(base.description, base.preprocessor) if base else None
    dataset = prepare(spec, table, reporter.writer.log, reporter.beat, source, tokenizer, known)
    if spec.entry:
        build = load_build(job_dir / CODE)

        def build_own(shape: NetworkShape) -> RowNetwork:
            return CodeNetwork(shape, build, spec.config.params)

        return RowLearner(dataset, choose_device(), build=build_own), Plan()
    if base is None or spec.finetune is None:
        return RowLearner(dataset, choose_device()), Plan()
    assert isinstance(base.network, RowNetwork)
    weights, fresh = package.fitted_weights(base, dataset.target.classes)
    network = build_network(replace(base.network.shape, outputs=dataset.target.outputs))
    network.load_state_dict(weights)
    plan = plan_of(network, spec.finetune, fresh, spec.config.seed)
    return RowLearner(dataset, choose_device(), network), plan


def _language_learner(
    job_dir: Path, spec: JobSpec, table: Table, reporter: Reporter, tokenizer: str, base: package.Package | None
) -> tuple[Learner, Plan]:
    if base is None or spec.finetune is None:
        return LanguageLearner(read_corpus(spec, table, reporter.beat, tokenizer), choose_device()), Plan()
    assert isinstance(base.network, LanguageNetwork)
    assert base.preprocessor.tokenizer is not None
    corpus = read_corpus(spec, table, reporter.beat, tokenizer, (base.preprocessor.tokenizer, base.network.shape))
    network = LanguageNetwork(base.network.shape)
    network.load_state_dict(package.merged_tensors(base))
    plan = plan_of(network, spec.finetune, (), spec.config.seed)
    return LanguageLearner(corpus, choose_device(), network), plan


def tokenizer_of(learner: Learner) -> Tokenizer | None:
    """The tokenizer that the learner reads texts with, if it has one."""
    if isinstance(learner, LanguageLearner):
        return learner.corpus.tokenizer
    assert isinstance(learner, RowLearner)
    return learner.dataset.preprocessor.tokenizer


def fresh_network(learner: Learner) -> nn.Module:
    """Another network of the same shape, not initialised."""
    shape: Any = learner.network.shape
    return learner.build(shape) if isinstance(learner, RowLearner) else LanguageNetwork(shape)
