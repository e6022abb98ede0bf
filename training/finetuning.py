"""Fine-tuning a version of the registry: what fits it, and the run that does it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from datasets.models import DatasetVersion
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from dlplatform.engine.blocks import chosen
from dlplatform.engine.chat_template import BASE as BASE_TEMPLATE
from dlplatform.engine.chat_template import USUAL
from dlplatform.engine.config import ConfigError
from dlplatform.engine.fields import PRETRAINED
from dlplatform.engine.finetune_config import BASE_PIXELS, FinetuneConfig, parse_finetune, recorded_finetune
from dlplatform.engine.schema import reads
from dlplatform.engine.transformers_settings import SENSES
from registry import availability, transformers_bases
from registry.graphs import brings_graph
from registry.models import ModelVersion, Ref
from registry.own_code import brings_code, is_trusted
from registry.transformers_bases import LANGUAGE, is_transformers

from . import services
from .code import ARCHITECTURE, bundle_of
from .experiments import experiment_named
from .finetune_outlook import trainable_blocks
from .models import Experiment, Preflight, Run
from .preflights import request_preflight

SETTINGS = tuple(field.name for field in fields(FinetuneConfig))
OF_ADAPTERS = ("adapter", "rank", "alpha")
PART = "finetune"  # where the settings stand in the body of a request that holds more
FIRST = "first"  # how adapters were stored before peft's format


def finetune(
    *,
    actor: User,
    version: ModelVersion,
    dataset_version: DatasetVersion,
    settings: Mapping[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    task: str = "",
    target: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    experiment: Experiment | None = None,
    name: str = "",
    register_as: str = "",
    branch: str = "",
    cloned_from: Run | None = None,
) -> Run:
    """Queue a run that starts from a version of the registry. Errors name the field and the fix.

    ``settings`` are those of `dlplatform.engine.finetune_config`. ``task`` and ``features`` are for bases that have none
    of their own, Hugging Face directories: by default classification from all columns but the target. By default the result goes to the base's own model:
    on main if the base is its head, else on a branch of its own.
    """
    chosen = choices_of(actor, version, dataset_version, settings, config, task, target, features)
    return services.create_run(
        actor=actor, experiment=experiment or experiment_of(actor, version), name=name, register_as=register_as or version.model.name,
        branch=branch or _branch(version, register_as), cloned_from=cloned_from, **chosen,
    )  # fmt: skip


def experiment_of(actor: User, version: ModelVersion) -> Experiment:
    """The experiment that holds what starts from a model, unless another one is named."""
    name = f"Fine-tuning {version.model.name}"[:120]
    return experiment_named(actor=actor, organization=version.model.organization, name=name)


def request_finetune_preflight(
    *, actor: User, version: ModelVersion, dataset_version: DatasetVersion, settings: Mapping[str, Any] | None = None,
    config: dict[str, Any] | None = None, task: str = "", target: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None, cloned_from: Run | None = None,
) -> Preflight:  # fmt: skip
    """Take two steps of the run that `finetune` would queue with the same choices, whose errors are the same."""
    chosen = choices_of(actor, version, dataset_version, settings, config, task, target, features)
    return request_preflight(actor=actor, cloned_from=cloned_from, **chosen)


def choices_of(
    actor: User, version: ModelVersion, dataset_version: DatasetVersion, settings: Mapping[str, Any] | None,
    config: dict[str, Any] | None, task: str, target: str | Sequence[str] | None, features: Sequence[str] | None,
) -> dict[str, Any]:  # fmt: skip
    """What the run of a fine-tuning is, checked. Errors name the field and the fix."""
    require(actor, "run.write", version.model.organization)
    parsed = parsed_settings(settings or {})
    require_usable(version, parsed, task)
    task, targets = _task(version, task), _targets(version, target)
    _require_fit(version, dataset_version, task, targets, features)
    _require_template(version, task, parsed)
    require_effect(parsed, task, SETTINGS)
    parsed = with_pixels(version, parsed)
    return {
        "dataset_version": dataset_version,
        "task": task,
        "target": targets,
        "features": features if is_transformers(version) else _known_features(version),
        "config": _config(version, task, config),
        "base_version": version,
        "finetune": parsed.to_dict(),
        **({"code": bundle_of(actor, version), "entry": ARCHITECTURE} if brings_code(version) else {}),
    }


def require_usable(version: ModelVersion, settings: FinetuneConfig, task: str) -> None:
    """Raises Conflict or ValidationError for what no run can start from."""
    availability.require_files(version)
    if brings_graph(version):
        raise _invalid(
            "version", "It is a graph for onnxruntime; fine-tune the version that it was made from.", "is_graph"
        )
    check_base(version, settings, task)
    if brings_code(version):
        _require_own_tunable(version, settings)


def with_pixels(version: ModelVersion, settings: FinetuneConfig) -> FinetuneConfig:
    """The settings with what they say of pixels: nothing, unless the base is a Hugging Face directory that looks at images,
    for a package keeps its own. Raises ValidationError for what would do nothing."""
    if is_transformers(version) and transformers_bases.takes(version) == "image":
        return replace(settings, pixels=settings.pixels or BASE_PIXELS)
    if settings.pixels not in (None, BASE_PIXELS):
        fix = "Only a base from the Hub that looks at images is asked how they are framed; this one keeps its way. Leave it out."
        raise _invalid("pixels", fix, "not_for_base")
    return replace(settings, pixels=None)


def _require_template(version: ModelVersion, task: str, settings: FinetuneConfig) -> None:
    """Raises ValidationError where a base's own chat template was asked for and cannot be used."""
    own = task == LANGUAGE and settings.chat_template == BASE_TEMPLATE and is_transformers(version)
    if own and (problem := transformers_bases.template_problem(version)):
        fix = f"The base's own chat template cannot be used: {problem}. Set this to {USUAL}, or give a template of your own."
        raise _invalid("chat_template", fix, "invalid")


