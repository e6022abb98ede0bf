"""What changes in runs. The only writers besides the worker that holds a run."""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts import audit
from dlplatform.accounts.access import require, require_code
from dlplatform.accounts.models import Organization, User
from dlplatform.api import Conflict
from dlplatform.engine.config import ConfigError, idle_settings, parse_config
from dlplatform.engine.fields import CODE, PRETRAINED
from dlplatform.engine.transformers_settings import SENSES
from registry.models import ModelVersion

from . import states
from .code import ARCHITECTURE, entry_of, object_store
from .experiments import experiment_for
from .models import CodeBundle, Experiment, Run, Trial
from .records import append_event
from .requirements import check_requirements

LANGUAGE = "language-model"
LEAST_ROWS = 10
MOST_CLASSES = 1000
LONGEST_SILENCE = 86_400.0  # seconds
TARGET_TYPES = {
    "classification": {"category", "boolean", "integer", "text", "number"},
    "regression": {"number", "integer"},
    "language-model": {"text", "category"},
    "multilabel": {"text", "category", "boolean", "integer", "number"},
}


class Origin(TypedDict, total=False):
    """What a run comes of. ``finetune``: how it starts from its base (see `training.finetuning`). A run of a sweep belongs
    to its ``trial`` and pauses after ``stop_after_epoch`` epochs. ``replays``: the version that it trains once more."""

    branch: str
    finetune: dict[str, Any] | None
    cloned_from: Run | None
    trial: Trial | None
    stop_after_epoch: int | None
    replays: ModelVersion | None


@transaction.atomic
def create_run(
    *,
    actor: User,
    dataset_version: DatasetVersion,
    task: str,
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    experiment: Experiment | None = None,
    name: str = "",
    register_as: str = "",
    base_version: ModelVersion | None = None,
    code: CodeBundle | None = None,
    entry: str = "",
    **origin: Unpack[Origin],
) -> Run:
    """Check everything that can be checked, then queue the run. Errors name the field and the fix.

    ``target`` is one column, or several for regression and multilabel. With ``base_version`` the run starts from that
    model. With ``code`` it runs in a sandbox, and starts with the file ``entry``.
    """
    organization = dataset_version.dataset.organization
    experiment = experiment_for(actor=actor, organization=organization, experiment=experiment)
    chosen = origin.get("replays") is None and origin.get("trial") is None
    learnt = _learnt(
        actor, dataset_version, task, targets_of(target), features, config or {}, code, entry, base_version, chosen
    )
    run = Run.objects.create(
        experiment=experiment,
        created_by=actor,
        name=name or _next_name(dataset_version, experiment),
        register_as=register_as or dataset_version.dataset.name,
        **learnt,
        **origin,
    )
    _begin(run, actor, organization)
    return run


def _learnt(
    actor: User, version: DatasetVersion, task: str, targets: list[str], features: Sequence[str] | None,
    config: dict[str, Any], code: CodeBundle | None, entry: str, base: ModelVersion | None, chosen: bool,
) -> dict[str, Any]:  # fmt: skip
    """The fields of a run that say what it learns and from what, checked. ``chosen``: somebody has just set them."""
    if code is not None:
        entry = check_code(actor, version.dataset.organization, code, entry, task)
    settings = check(version, task, targets, features, config, entry, base, chosen=chosen)
    features = features or features_by_default(version, targets, task)
    return {
        "dataset_version": version,
        "task": task,
        "target": ", ".join(targets),
        "targets": targets if len(targets) > 1 else None,
        "features": list(features) if features else None,
        "config": settings,
        "base_version": base,
        "code": code,
        "entry": entry,
    }


def targets_of(target: str | Sequence[str]) -> list[str]:
    """The columns to predict, each once."""
    return [target] if isinstance(target, str) else list(dict.fromkeys(target))


def _begin(run: Run, actor: User, organization: Organization) -> None:
    """Whatever follows from a new run: its first event, the audit log, the queue, the pages."""
    append_event(run, "state", state=run.state)
    audit.record(actor, "run.create", run, organization, name=run.name)
    jobs.enqueue(run)
    states.announce(run)


