"""Fine-tuning a version of the registry: what fits it, and the run that does it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from datasets.models import DatasetVersion
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from dlplatform.engine.blocks import chosen
from dlplatform.engine.config import ConfigError
from dlplatform.engine.finetune_config import FinetuneConfig, parse_finetune
from dlplatform.engine.schema import reads
from registry import availability
from registry.models import ModelVersion, Ref
from registry.own_code import brings_code

from . import services
from .experiments import experiment_named
from .finetune_outlook import trainable_blocks
from .models import Experiment, Run


def finetune(
    *,
    actor: User,
    version: ModelVersion,
    dataset_version: DatasetVersion,
    settings: Mapping[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    target: str | Sequence[str] | None = None,
    experiment: Experiment | None = None,
    name: str = "",
    register_as: str = "",
    branch: str = "",
) -> Run:
    """Queue a run that starts from a version of the registry. Errors name the field and the fix.

    ``settings`` are those of `dlplatform.engine.finetune_config`. By default the result goes to the base's own model:
    on main if the base is its head, else on a branch of its own.
    """
    require(actor, "run.write", version.model.organization)
    availability.require_files(version)
    if brings_code(version):
        raise ValidationError(
            {"version": ValidationError("This model has code of its own; clone its run instead.", code="own_code")}
        )
    parsed = parsed_settings(settings or {})
    check_base(version, parsed)
    targets = _targets(version, target)
    missing = misfits(version, dataset_version, targets)
    if missing:
        raise ValidationError({"dataset_version": [ValidationError(each, code="does_not_fit") for each in missing]})
    organization = version.model.organization
    if experiment is None:
        experiment = experiment_named(
            actor=actor, organization=organization, name=f"Fine-tuning {version.model.name}"[:120]
        )
    return services.create_run(
        actor=actor,
        dataset_version=dataset_version,
        task=version.task,
        target=targets,
        features=None if version.task == services.LANGUAGE else [one["name"] for one in version.signature["inputs"]],
        config=config,
        experiment=experiment,
        name=name,
        register_as=register_as or version.model.name,
        branch=branch or _branch(version, register_as),
        base_version=version,
        finetune=parsed.to_dict(),
    )


def parsed_settings(settings: Mapping[str, Any]) -> FinetuneConfig:
    """Raises ValidationError with every problem."""
    try:
        return parse_finetune(dict(settings))
    except ConfigError as error:
        problems = {field: ValidationError(message, code=code) for field, code, message in error.problems}
        raise ValidationError(problems) from error


def check_base(version: ModelVersion, settings: FinetuneConfig) -> None:
    """Whether the version can be fine-tuned in this way. Raises Conflict, ValidationError."""
    if not is_trainable(version):
        raise Conflict(
            f"v{version.number} is not a package of this platform, so its training cannot go on here.",
            code="not_trainable",
        )
    if version.base_id is not None and settings.mode == "lora":
        raise Conflict(
            f"v{version.number} is an adapter itself; merge it into a full version first.", code="is_adapter"
        )
    if settings.blocks and not chosen(trainable_blocks(version), settings.blocks):
        known = ", ".join(list(trainable_blocks(version))[:20])
        raise ValidationError(
            {"blocks": ValidationError(f"None of these blocks exists. There are: {known}.", code="does_not_exist")}
        )


def is_trainable(version: ModelVersion) -> bool:
    """Whether the version is a package that the engine can go on training."""
    return "model.json" in version.tree and bool(version.signature.get("inputs"))


def _targets(version: ModelVersion, target: str | Sequence[str] | None) -> list[str]:
    if target:
        return [target] if isinstance(target, str) else list(target)
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


def misfits(version: ModelVersion, data: DatasetVersion, targets: Iterable[str]) -> list[str]:
    """What the data lack for the model, in words."""
    types = {column["name"]: column["type"] for column in data.columns}
    found = []
    # A language model can do without a column of prompts.
    for column in version.signature.get("inputs", []) if version.task != services.LANGUAGE else ():
        name, type_ = column["name"], column["type"]
        if name not in types or not reads(type_, types[name]):
            told = f"is of the type {types[name]}" if name in types else "is missing"
            found.append(f"The model reads “{name}” ({type_}), which {told} in these data.")
    return found + [f"The data have no column “{name}” to learn." for name in targets if name not in types]


def fitting_data(user: User, version: ModelVersion) -> list[DatasetVersion]:
    """Ready dataset versions that the model can learn from, the newest first."""
    rows: QuerySet[DatasetVersion] = (
        DatasetVersion.objects.visible_to(user)
        .filter(dataset__organization=version.model.organization_id, dataset__archived_at=None, state="ready")
        .select_related("dataset")
        .order_by("-created_at")[:200]
    )
    targets = _targets(version, None)
    return [data for data in rows if not misfits(version, data, targets)]