def require_effect(settings: FinetuneConfig, task: str, named: Iterable[str]) -> None:
    """Raises ValidationError for what of the named settings would do nothing. Defaults are shown with every run and may be
    sent back, and so may the usual template, which is shown of runs from before templates."""
    usual, problems = FinetuneConfig(), dict[str, ValidationError]()
    for name in OF_ADAPTERS if settings.mode != "lora" else ():
        if name in named and getattr(settings, name) != getattr(usual, name):
            fix = f"Only mode lora has adapters, and in mode {settings.mode} this does nothing; leave it out, or set mode to lora."
            problems[name] = ValidationError(fix, code="not_for_mode")
    if task != LANGUAGE and "chat_template" in named and settings.chat_template not in (BASE_TEMPLATE, USUAL):
        fix = "Only a language model writes chats; leave this out."
        problems["chat_template"] = ValidationError(fix, code="not_for_base")
    if problems:
        raise ValidationError(problems)


def _require_own_tunable(version: ModelVersion, settings: FinetuneConfig) -> None:
    """What goes beyond the ordinary for a network that is built by code of its own."""
    if version.lineage["code"].get("entry") != ARCHITECTURE or not is_trusted(version):
        raise _invalid("version", "This model has code of its own; clone its run instead.", "own_code")
    if settings.mode == "lora":
        fix = "Adapters are for networks of the platform and of transformers; take full or head for your own architecture."
        raise _invalid("mode", fix, "not_for_code")
    if settings.mode == "head" and not settings.blocks:
        known = ", ".join(list(trainable_blocks(version))[:20])
        raise _invalid(
            "blocks", f"Which blocks answer only the code knows; name those that train. There are: {known}.", "required"
        )


def _require_fit(
    version: ModelVersion,
    dataset_version: DatasetVersion,
    task: str,
    targets: Sequence[str],
    features: Sequence[str] | None,
) -> None:
    """Raises ValidationError where the data are not what the base reads."""
    if not is_transformers(version) and features is not None:
        raise _invalid("features", "The base reads the columns that it was trained on; leave this out.", "not_for_base")
    missing = misfits(version, dataset_version, targets, task)
    if is_transformers(version) and task != LANGUAGE:
        _check_taken(transformers_bases.takes(version), dataset_version, features)
    if missing:
        raise ValidationError({"dataset_version": [ValidationError(each, code="does_not_fit") for each in missing]})


def _config(version: ModelVersion, task: str, config: dict[str, Any] | None) -> dict[str, Any] | None:
    """A Hugging Face directory reads the texts of rows, or looks at their images. What else of the settings the base fixes
    is asked with all of them (`training.fixed_settings`)."""
    sense = transformers_bases.takes(version) if is_transformers(version) else ""
    own = [name for name, each in SENSES.items() if each == sense]
    if given := next((name for name in own if (config or {}).get(name)), None):
        raise _invalid(f"config.{given}", "The base brings its own network; remove this.", "not_for_base")
    for each in SENSES.values() if sense else ():
        if each != sense and (config or {}).get(f"{each}_encoder") == PRETRAINED:
            fix = f"The base has no pretrained network for columns of the type {each}; choose another encoder."
            raise _invalid(f"config.{each}_encoder", fix, "needs_base")
    if is_transformers(version) and task != LANGUAGE:
        return {f"{sense}_encoder": PRETRAINED, **(config or {})}
    return config


