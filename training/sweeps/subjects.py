"""What the trials of a sweep learn, checked: from rows alone, by code of one's own, or from a base that is fine-tuned."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError

from datasets.models import DatasetVersion
from dlplatform.accounts.models import Organization, User
from dlplatform.api import Conflict
from dlplatform.engine.finetune_config import FinetuneConfig
from registry.models import ModelVersion
from training import finetuning
from training.fixed_settings import fixed_by, longest_text_of
from training.learning_checks import check, check_code, targets_of
from training.models import CodeBundle

from . import tuning
from .space import Dimension


@dataclass(frozen=True)
class Subject:
    """As the runs of all trials have it. ``config`` is complete; ``finetune`` are the settings of a search from a base."""

    dataset_version: DatasetVersion
    task: str
    targets: list[str]
    features: list[str] | None
    config: dict[str, Any]
    code: CodeBundle | None = None
    entry: str = ""
    base_version: ModelVersion | None = None
    finetune: dict[str, Any] | None = None

    @property
    def organization(self) -> Organization:
        return self.dataset_version.dataset.organization

    @property
    def model_name(self) -> str:
        """Of the model that gets the results when none is named."""
        return self.base_version.model.name if self.base_version else self.dataset_version.dataset.name


def subject_of(
    *, actor: User, dataset_version: DatasetVersion, task: str = "", target: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None, config: dict[str, Any] | None = None, code: CodeBundle | None = None,
    entry: str = "", base_version: ModelVersion | None = None, finetune: Mapping[str, Any] | None = None,
) -> Subject:  # fmt: skip
    """Raises Conflict, and ValidationError with the field and the fix; with a base those of `finetuning.finetune`."""
    if base_version is not None:
        if code is not None or entry:
            raise _invalid("code", "The base brings its own network; leave the code out.", "not_for_base")
        return _of_base(actor, dataset_version, base_version, finetune or {}, config, task, target, features)
    if finetune is not None:
        raise _invalid("base_version", "Name the version that is to be fine-tuned.", "required")
    targets = targets_of(target) if target else []
    if code is not None:
        entry = check_code(actor, dataset_version.dataset.organization, code, entry, task)
    settings = check(dataset_version, task, targets, features, config or {}, entry)
    return Subject(dataset_version, task, targets, list(features) if features else None, settings, code, entry)


def _of_base(
    actor: User, data: DatasetVersion, base: ModelVersion, finetune: Mapping[str, Any], config: dict[str, Any] | None,
    task: str, target: str | Sequence[str] | None, features: Sequence[str] | None,
) -> Subject:  # fmt: skip
    if base.model.organization_id != data.dataset.organization_id:
        raise _invalid("base_version", "The base and the data belong to different organizations.", "invalid")
    settings = _parsed(finetune)
    try:
        # Whether the base can be tuned in the ways that are searched is asked of each, when the space is known.
        found = finetuning.choices_of(actor, base, data, {}, config, task, target, features)
    except ValidationError as error:
        raise _renamed(error, {"version": "base_version"}) from error
    shared = _with_pixels(base, settings)
    code, entry = found.get("code"), found.get("entry", "")
    if code is not None:
        entry = check_code(actor, data.dataset.organization, code, entry, found["task"])
    checked = check(data, found["task"], found["target"], found["features"], found["config"] or {}, entry, base)
    kept = list(found["features"]) if found["features"] else None
    return Subject(data, found["task"], found["target"], kept, checked, code, entry, base, shared)


def _parsed(finetune: Mapping[str, Any]) -> FinetuneConfig:
    try:
        return finetuning.parsed_settings(finetune)
    except ValidationError as error:
        raise finetuning.as_part(error) from error


def _with_pixels(base: ModelVersion, settings: FinetuneConfig) -> dict[str, Any]:
    try:
        return finetuning.with_pixels(base, settings).to_dict()
    except ValidationError as error:
        raise finetuning.as_part(error) from error


def check_ways(subject: Subject, dimensions: Sequence[Dimension]) -> None:
    """Whether the base can be tuned in every way that is searched, and by every setting. ValidationError, Conflict."""
    if subject.base_version is None or subject.finetune is None:
        return
    _check_fixed(subject, dimensions)
    _check_lengths(subject.base_version, dimensions)
    places = {one.name: place for place, one in enumerate(dimensions)}
    ways = [one for one in dimensions if one.name in (f"{tuning.PREFIX}mode", f"{tuning.PREFIX}{tuning.BLOCKS}")]
    points = [
        dict(zip((one.name for one in ways), values, strict=True))
        for values in itertools.product(*(one.grid() for one in ways))
    ]
    for point in points:
        _check_way(subject, subject.base_version, point, places)
    _check_effect(subject, {tuning.tuned(subject.finetune, point)["mode"] for point in points})


def _check_way(subject: Subject, base: ModelVersion, point: dict[str, Any], places: dict[str, int]) -> None:
    """A complaint belongs to the setting that is searched and could be narrowed, else to the one that all share."""
    try:
        settings = finetuning.parsed_settings(tuning.tuned(subject.finetune or {}, point))
        finetuning.require_usable(base, settings, subject.task)
    except ValidationError as error:
        names = {"version": "base_version"}
        for name in ("mode", tuning.BLOCKS):
            if (place := places.get(f"{tuning.PREFIX}{name}")) is not None:
                names[f"{tuning.PREFIX}{name}"] = f"space.{place}.choices"
        raise _renamed(error, names) from error
    except Conflict as conflict:
        place = places.get(f"{tuning.PREFIX}mode")
        if place is None or conflict.get_codes() != "is_adapter":
            raise
        raise _invalid(f"space.{place}.choices", f"{conflict.detail} Or leave lora out.", "is_adapter") from conflict


def _check_effect(subject: Subject, modes: Collection[str]) -> None:
    """What all trials share must do something in some of the modes that are searched."""
    mode = "lora" if "lora" in modes else min(modes)
    try:
        settings = finetuning.parsed_settings({**(subject.finetune or {}), "mode": mode})
        finetuning.require_effect(settings, subject.task, finetuning.SETTINGS)
    except ValidationError as error:
        raise finetuning.as_part(error) from error


def _check_lengths(base: ModelVersion, dimensions: Sequence[Dimension]) -> None:
    """No trial may be drawn that reads more of a text than its base can."""
    most = longest_text_of(base)
    for place, one in enumerate(dimensions):
        if one.name == "text_length" and most is not None and max(_numbers(one), default=0) > most:
            end = "choices" if one.kind == "categorical" else "high"
            text = f"The base reads {most} tokens at most; set {most} or less."
            raise _invalid(f"space.{place}.{end}", text, "out_of_range")


def _numbers(dimension: Dimension) -> list[float]:
    """The largest of a range, or all numbers among choices."""
    values = dimension.choices if dimension.kind == "categorical" else (dimension.high,)
    return [float(one) for one in values if isinstance(one, int | float)]


def _check_fixed(subject: Subject, dimensions: Sequence[Dimension]) -> None:
    """A package brings its network, and a Hugging Face directory what it is the network of."""
    assert subject.base_version is not None
    fixed_by_it = fixed_by(subject.base_version, subject.task)
    for number, one in enumerate(dimensions):
        if fixed_by_it(one.name):
            text = f"The base brings its own network, so that {one.name} changes nothing; remove it."
            raise _invalid(f"space.{number}.name", text, "not_for_base")


def _renamed(error: ValidationError, names: Mapping[str, str]) -> ValidationError:
    """The errors with the names that the fields have in a sweep."""
    own = finetuning.as_part(error).error_dict
    return ValidationError({names.get(field, field): errors for field, errors in own.items()})


def _invalid(field: str, text: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(text, code=code)})
