"""From a job to what is trained: the learner of its task, new or started from a base, and the plan of what trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dlplatform.engine import package
from dlplatform.engine.batch_size import fitting_batch_size
from dlplatform.engine.chat_template import BASE as BASE_TEMPLATE
from dlplatform.engine.chat_template import USUAL, ChatTemplate, ChatTemplateError
from dlplatform.engine.checkpoints import Loaded
from dlplatform.engine.dataset import Base, Dataset, prepare
from dlplatform.engine.environment import choose_device
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.fields import PRETRAINED
from dlplatform.engine.finetune_config import FIRST, LETTERBOX
from dlplatform.engine.finetuning import Plan, plan_of
from dlplatform.engine.image_arrays import DIRECTORY as IMAGES
from dlplatform.engine.image_arrays import source_in
from dlplatform.engine.job import BASE, CODE, JobSpec
from dlplatform.engine.language import LanguageNetwork, LanguageShape
from dlplatform.engine.language_learner import LanguageLearner, read_corpus
from dlplatform.engine.learner import Learner, RowLearner, new_network
from dlplatform.engine.network import NetworkShape, RowNetwork, build_network
from dlplatform.engine.preprocessing import read_as
from dlplatform.engine.processes import Processes
from dlplatform.engine.reporter import Reporter
from dlplatform.engine.table import Table, read_table
from dlplatform.engine.tokens import Tokenizer, read_tokenizer
from dlplatform.engine.transformers_config import IMAGE, TEXT, longest_text
from dlplatform.engine.transformers_images import pretrained
from dlplatform.engine.transformers_language import (
    language_network,
    named_tokens,
    read_language_tokenizer,
    shape_over,
)
from dlplatform.engine.transformers_models import TransformersBase, try_out
from dlplatform.engine.transformers_pixels import ImageProcessor
from dlplatform.engine.transformers_settings import SENSES
from dlplatform.engine.user_code import Classes, CodeNetwork, load_build, started_from

Started = package.Package | TransformersBase | None


def learner_of(job_dir: Path, spec: JobSpec, reporter: Reporter, loaded: Loaded | None) -> tuple[Learner, Plan]:
    """Read the data and build what learns from them. Raises EngineError."""
    try:
        return _learner_of(job_dir, spec, reporter, loaded)
    except PackageError as error:
        fix = "Choose another base, or send its files again."
        raise EngineError("bad_config", f"The base cannot be used. {error}", fix) from error


def _learner_of(job_dir: Path, spec: JobSpec, reporter: Reporter, loaded: Loaded | None) -> tuple[Learner, Plan]:
    base = package.read_base(job_dir / BASE, sandboxed=bool(spec.entry)) if spec.finetune else None
    _check_models(spec, base)
    if isinstance(base, package.Package) and base.description["task"] != spec.task:
        raise EngineError("bad_config", f"The base is a model for {base.description['task']}, not for {spec.task}.")
    table = read_table(spec.data, [*spec.targets, *spec.features])
    reporter.beat()
    tokenizer = str(loaded.state.get("tokenizer", "")) if loaded else ""
    make = _language_learner if spec.task == "language-model" else _row_learner
    return make(job_dir, spec, table, reporter, tokenizer, base)


def settle_batch_size(
    learner: Learner, plan: Plan, processes: Processes, reporter: Reporter, loaded: Loaded | None
) -> None:
    """Find the batch size that fits, where it was asked for; a checkpoint's is the one that was found before."""
    if learner.config.batch_size != "fit":
        return
    plan.apply(learner.network, plan.last_stage)  # what stays frozen needs less
    known = loaded.state.get("batch_size") if loaded else None
    learner.set_batch_size(int(known) if known else fitting_batch_size(learner, processes))
    reporter.writer.log("info", f"The batch size that fits is {learner.config.batch_size}.")


def _check_models(spec: JobSpec, base: Started) -> None:
    """A base has its networks; one of the transformers library leaves what it does not take to another."""
    for name, sense in SENSES.items() if base is not None else ():
        theirs = isinstance(base, TransformersBase) and sense != base.sense
        if getattr(spec.config, name) and not theirs:
            raise EngineError("bad_config", f"The base brings its own network, so {name} has no place.", "Remove it.")