def parsed_settings(settings: Mapping[str, Any]) -> FinetuneConfig:
    """Those of a new fine-tuning. Raises ValidationError with every problem."""
    parsed = _parsed(settings)
    if parsed.format == FIRST:
        text = "New adapters are stored as the peft library does; leave this out, or clone the run that is to be as it was."
        raise _invalid("format", text, "not_for_new")
    return parsed


def _parsed(settings: Mapping[str, Any]) -> FinetuneConfig:
    try:
        return parse_finetune(dict(settings))
    except ConfigError as error:
        problems = {field: ValidationError(message, code=code) for field, code, message in error.problems}
        raise ValidationError(problems) from error


def settings_of_clone(run: Run, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fine-tuning settings of a run with changes. Raises Conflict, and ValidationError for `finetune.NAME`.

    What a run shows can be given again, and null of pixels says nothing. The first format is kept for a run that is trained again as it was.
    """
    if run.base_version is None or run.finetune is None:
        raise _invalid("finetune", "This run starts from no base; leave this out.", "not_for_run")
    recorded = recorded_finetune(run.finetune)
    given = {name: value for name, value in changes.items() if (name, value) != ("pixels", None)}
    try:
        wanted = _parsed({**recorded.to_dict(), **given})
        if wanted.format == FIRST and wanted != recorded:
            text = "This format is kept for training a run again as it was; give peft to change how it is fine-tuned."
            raise _invalid("format", text, "not_for_new")
        require_usable(run.base_version, wanted, run.task)
        # What the run recorded stays as it was, even where it did nothing.
        changed = [name for name in SETTINGS if getattr(wanted, name) != getattr(recorded, name)]
        require_effect(wanted, run.task, changed)
        wanted = wanted if wanted.pixels == recorded.pixels else with_pixels(run.base_version, wanted)
    except ValidationError as error:
        raise as_part(error) from error
    return wanted.to_dict()


def shown_settings(run: Run) -> dict[str, Any] | None:
    """The fine-tuning settings of a run as they were meant: null of pixels where its base was not asked for them, whatever
    runs recorded when all of them had the word."""
    if run.finetune is None or run.base_version is None:
        return recorded_finetune(run.finetune).to_dict() if run.finetune else None
    reads_texts = run.task == LANGUAGE or run.config.get("text_encoder") == PRETRAINED
    unasked = {"pixels": None} if reads_texts or not is_transformers(run.base_version) else {}
    return recorded_finetune(run.finetune).to_dict() | unasked


def as_part(error: ValidationError) -> ValidationError:
    """The errors of settings that are sent as one block: `rank` is `finetune.rank`."""
    named = {f"{PART}.{field}" if field in SETTINGS else field: each for field, each in error.error_dict.items()}
    return ValidationError(named)


def check_base(version: ModelVersion, settings: FinetuneConfig, task: str = "") -> None:
    """Whether the version can be fine-tuned in this way. Raises Conflict, ValidationError."""
    if is_transformers(version) and (reason := transformers_bases.why_not(version)):
        raise Conflict(f"No run can start from v{version.number}. {reason}", code="not_trainable")
    if not is_trainable(version):
        raise Conflict(
            f"v{version.number} is not a package of this platform, so its training cannot go on here.",
            code="not_trainable",
        )
    if version.base_id is not None and settings.mode == "lora":
        raise Conflict(
            f"v{version.number} is an adapter itself; merge it into a full version first.", code="is_adapter"
        )
    if settings.blocks and not chosen(trainable_blocks(version, task), settings.blocks):
        known = ", ".join(list(trainable_blocks(version, task))[:20])
        raise ValidationError(
            {"blocks": ValidationError(f"None of these blocks exists. There are: {known}.", code="does_not_exist")}
        )


def is_trainable(version: ModelVersion) -> bool:
    """Whether the version is a package that the engine can go on training, or a Hugging Face directory to start from."""
    if is_transformers(version):
        return transformers_bases.why_not(version) is None
    return "model.json" in version.tree and bool(version.signature.get("inputs"))


def _task(version: ModelVersion, task: str) -> str:
    """The base's own; a model of the transformers library has none yet."""
    if is_transformers(version):
        known = transformers_bases.tasks_of(version)
        if task not in ("", *known):
            raise _invalid("task", f"This base is for {', '.join(known)}.", "unknown_choice")
        return task or known[0]
    if task not in ("", version.task):
        raise _invalid("task", f"The base is a model for {version.task}; leave this out.", "not_for_base")
    return version.task


_TAKES = {"text": "reads texts", "image": "looks at images"}


def _check_taken(sense: str, data: DatasetVersion, features: Sequence[str] | None) -> None:
    """Of the columns that are to be learned from at least one is what the base takes."""
    fitting = {column["name"] for column in data.columns if column["type"] == sense}
    if features is not None and fitting and not fitting & set(features):
        known = ", ".join(sorted(fitting)[:10])
        raise _invalid("features", f"The base {_TAKES[sense]}; name one of: {known}.", f"no_{sense}")


def _known_features(version: ModelVersion) -> list[str] | None:
    if version.task == LANGUAGE:
        return None
    return [one["name"] for one in version.signature["inputs"]]


def _invalid(field: str, message: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(message, code=code)})