def check_code(actor: User, organization: Organization, code: CodeBundle, entry: str, task: str) -> str:
    """The file that the run starts with. PermissionDenied and ValidationError otherwise."""
    require_code(actor, organization)
    if code.organization_id != organization.pk:
        raise _invalid("code", "The code and the data belong to different organizations.", "invalid")
    entry = entry_of(code, entry)
    if entry == ARCHITECTURE and task == LANGUAGE:
        raise _invalid(
            "code", "An architecture of one's own predicts from rows; use a script for texts.", "not_for_task"
        )
    check_requirements(code, object_store(code.organization))
    return entry


def features_by_default(version: DatasetVersion, targets: Sequence[str], task: str = "") -> list[str] | None:
    """None for every column but the targets; else the list that leaves out names of image files.

    Such a name often says what the picture shows, as in `cat/17.jpg`, and is not there when the model is used.
    """
    if task == LANGUAGE:
        return None  # the engine takes a column named “prompt” if there is one
    named = {name for name, profile in version.profile.items() if profile.get("names")}
    if not named - set(targets):
        return None
    return [column["name"] for column in version.columns if column["name"] not in named.union(targets)]


def _next_name(version: DatasetVersion, experiment: Experiment) -> str:
    return f"{version.dataset.name[:100]}-{experiment.runs.count() + 1}"


def check(
    version: DatasetVersion,
    task: str,
    targets: Sequence[str],
    features: Sequence[str] | None,
    config: dict[str, Any],
    entry: str = "",
    base: ModelVersion | None = None,
    *,
    chosen: bool = True,
) -> dict[str, Any]:
    """The complete configuration of a run that can start; ValidationError with every problem otherwise.

    ``entry`` is the file that a run with code starts with; its params are for the code to know. ``base``: the version
    that it starts from. ``chosen``: the settings are chosen now; those of a replay or of a sweep under way were before, and may
    have some that do nothing.
    """
    if version.state != DatasetVersion.State.READY:
        raise _invalid("dataset_version", f"This version is {version.state}; choose one that is ready.", "not_ready")
    problems: dict[str, ValidationError] = {}
    columns = {column["name"]: column["type"] for column in version.columns}
    if task not in TARGET_TYPES:
        problems["task"] = ValidationError(f"Choose one of: {', '.join(TARGET_TYPES)}.", code="unknown_choice")
    elif fault := _targets_fault(version, task, targets, columns):
        problems["target"] = fault
    if fault := _feature_fault(task, features, targets, columns):
        problems["features"] = fault
    if (version.rows or 0) < LEAST_ROWS:
        problems["dataset_version"] = ValidationError(
            f"{version.rows} rows are too few to learn from; at least {LEAST_ROWS} are needed.", code="too_few_rows"
        )
    parsed: dict[str, Any] = {}
    config, fault = _with_architecture(config, entry)
    if fault:
        problems["config.architecture"] = fault
    try:
        parsed = parse_config(config, task).to_dict() if task in TARGET_TYPES else {}
    except ConfigError as error:
        problems |= {f"config.{field}": ValidationError(message, code=code) for field, code, message in error.problems}
    for field, code, message in idle_settings(config, task) if chosen and not entry else ():
        problems[f"config.{field}"] = ValidationError(message, code=code)
    for name in ("text_encoder", "image_encoder") if base is None else ():
        if parsed.get(name) == PRETRAINED:
            fix = "There is no pretrained model to start from: fine-tune a version that holds one instead."
            problems[f"config.{name}"] = ValidationError(fix, code="needs_base")
    problems |= _model_faults(config, task, _read(features, targets, columns))
    if problems:
        raise ValidationError(problems)
    return parsed


def _read(features: Sequence[str] | None, targets: Sequence[str], columns: dict[str, str]) -> set[str]:
    """The types of the columns that are learned from."""
    names = features or [name for name in columns if name not in targets]
    return {columns[name] for name in names if name in columns}