def _row_learner(
    job_dir: Path, spec: JobSpec, table: Table, reporter: Reporter, tokenizer: str, base: Started
) -> tuple[Learner, Plan]:
    source = source_in(job_dir / "data" / IMAGES)
    spec = _reading_as(spec, base)
    known = Base(base.description, base.preprocessor) if isinstance(base, package.Package) else None
    fitted = read_as(spec.config, read_tokenizer(tokenizer)) if tokenizer else None
    if isinstance(base, TransformersBase) and base.sense == TEXT:
        fitted = base.text_tokenizer()
    images = _processor(base, spec)
    dataset = prepare(spec, table, reporter.writer.log, reporter.beat, source, fitted, known, images)
    if spec.entry:
        return _own_learner(job_dir, spec, dataset, base)
    if base is None or spec.finetune is None:
        return RowLearner(dataset, choose_device()), Plan()
    if isinstance(base, TransformersBase):
        network = _around(base, dataset, images)
    else:
        assert isinstance(base.network, RowNetwork)
        network = build_network(replace(base.network.shape, outputs=dataset.target.outputs))
    weights, fresh = package.fitted_weights(base, network, dataset.target.classes)
    network.load_state_dict({**network.state_dict(), **weights})
    plan = plan_of(network, spec.finetune, fresh, spec.config.seed)
    return RowLearner(dataset, choose_device(), network), plan


def _processor(base: Started, spec: JobSpec) -> ImageProcessor | None:
    """How a Hugging Face directory that looks at images gets them, as the settings say; None without one. Only what is asked
    for is read: a file that the letterbox can do with may say what no framing can. Raises PackageError."""
    if not isinstance(base, TransformersBase) or base.sense != IMAGE or spec.finetune is None:
        return None
    return base.image_processor(letterbox=spec.finetune.pixels == LETTERBOX)


def _own_learner(job_dir: Path, spec: JobSpec, dataset: Dataset, base: Started) -> tuple[RowLearner, Plan]:
    """Of the network that somebody's own code builds, new or with the weights of a version that the code built."""
    build = load_build(job_dir / CODE)

    def build_own(shape: NetworkShape) -> CodeNetwork:
        return CodeNetwork(shape, build, dataset.config.params)

    if base is None or spec.finetune is None:
        return RowLearner(dataset, choose_device(), build=build_own), Plan()
    if not isinstance(base, package.Package) or not isinstance(base.network, CodeNetwork):
        raise EngineError("bad_config", "The base was not built by this code.", "Fine-tune it without code.")
    if spec.finetune.mode == "lora":
        raise EngineError("bad_config", "mode lora is not for networks of one's own.", "Take mode full or head.")
    torch.manual_seed(spec.config.seed)  # what the base does not give begins as the code says
    network = build_own(replace(base.network.shape, outputs=dataset.target.outputs))
    old = base.description["output"].get("classes", []) if spec.finetune.format != FIRST else []  # it began anew then
    classes = Classes(old, dataset.target.classes)
    fresh = started_from(network, base.network, classes)
    plan = plan_of(network, spec.finetune, fresh, spec.config.seed)
    return RowLearner(dataset, choose_device(), network, build_own), plan


def _reading_as(spec: JobSpec, base: Started) -> JobSpec:
    """The job with the encoders that the base has. Raises EngineError ``bad_config`` without one."""
    config = spec.config
    if base is None:
        if PRETRAINED in (config.text_encoder, config.image_encoder):
            fix = "Fine-tune a version that holds a transformers model, or choose another encoder."
            raise EngineError("bad_config", "The run has no pretrained model to start from.", fix)
        return spec
    texts, images = _transformers_of(base)
    for sense, described in ((TEXT, texts), (IMAGE, images)):
        if (
            isinstance(base, TransformersBase)
            and described is None
            and getattr(config, f"{sense}_encoder") == PRETRAINED
        ):
            fix = f"Leave {sense}_encoder out, or choose another."
            raise EngineError("bad_config", f"The base has no pretrained network for the type {sense}.", fix)
    if texts is not None:
        config = replace(config, text_encoder="transformer" if texts.get("fresh") else PRETRAINED)
    if images is not None and not images.get("fresh"):
        config = replace(config, image_encoder=PRETRAINED)
    return replace(spec, config=config)


def _transformers_of(base: package.Package | TransformersBase) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What reads the texts of a base, and what looks at its images, if they are of the transformers library."""
    if isinstance(base, TransformersBase):
        described = base.transformer.to_dict()
        return (described, None) if base.sense == TEXT else (None, described)
    shape = base.description["architecture"]
    return shape.get("transformer"), shape.get("image_transformer")


def _around(base: TransformersBase, dataset: Dataset, images: ImageProcessor | None) -> RowNetwork:
    """A new network with the base's architecture in it. Raises EngineError for data that it cannot take."""
    return _around_texts(base, dataset) if images is None else _around_images(base, dataset, images)