def _targets(version: ModelVersion, target: str | Sequence[str] | None) -> list[str]:
    if target:
        return [target] if isinstance(target, str) else list(target)
    if is_transformers(version):
        raise _invalid("target", "Name the column to predict: this base has not learned any yet.", "required")
    run = Run.objects.filter(output_version=version).first()
    return run.target_names if run else [str(version.signature.get("target", ""))]


def _branch(version: ModelVersion, register_as: str) -> str:
    """The branch whose head the base is, or a new one: a fine-tune of an older version must not move main to its side."""
    if register_as and register_as != version.model.name:
        return "main"
    heads = version.refs.filter(kind=Ref.Kind.BRANCH).values_list("name", flat=True)
    if heads:
        return "main" if "main" in heads else str(heads[0])
    taken = set(version.model.refs.filter(kind=Ref.Kind.BRANCH).values_list("name", flat=True))
    return next(
        name
        for name in (f"from-v{version.number}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 10_000))))
        if name not in taken
    )


def misfits(version: ModelVersion, data: DatasetVersion, targets: Iterable[str], task: str = "") -> list[str]:
    """What the data lack for the model, in words; ``task`` is what a Hugging Face directory is to be taught."""
    if is_transformers(version):
        return _untaken(version, data, targets, task) + _absent(data, targets)
    types = {column["name"]: column["type"] for column in data.columns}
    found = []
    # A language model can do without a column of prompts.
    for column in version.signature.get("inputs", []) if version.task != LANGUAGE else ():
        name, type_ = column["name"], column["type"]
        if name not in types or not reads(type_, types[name]):
            told = f"is of the type {types[name]}" if name in types else "is missing"
            found.append(f"The model reads “{name}” ({type_}), which {told} in these data.")
    return found + _absent(data, targets)


def _untaken(version: ModelVersion, data: DatasetVersion, targets: Iterable[str], task: str) -> list[str]:
    """That no column is what a Hugging Face directory takes; without a task, whether any that it may be taught would do."""
    sense = transformers_bases.takes(version)
    columns = {column["name"]: column["type"] for column in data.columns}
    if LANGUAGE in transformers_bases.tasks_of(version) and task in ("", LANGUAGE):
        written = {"text", "category"} & set(columns.values())  # texts that repeat are counted as categories
        return [] if written else ["The model learns to write texts, and these data have no column of them."]
    if any(type_ == sense and name not in targets for name, type_ in columns.items()):
        return []
    return [f"The model {_TAKES[sense]}, and these data have no column of them besides the target."]


def _absent(data: DatasetVersion, targets: Iterable[str]) -> list[str]:
    names = {column["name"] for column in data.columns}
    return [f"The data have no column “{name}” to learn." for name in targets if name not in names]


def fitting_data(user: User, version: ModelVersion) -> list[DatasetVersion]:
    """Ready dataset versions that the model can learn from, the newest first."""
    rows: QuerySet[DatasetVersion] = (
        DatasetVersion.objects.visible_to(user)
        .filter(dataset__organization=version.model.organization_id, dataset__archived_at=None, state="ready")
        .select_related("dataset")
        .order_by("-created_at")[:200]
    )
    targets = [] if is_transformers(version) else _targets(version, None)
    return [data for data in rows if not misfits(version, data, targets)]
