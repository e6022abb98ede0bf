"""What a run is to learn, and from what: everything that can be checked before it is queued."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.core.exceptions import ValidationError

from datasets.models import DatasetVersion
from dlplatform.accounts.access import require_code
from dlplatform.accounts.models import Organization, User
from dlplatform.engine.config import ConfigError, idle_settings, parse_config, unread_settings
from dlplatform.engine.fields import CODE, PRETRAINED
from dlplatform.engine.transformers_settings import SENSES
from registry.models import ModelVersion

from . import fixed_settings
from .code import ARCHITECTURE, entry_of, object_store
from .models import CodeBundle
from .requirements import check_requirements

LANGUAGE = "language-model"
LEAST_ROWS = 10
LEAST_KNOWN = 8  # rows with a target that the engine takes
LEAST_TEXTS = 4
MOST_CLASSES = 1000
LONGEST_SILENCE = 86_400.0  # seconds
TARGET_TYPES = {
    "classification": {"category", "boolean", "integer", "text", "number"},
    "regression": {"number", "integer"},
    "language-model": {"text", "category"},
    "multilabel": {"text", "category", "boolean", "integer", "number"},
}


def targets_of(target: str | Sequence[str]) -> list[str]:
    """The columns to predict, each once."""
    return [target] if isinstance(target, str) else list(dict.fromkeys(target))


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
    kept: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The complete configuration of a run that can start; ValidationError with every problem otherwise.

    ``entry`` is the file that a run with code starts with; its params are for the code to know. ``base``: the version
    that it starts from. ``chosen``: the settings are chosen now; those of a replay or of a sweep under way were before, and may
    have some that do nothing. ``kept``: those of the run that is cloned, of which the same is true.
    """
    if version.state != DatasetVersion.State.READY:
        raise _invalid("dataset_version", f"This version is {version.state}; choose one that is ready.", "not_ready")
    problems: dict[str, ValidationError] = {}
    columns = {column["name"]: column["type"] for column in version.columns}
    if task not in TARGET_TYPES:
        problems["task"] = ValidationError(f"Choose one of: {', '.join(TARGET_TYPES)}.", code="unknown_choice")
    elif fault := _targets_fault(version, task, targets, columns):
        problems["target"] = fault
    elif entry in ("", ARCHITECTURE):
        problems |= _engine_faults(version, task, targets, features, columns)
    if fault := _feature_fault(task, features, targets, columns):
        problems["features"] = fault
    if (version.rows or 0) < LEAST_ROWS:
        problems["dataset_version"] = ValidationError(
            f"{_rows(version.rows or 0)} too few to learn from; at least {LEAST_ROWS} are needed.", code="too_few_rows"
        )
    if base is not None and chosen:
        problems |= fixed_settings.faults(base, task, config, kept or {})
        if fault := _length_fault(base, config, kept or {}):
            problems["config.text_length"] = fault
    config, parsed, faults = _settings(task, config, entry, asked=chosen and not entry, needs_base=base is None)
    problems |= faults
    if base is None and chosen and not entry:
        problems |= _unread_faults(config, task, kept or {})
    problems |= _model_faults(config, task, _read(features, targets, columns))
    if problems:
        raise ValidationError(problems)
    return parsed if base is None else fixed_settings.said_once(base, parsed)


def _settings(
    task: str, config: dict[str, Any], entry: str, *, asked: bool, needs_base: bool
) -> tuple[dict[str, Any], dict[str, Any], dict[str, ValidationError]]:
    """(the settings with their architecture, the complete ones, what is wrong with them). ``asked``: also which of them would do
    nothing. ``needs_base``: there is none, which an encoder that is pretrained comes with."""
    problems: dict[str, ValidationError] = {}
    parsed: dict[str, Any] = {}
    config, fault = _with_architecture(config, entry)
    if fault:
        problems["config.architecture"] = fault
    try:
        parsed = parse_config(config, task).to_dict() if task in TARGET_TYPES else {}
    except ConfigError as error:
        problems |= {f"config.{field}": ValidationError(message, code=code) for field, code, message in error.problems}
    for field, code, message in idle_settings(config, task) if asked else ():
        problems[f"config.{field}"] = ValidationError(message, code=code)
    for name in ("text_encoder", "image_encoder") if needs_base else ():
        if parsed.get(name) == PRETRAINED:
            fix = "There is no pretrained model to start from: fine-tune a version that holds one instead."
            problems[f"config.{name}"] = ValidationError(fix, code="needs_base")
    return config, parsed, problems