def _around_texts(base: TransformersBase, dataset: Dataset) -> RowNetwork:
    sizes, most = dataset.preprocessor.sizes(), longest_text(base.transformer.config)
    if not sizes.sequences:
        raise EngineError("bad_data", "The base reads texts, and none of the features is one.", "Add a text column.")
    if sizes.sequence_length > most:
        raise EngineError("bad_config", f"The base reads {most} tokens at most.", f"Set text_length to {most} or less.")
    return new_network(dataset, base.transformer.to_dict())


def _around_images(base: TransformersBase, dataset: Dataset, processor: ImageProcessor) -> RowNetwork:
    """Its pixels are normalised as those were that the base was trained on."""
    sizes = dataset.preprocessor.sizes()
    if not sizes.images:
        raise EngineError("bad_data", "The base looks at images, and no feature is one.", "Add a column of images.")
    try:
        transformer = pretrained(base.transformer.config, sizes.image_channels, sizes.image_size)
    except PackageError as error:
        if sizes.image_size == processor.side:
            raise
        sentence = f"The base cannot look at images of {sizes.image_size} pixels a side. {error}"[:400]
        raise EngineError("bad_config", sentence, f"Leave image_size out: it is made for {processor.side}.") from error
    network = new_network(dataset, image_transformer=transformer.to_dict())
    network.encoder.images.mean.copy_(torch.tensor(processor.mean))
    network.encoder.images.deviation.copy_(torch.tensor(processor.deviation))
    return network


def _language_learner(
    job_dir: Path, spec: JobSpec, table: Table, reporter: Reporter, tokenizer: str, base: Started
) -> tuple[Learner, Plan]:
    if base is None or spec.finetune is None:
        return LanguageLearner(read_corpus(spec, table, reporter.beat, tokenizer), choose_device()), Plan()
    fitted, shape = _writing_as(base, spec)
    corpus = read_corpus(spec, table, reporter.beat, tokenizer, (fitted, shape))
    network = language_network(shape)
    weights, _ = package.fitted_weights(base, network, [])
    network.load_state_dict(weights)
    try_out(network)
    plan = plan_of(network, spec.finetune, (), spec.config.seed)
    return LanguageLearner(corpus, choose_device(), network), plan


def _writing_as(base: package.Package | TransformersBase, spec: JobSpec) -> tuple[Tokenizer, LanguageShape]:
    """The tokenizer and the shape of a base that writes. Raises EngineError for one that does not."""
    if isinstance(base, TransformersBase):
        if not base.writes:
            raise EngineError("bad_config", "The base does not write texts.", "Choose a decoder (GPT-like) as base.")
        length = spec.config.text_length if isinstance(spec.config.text_length, int) else None
        config = base.transformer.config
        tokenizer: Tokenizer = read_language_tokenizer(base.tokenizer, config)
        chat = _chat_of(spec, base.chat, named_tokens(base.named, tokenizer, config))
        return read_language_tokenizer(base.tokenizer, config, chat), shape_over(base, length)
    assert isinstance(base.network, LanguageNetwork)
    assert base.preprocessor.tokenizer is not None
    return _with_chat(base.preprocessor.tokenizer, spec), base.network.shape


def _with_chat(tokenizer: Tokenizer, spec: JobSpec) -> Tokenizer:
    """The tokenizer of one of our packages, its template as the settings say."""
    assert spec.finetune is not None
    if spec.finetune.chat_template == BASE_TEMPLATE:
        return tokenizer
    named = tokenizer.chat.tokens if tokenizer.chat else {"eos_token": tokenizer.inner.id_to_token(tokenizer.end) or ""}
    return tokenizer.with_chat(_chat_of(spec, None, named), tokenizer.ends)


def _chat_of(spec: JobSpec, own: str | None, named: Mapping[str, str]) -> ChatTemplate | None:
    """The template that the settings ask for: the base's ``own``, none, or the one they give. Raises EngineError."""
    assert spec.finetune is not None
    asked = spec.finetune.chat_template
    text = own if asked == BASE_TEMPLATE else None if asked == USUAL else asked
    try:
        return ChatTemplate(text, named) if text is not None else None
    except ChatTemplateError as error:
        sentence = f"The base's chat template cannot be used: {str(error).rstrip('.')}."
        raise EngineError(
            "bad_config", sentence, f"Set chat_template to {USUAL}, or give a template of your own."
        ) from error


def tokenizer_of(learner: Learner) -> Tokenizer | None:
    """The tokenizer that the learner reads texts with, if it has one."""
    if isinstance(learner, LanguageLearner):
        return learner.corpus.tokenizer
    assert isinstance(learner, RowLearner)
    return learner.dataset.preprocessor.tokenizer


def fresh_network(learner: Learner) -> nn.Module:
    """Another network of the same shape, not initialised."""
    shape: Any = learner.network.shape
    return learner.build(shape) if isinstance(learner, RowLearner) else language_network(shape)