def _model_faults(config: dict[str, Any], task: str, types: set[str]) -> dict[str, ValidationError]:
    """Architectures of the transformers library without a column that they could read."""
    wanted = {name: sense for name, sense in SENSES.items() if config.get(name) and task != LANGUAGE}
    return {
        f"config.{name}": ValidationError(
            f"{name} reads columns of the type {sense}, and none of the features is one; add one or remove it.",
            code="unread",
        )
        for name, sense in wanted.items()
        if sense not in types
    }


def _with_architecture(config: dict[str, Any], entry: str) -> tuple[dict[str, Any], ValidationError | None]:
    """The settings of a run with code; a script decides for itself how long it is silent."""
    if not entry:
        absent = ValidationError("Give the code to run as `code`, or choose another architecture.", code="code_missing")
        return config, absent if config.get("architecture") == CODE else None
    if config.get("architecture", CODE) not in (CODE, "auto"):
        return config, ValidationError("The code is the architecture; leave this setting out.", code="not_for_code")
    patient = {} if entry == ARCHITECTURE else {"stall_timeout": LONGEST_SILENCE}
    return {**patient, **config, "architecture": CODE}, None


def _targets_fault(
    version: DatasetVersion, task: str, targets: Sequence[str], columns: dict[str, str]
) -> ValidationError | None:
    if not targets:
        return ValidationError("Name the column to predict.", code="required")
    if task == "classification" and len(targets) > 1:
        return ValidationError("Classification predicts one column; choose multilabel for several.", code="too_many")
    for target in targets:
        if target not in columns:
            known = ", ".join(list(columns)[:30])
            return ValidationError(
                f"The data has no column “{target[:80]}”. Its columns: {known}.", code="does_not_exist"
            )
        if fault := _target_fault(version, task, target, columns[target], alone=len(targets) == 1):
            return fault
    return None


def _target_fault(version: DatasetVersion, task: str, target: str, type_: str, alone: bool) -> ValidationError | None:
    if task == "multilabel" and not alone and type_ not in ("boolean", "integer", "number"):
        return ValidationError(
            f"“{target}” is a {type_} column; several labels are columns of yes and no.", code="wrong_type"
        )
    if type_ not in TARGET_TYPES[task]:
        other = "classification" if task == "regression" else "another column as target"
        return ValidationError(
            f"“{target}” is a {type_} column, which {task} cannot predict; choose {other}.", code="wrong_type"
        )
    profile = version.profile.get(target, {})
    distinct = profile.get("distinct") or 0
    if profile.get("count") is not None and profile["count"] == profile.get("missing"):
        return ValidationError(f"Every value of “{target}” is missing; choose another column.", code="all_missing")
    if task == "classification" and distinct > MOST_CLASSES:
        fix = "use regression" if type_ in ("number", "integer") else "choose a column with fewer values"
        return ValidationError(f"“{target}” has {distinct:,} different values; {fix}.", code="too_many_classes")
    if task == LANGUAGE:
        return None
    if distinct == 1 and (alone or task != "multilabel"):
        return ValidationError(
            f"“{target}” has the same value in every row; choose another column.", code="single_class"
        )
    return None


def _feature_fault(
    task: str, features: Sequence[str] | None, targets: Sequence[str], columns: dict[str, str]
) -> ValidationError | None:
    if not features:
        return None
    if task == LANGUAGE and (len(features) > 1 or columns.get(features[0]) not in (None, "text", "category")):
        return ValidationError("A language model reads one column of prompts at most.", code="too_many")
    unknown = [name for name in features if name not in columns]
    if unknown:
        return ValidationError(f"The data has no column “{unknown[0][:80]}”; remove it.", code="does_not_exist")
    if len(set(features)) < len(features):
        twice = next(name for name in features if list(features).count(name) > 1)
        return ValidationError(f"“{twice[:80]}” is named twice; name it once.", code="unique")
    if set(targets) & set(features):
        return ValidationError(
            "The target cannot be an input too; remove it from the features.", code="target_in_features"
        )
    return None


def _invalid(field: str, message: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(message, code=code)})


