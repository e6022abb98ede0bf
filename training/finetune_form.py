"""The form of a fine-tuning, generated from the engine's own description of its settings."""

from typing import Any
from urllib.parse import urlencode

from django import forms
from django.urls import reverse

from datasets.models import DatasetVersion
from dlplatform.accounts.templatetags.platform import counted
from dlplatform.engine.config import ConfigError
from dlplatform.engine.fields import FIELDS, Field
from dlplatform.engine.finetune_config import FINETUNE_FIELDS, FinetuneConfig, parse_finetune, recorded_finetune
from registry.models import ModelVersion
from registry.transformers_bases import LANGUAGE, is_transformers, takes, tasks_of

from . import finetuning
from .fixed_settings import fixed_by
from .models import Run
from .run_form import SettingField, predictable, suggested_target, typed

WITHOUT_ADAPTERS = ("full", "head")
SHOWN = (
    "epochs",
    "batch_size",
    "learning_rate",
    "early_stopping",
    "seed",
    "validation_fraction",
    "augmentation",
    "ema",
    "devices",
    "nodes",
)


def settings_of(version: ModelVersion) -> list[Field]:
    """The settings of fine-tuning that concern a base: chat templates only where it writes, pixels where it looks at them."""
    writes = LANGUAGE in (tasks_of(version) if is_transformers(version) else (version.task,))
    looks = is_transformers(version) and takes(version) == "image"
    concern = {"chat_template": writes, "pixels": looks}
    return [one for one in FINETUNE_FIELDS if concern.get(one.name, True)]


class FinetuneForm(forms.Form):
    """Bound to one version, whose blocks and fitting data it offers."""

    dataset_version = forms.ChoiceField(label="Dataset version")
    blocks = forms.MultipleChoiceField(required=False, widget=forms.CheckboxSelectMultiple, label="Blocks")
    register_as = forms.CharField(
        required=False, max_length=120, label="Register the model as", help_text="Blank: a version of the base's model."
    )
    branch = forms.CharField(
        required=False, max_length=80, help_text="Blank: main if the base is its head, else a branch of its own."
    )
    name = forms.CharField(required=False, max_length=120, label="Name of the run", help_text="Blank: one is made.")
    clone = forms.UUIDField(required=False, widget=forms.HiddenInput)  # the run whose choices these are

    def __init__(
        self, *args: Any, version: ModelVersion, data: list[DatasetVersion], blocks: dict[str, int], **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.version, self.data_versions = version, data
        self.fields["dataset_version"].choices = [  # type: ignore[attr-defined]
            (str(one.pk), f"{one.dataset.name} v{one.number} · {counted(one.rows or 0, 'row')}") for one in data
        ]
        self.fields["blocks"].choices = [(name, name) for name in blocks]  # type: ignore[attr-defined]
        self.fields["register_as"].widget.attrs["placeholder"] = version.model.name
        if is_transformers(version):
            self._ask_what_to_learn(data)
        self.fields |= {f"finetune.{one.name}": SettingField(one) for one in settings_of(version)}
        unused, fixed = ("augmentation",) if version.task == LANGUAGE else (), fixed_by(version)
        shown = [one for one in FIELDS if one.name in SHOWN and one.name not in unused and not fixed(one.name)]
        self.fields |= {f"config.{one.name}": SettingField(one) for one in shown}
        self.fields["finetune.mode"].widget.attrs["data-reloads"] = ""
        self.fields["finetune.adapter"].widget.attrs["data-reloads"] = ""
        self.fields["finetune.rank"].widget.attrs["data-reloads"] = ""

    def _ask_what_to_learn(self, data: list[DatasetVersion]) -> None:
        """A base that was only pretrained says neither task nor target."""
        names = dict.fromkeys(name for one in data for name, _ in predictable(one))
        self.fields["task"] = forms.ChoiceField(
            choices=[(task, task) for task in tasks_of(self.version)], required=False
        )
        self.fields["target"] = forms.MultipleChoiceField(
            choices=[(name, name) for name in names], label="Columns to predict",
            initial=[suggested_target(data[0])] if data else [],
            help_text="One; several for regression and multilabel. All other columns are read; a language model is taught "
            "to write the one column.",
        )  # fmt: skip

    @property
    def learns(self) -> list[forms.BoundField]:
        return [self[name] for name in ("task", "target") if name in self.fields]

    def part(self, prefix: str) -> list[forms.BoundField]:
        """The fields of ``finetune`` or ``config``."""
        return [self[name] for name in self.fields if name.startswith(f"{prefix}.")]

    @property
    def how(self) -> list[forms.BoundField]:
        return self.part("finetune")

    @property
    def training(self) -> list[forms.BoundField]:
        return self.part("config")

    def given(self, prefix: str) -> dict[str, Any]:
        """The settings that were filled in; of a form in any state."""
        found = {}
        for bound in self.part(prefix):
            value = bound.field.to_python(bound.value())
            if value is not None:
                found[bound.name.partition(".")[2]] = value
        return found

    def settings(self) -> dict[str, Any]:
        """The fine-tuning settings, the chosen blocks among them. The form always sends all fields: those of adapters are
        no choice in a mode without them."""
        blocks, given = self["blocks"].value() or [], self.given("finetune")
        if given.get("mode", "lora") in WITHOUT_ADAPTERS:
            given = {name: value for name, value in given.items() if name not in finetuning.OF_ADAPTERS}
        return {**given, **({"blocks": list(blocks)} if blocks else {})}

    def parsed(self) -> FinetuneConfig:
        """The settings as far as they can be read: for what the page shows before it is sent."""
        try:
            return parse_finetune(self.settings())
        except ConfigError:
            return FinetuneConfig()


def address_of(run: Run) -> str:
    """The page that fine-tunes the base of a run once more, filled with the run's choices."""
    settings = recorded_finetune(run.finetune or {}).to_dict()
    defaults = {one.name: one.default for one in FIELDS}
    chosen = {name: run.config[name] for name in SHOWN if name in run.config and run.config[name] != defaults[name]}
    query: dict[str, Any] = {
        "dataset_version": run.dataset_version_id, "register_as": run.register_as, "blocks": settings["blocks"],
        "task": run.task, "target": run.target_names, "clone": run.pk,
        **{f"finetune.{one.name}": typed(settings[one.name]) for one in FINETUNE_FIELDS if settings[one.name] is not None},
        **{f"config.{name}": typed(value) for name, value in chosen.items()},
    }  # fmt: skip
    return f"{reverse('finetune', args=[run.base_version_id])}?{urlencode(query, doseq=True)}"


def not_shown(run: Run) -> dict[str, Any]:
    """The settings of a run, beside those of the form, that are not at their default; a package brings its own ``params``."""
    assert run.base_version is not None
    taken = SHOWN if is_transformers(run.base_version) else (*SHOWN, "params")
    defaults = {one.name: one.default for one in FIELDS}
    return {name: value for name, value in run.config.items() if name not in taken and value != defaults.get(name)}
