"""The form of a sweep that starts from a base: what of it a fine-tuning has, and how to fine-tune."""

from typing import Any

from django import forms

from datasets.models import DatasetVersion
from dlplatform.accounts.templatetags.platform import counted
from dlplatform.engine import fields as engine
from dlplatform.engine.finetune_config import FINETUNE_FIELDS
from registry.models import ModelVersion
from registry.transformers_bases import is_transformers, tasks_of
from training.finetune_form import SHOWN, settings_of
from training.fixed_settings import fixed_by
from training.run_form import SettingField

from .form import PREFIX as ROW
from .form import SweepForm, searchable
from .tuning import BLOCKS, NAMES, PREFIX, USUAL

# What a package of the platform learned says these.
OF_THE_DATA = ("target", "more_targets", "task", "features")
BLOCK_NAMES = engine.Field(BLOCKS, "choice", USUAL, "", choices=())


class TuningSweepForm(SweepForm):
    """Bound to the base, and to one of the dataset versions that fit it."""

    def __init__(self, *args: Any, base: ModelVersion, data: list[DatasetVersion], **more: Any) -> None:
        self.base, self.foreign = base, is_transformers(base)
        super().__init__(*args, **more)
        self._choose("dataset_version", [(str(one.pk), _named(one)) for one in data])
        self.fields["register_as"].widget.attrs["placeholder"] = base.model.name
        self.fields["register_as"].help_text = "Blank: the base's model."
        self.fields["experiment"].help_text = "Default: the one for fine-tuning this model."
        if self.foreign:
            self._choose("task", [(task, task) for task in tasks_of(base)])
        dropped = () if self.foreign else OF_THE_DATA
        fixed = fixed_by(base)
        settings = {name: name.partition(".")[2] for name in self.fields if name.startswith("config.")}
        other = (name for name, setting in settings.items() if setting not in SHOWN or fixed(setting))
        for name in (*dropped, *list(other)):
            del self.fields[name]
        self.fields |= {f"{PREFIX}{one.name}": SettingField(one) for one in settings_of(base)}
        self.fields[f"{PREFIX}{BLOCKS}"] = forms.CharField(
            required=False, max_length=10_000, label="Blocks", help_text="Names or patterns, with spaces between them."
        )

    @property
    def task_now(self) -> str:
        return self["task"].value() if self.foreign else self.base.task

    def searchable(self) -> dict[str, engine.Field]:
        known = {f"{PREFIX}{one.name}": one for one in FINETUNE_FIELDS if one.name in NAMES} | {
            f"{PREFIX}{BLOCKS}": BLOCK_NAMES
        }
        fixed = fixed_by(self.base, self.task_now)
        return known | {name: one for name, one in searchable().items() if not fixed(name)}

    @property
    def how(self) -> list[forms.BoundField]:
        return [self[name] for name in self.fields if name.startswith(PREFIX)]

    def finetune(self) -> dict[str, Any]:
        """The settings that all trials share, as they were filled in."""
        given = {one.name.removeprefix(PREFIX): one.field.to_python(one.value()) for one in self.how}
        blocks = (given.pop(BLOCKS) or "").split()
        return {name: value for name, value in given.items() if value is not None} | (
            {BLOCKS: blocks} if blocks else {}
        )

    def choices(self) -> dict[str, Any]:
        given = self.cleaned_data
        plain = {"config": self.config(), "name": given["name"], "register_as": given["register_as"]}
        learnt = super().choices() if self.foreign else plain
        return {**learnt, "base_version": self.base, "finetune": self.finetune()}


def _named(version: DatasetVersion) -> str:
    return f"{version.dataset.name} v{version.number} · {counted(version.rows or 0, 'row')}"


def starting_ways(mode: str) -> dict[str, Any]:
    """What is worth searching almost always, to begin with."""
    second = {"name": f"{PREFIX}rank", "low": "2", "high": "32", "log": True}
    if mode != "lora":
        second = {"name": f"{PREFIX}layer_decay", "low": "0.5", "high": "1", "log": False}
    return {f"{ROW}.1.choices": "", **{f"{ROW}.1.{part}": value for part, value in second.items()}}