@transaction.atomic
def cancel_run(*, actor: User, run: Run) -> Run:
    """Cancel: at once while queued; within seconds, after a checkpoint, while it trains."""
    require(actor, "run.write", run)
    run = Run.objects.select_for_update(of=("self",)).get(pk=run.pk)
    if run.ended:
        raise Conflict(f"This run is {run.state} already.", code="ended")
    if run.cancel_requested_at is None:
        Run.objects.filter(pk=run.pk).update(cancel_requested_at=Now())
        audit.record(actor, "run.cancel", run, run.experiment.organization)
    if run.state not in Run.HELD:
        states.end_unheld(run, Run.State.CANCELLED)
    run.refresh_from_db()
    return run


@transaction.atomic
def pause_run(*, actor: User, run: Run) -> Run:
    """Set a run aside: at once while queued; within seconds, after a checkpoint, while it trains. It can be resumed."""
    require(actor, "run.write", run)
    run = Run.objects.select_for_update(of=("self",)).get(pk=run.pk)
    if run.ended or run.state == Run.State.PAUSED:
        raise Conflict(f"This run is {run.state} already.", code="not_running")
    if run.cancel_requested_at:
        raise Conflict("This run is being cancelled; resume it afterwards.", code="being_cancelled")
    if not states.pause_queued(run) and run.pause_requested_at is None:
        Run.objects.filter(pk=run.pk).update(pause_requested_at=Now())
    audit.record(actor, "run.pause", run, run.experiment.organization)
    run.refresh_from_db()
    return run


RESUMABLE = (Run.State.PAUSED, Run.State.FAILED, Run.State.CANCELLED)


@transaction.atomic
def resume_run(*, actor: User, run: Run, stop_after_epoch: int | None = None) -> Run:
    """Queue a paused, failed or cancelled run again; it goes on from its last checkpoint, and returns to the lists.

    With ``stop_after_epoch`` it pauses again after so many epochs; without, it trains to the end.
    """
    require(actor, "run.write", run)
    if run.code_id is not None:
        require_code(actor, run.experiment.organization)
    run = Run.objects.select_for_update(of=("self",)).get(pk=run.pk)
    if run.state not in RESUMABLE:
        raise Conflict(
            f"Only a paused, failed or cancelled run can be resumed; this one is {run.state}.", code="not_resumable"
        )
    Run.objects.filter(pk=run.pk).update(
        state=Run.State.QUEUED, failures=0, cancel_requested_at=None, pause_requested_at=None, not_before=None,
        finished_at=None, error=None, reason="", queued_at=Now(), archived_at=None, stop_after_epoch=stop_after_epoch,
    )  # fmt: skip
    run.refresh_from_db()
    append_event(run, "state", state=run.state)
    audit.record(actor, "run.resume", run, run.experiment.organization)
    jobs.enqueue(run)
    states.announce(run)
    return run


def clone_run(*, actor: User, run: Run, **changes: Any) -> Run:
    """A new run with the same choices but for ``changes``; settings are merged key by key."""
    choices: dict[str, Any] = {
        "dataset_version": run.dataset_version,
        "task": run.task,
        "target": run.target_names,
        "features": run.features,
        "experiment": run.experiment,
        "register_as": run.register_as,
        "branch": run.branch,
        "base_version": run.base_version,
        "finetune": run.finetune,
        "code": run.code,
        "entry": run.entry,
    }
    config = run.config | changes.pop("config", {})
    return create_run(actor=actor, config=config, cloned_from=run, **(choices | changes))


@transaction.atomic
def set_run_archived(*, actor: User, run: Run, archived: bool) -> Run:
    """Take an ended run out of the lists, or bring it back."""
    require(actor, "run.write", run)
    if archived and not run.ended:
        raise Conflict("Cancel the run before archiving it.", code="not_ended")
    run.archived_at = timezone.now() if archived else None
    run.save(update_fields=["archived_at"])
    audit.record(actor, "run.archive" if archived else "run.restore", run, run.experiment.organization)
    return run


@transaction.atomic
def rename_run(*, actor: User, run: Run, name: str) -> Run:
    require(actor, "run.write", run)
    run.name = name
    run.save(update_fields=["name"])
    audit.record(actor, "run.rename", run, run.experiment.organization, name=name)
    return run