def _length_fault(base: ModelVersion, config: Mapping[str, Any], kept: Mapping[str, Any]) -> ValidationError | None:
    """Whether more tokens are asked for than the base reads, but by the run that is cloned."""
    length = config.get("text_length")
    if not isinstance(length, int) or length == kept.get("text_length"):
        return None
    most = fixed_settings.longest_text_of(base)
    if most is None or length <= most:
        return None
    return ValidationError(f"The base reads {most} tokens at most; set {most} or less.", code="out_of_range")


def _unread_faults(config: dict[str, Any], task: str, kept: Mapping[str, Any]) -> dict[str, ValidationError]:
    """Settings that a language model has no place for, but those of the run that is cloned."""
    before = {field for field, _, _ in unread_settings(dict(kept), task)}
    found = unread_settings(config, task)
    return {
        f"config.{field}": ValidationError(message, code=code) for field, code, message in found if field not in before
    }


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
            f"“{target}” is a column of the type {type_}; several labels are columns of yes and no.", code="wrong_type"
        )
    if type_ not in TARGET_TYPES[task]:
        return _type_fault(task, target, type_)
    profile = version.profile.get(target, {})
    if profile.get("count") == 0:
        return ValidationError(f"Every value of “{target}” is missing; choose another column.", code="all_missing")
    return _values_fault(task, target, type_, profile, alone)


def _type_fault(task: str, target: str, type_: str) -> ValidationError:
    other = "classification" if task == "regression" and type_ in TARGET_TYPES["classification"] else ""
    fix = f"choose {other or 'another column as target'}."
    if task == LANGUAGE:
        fix = (
            "choose another, or upload the rows anew as CSV or JSON with the columns prompt and completion, which are "
            "kept as texts, or choose the type text for it."
        )
    return ValidationError(
        f"“{target}” is a column of the type {type_}, which {task} cannot predict; {fix}", code="wrong_type"
    )


def _values_fault(
    task: str, target: str, type_: str, profile: Mapping[str, Any], alone: bool
) -> ValidationError | None:
    """Whether the values tell too much or too little apart."""
    distinct = profile.get("distinct") or 0
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


def _engine_faults(
    version: DatasetVersion, task: str, targets: Sequence[str], features: Sequence[str] | None, columns: dict[str, str]
) -> dict[str, ValidationError]:
    """What the engine's own loop cannot learn from; a script of one's own may know better."""
    problems: dict[str, ValidationError] = {}
    for target in targets:
        profile = version.profile.get(target, {})
        if fault := _known_fault(task, target, profile) or _label_fault(task, target, columns[target], profile):
            problems["target"] = fault
            break
    if task != LANGUAGE and not features and not set(columns) - set(targets):
        told = "The data have no column to learn from besides the target; add one."
        problems["features"] = ValidationError(told, code="required")
    return problems


def _known_fault(task: str, target: str, profile: Mapping[str, Any]) -> ValidationError | None:
    """Whether rows with a value are too few."""
    known, least = profile.get("count"), LEAST_TEXTS if task == LANGUAGE else LEAST_KNOWN
    if known is None or known >= least:
        return None
    message = f"“{target}” has a value in {known} of the rows only; at least {least} are needed. Add such rows."
    return ValidationError(message, code="too_few_rows")


def _label_fault(task: str, target: str, type_: str, profile: Mapping[str, Any]) -> ValidationError | None:
    """Whether numbers that are to be labels are others than 0 and 1, as far as the profile tells."""
    ends = {profile.get("min", 0), profile.get("max", 1)}
    if task != "multilabel" or type_ not in ("integer", "number"):
        return None
    if ends <= {0, 1} and (profile.get("distinct") or 0) <= 2:
        return None
    fix = "choose columns of yes and no (or of 0 and 1), or one column of texts such as red|round."
    return ValidationError(f"“{target}” holds more than yes and no; {fix}", code="not_yes_and_no")


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


def _rows(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"


def _invalid(field: str, message: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(message, code=code)})
