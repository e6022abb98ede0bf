"""The form of a new run, generated from the engine's own description of its settings."""

import json
from typing import Any

from django import forms

from datasets.models import DatasetVersion
from dlplatform.accounts.models import Organization
from dlplatform.accounts.templatetags.platform import counted
from dlplatform.engine import fields as engine
from dlplatform.engine.chat_template import MAXIMUM_BYTES
from dlplatform.engine.fields import ARCHITECTURES, FIELDS, PARAMS
from dlplatform.engine.transformers_settings import MOST_BYTES, PRESETS, SENSES

from .code import ARCHITECTURE, SCRIPT
from .learning_checks import LANGUAGE, LEAST_ROWS, MOST_CLASSES, TARGET_TYPES, features_by_default
from .models import CodeBundle, Experiment, Run

FEW_CLASSES = 20
MOST_VERSIONS = 200
WRITTEN = ("text", "completion", "messages")  # columns that language models are usually taught to write
BOOLEANS = {"true": True, "false": False}


class SettingField(forms.CharField):
    """One setting. Blank stands for the default; what cannot be read goes on as text for the engine to name."""

    def __init__(self, described: engine.Field, *, used_by: tuple[str, ...] = ()) -> None:
        self.described = described
        self.presets = {one.name: json.dumps(one.config) for one in PRESETS if one.setting == described.name}
        widget, hint = _widget(described), f" For {' and '.join(used_by)}." if used_by else ""
        label = described.name.replace("_", " ").capitalize()
        most = {"model": MOST_BYTES, "template": MAXIMUM_BYTES}.get(described.type, 40)
        super().__init__(
            required=False, label=label, help_text=described.help + hint, widget=widget, max_length=most,
            strip=described.type != "template",
        )  # fmt: skip

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        if text.strip() == "":
            return None
        if text.lower() in BOOLEANS and (self.described.type == "boolean" or False in self.described.words):
            return BOOLEANS[text.lower()]
        if self.described.type in ("integer", "number"):
            return read_number(text)
        if self.described.type == "model":
            return read_json(text)
        return text

    def run_validators(self, value: Any) -> None:
        """The engine checks ranges, and says so in its own words."""


def read_json(text: str) -> Any:
    """What a text says as JSON; the text itself when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _widget(described: engine.Field) -> forms.Widget:
    default = _shown(described.default)
    if described.type == "choice":
        return forms.Select(choices=[("", f"{default} (default)"), *((one, one) for one in described.choices)])
    if described.type == "boolean":
        return forms.Select(choices=[("", f"{default} (default)"), ("true", "yes"), ("false", "no")])
    if described.type in ("model", "template"):
        return forms.Textarea({"rows": 3, "placeholder": default, "spellcheck": "false", "class": "mono"})
    mode = "numeric" if described.type == "integer" and False not in described.words else "text"
    return forms.TextInput({"placeholder": default, "inputmode": mode, "autocomplete": "off"})


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else f"{value}"


def _settings() -> dict[str, SettingField]:
    fields = {f"config.{one.name}": SettingField(one) for one in FIELDS if one.type != "params"}
    for name in dict.fromkeys(one.name for architecture in ARCHITECTURES for one in PARAMS[architecture]):
        users = tuple(each for each in ARCHITECTURES if any(one.name == name for one in PARAMS[each]))
        described = next(one for one in PARAMS[users[0]] if one.name == name)
        fields[f"config.params.{name}"] = SettingField(described, used_by=users)
    return fields


def _settings_of_code(code: CodeBundle) -> dict[str, forms.Field]:
    """The file to start with and its params in place of an architecture and its settings."""
    python = [name for name in sorted(code.tree) if name.endswith(".py")]
    first = next((name for name in (SCRIPT, ARCHITECTURE) if name in python), python[0])
    own: dict[str, forms.Field] = {
        "entry": forms.ChoiceField(
            label="Start with", choices=[(name, name) for name in python], initial=first,
            help_text="model.py is an architecture in the ordinary loop; any other file is a training script.",
        ),
        "code_params": forms.CharField(
            label="Parameters", required=False, max_length=20_000, widget=forms.Textarea({"rows": 3}),
            help_text='A JSON object, such as {"width": 64}: arguments of build, or run.params of a script.',
        ),
    }  # fmt: skip
    shared: dict[str, forms.Field] = dict(_settings())
    without = (
        "config.architecture",
        "config.devices",
        "config.nodes",
        "config.strategy",
        "config.folds",
        *(f"config.{one}" for one in SENSES),
    )
    return own | {
        name: field for name, field in shared.items() if name not in without and not name.startswith("config.params.")
    }


def read_params(text: Any) -> tuple[dict[str, Any], str]:
    """(the JSON object in a text, what is wrong with it)."""
    if not text or not str(text).strip():
        return {}, ""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"This is no JSON: {str(error)[:200]}."
    return (found, "") if isinstance(found, dict) else ({}, 'Write a JSON object, such as {"width": 64}.')


def ready_versions(organization: Organization) -> Any:
    return (
        DatasetVersion.objects.filter(
            dataset__organization=organization, dataset__archived_at=None, state=DatasetVersion.State.READY
        )
        .select_related("dataset")
        .only("number", "rows", "created_at", "dataset__name")
        .order_by("-created_at")[:MOST_VERSIONS]
    )


def suggested_version(organization: Organization) -> DatasetVersion | None:
    """The newest that can be trained on; else the newest, whose form then says what is missing."""
    ready = list(ready_versions(organization))
    enough = (one for one in ready if (one.rows or 0) >= LEAST_ROWS)
    return next(enough, ready[0] if ready else None)


def suggested_target(version: DatasetVersion) -> str:
    """The last column that some task can predict."""
    allowed = set().union(*TARGET_TYPES.values())
    names = [column["name"] for column in version.columns if column["type"] in allowed]
    return names[-1] if names else ""


def suggested_task(version: DatasetVersion, target: str) -> str:
    """Regression for a measured number, classification for what has few values or is no number."""
    if target in WRITTEN:
        return "language-model"
    type_ = next((column["type"] for column in version.columns if column["name"] == target), "")
    distinct = version.profile.get(target, {}).get("distinct") or 0
    if type_ in ("number", "integer") and distinct > FEW_CLASSES:
        return "regression"
    return "classification" if distinct <= MOST_CLASSES else "regression"


def predictable(version: DatasetVersion) -> list[tuple[str, str]]:
    """(name, name with type) of the columns that some task can predict."""
    allowed = set().union(*TARGET_TYPES.values())
    return [(one["name"], f"{one['name']} ({one['type']})") for one in version.columns if one["type"] in allowed]


class RunForm(forms.Form):
    """Bound to one dataset version, which decides the choices of target and features."""

    dataset_version = forms.ChoiceField(label="Dataset version")
    target = forms.ChoiceField(label="Column to predict")
    more_targets = forms.MultipleChoiceField(
        required=False,
        label="More columns to predict",
        help_text="For regression and multilabel: all are predicted at once.",
    )
    task = forms.ChoiceField(choices=Run.Task.choices)
    features = forms.MultipleChoiceField(
        required=False, widget=forms.CheckboxSelectMultiple, label="Columns to learn from"
    )
    experiment = forms.ChoiceField(required=False, help_text="A group of runs that belong together.")
    new_experiment = forms.CharField(required=False, max_length=120, label="or a new experiment")
    name = forms.CharField(required=False, max_length=120, label="Name of the run", help_text="Blank: one is made.")
    register_as = forms.CharField(
        required=False, max_length=120, label="Register the model as", help_text="Blank: the dataset's name."
    )

    def __init__(
        self,
        *args: Any,
        organization: Organization,
        version: DatasetVersion,
        code: CodeBundle | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.version = version
        self.code = code
        self.fields.update(_settings() if code is None else _settings_of_code(code))
        self._choose("dataset_version", _version_choices(organization, version))
        self._choose("target", predictable(version))
        self._choose("more_targets", predictable(version))
        self._choose("features", [(one["name"], one["name"]) for one in version.columns])
        experiments = Experiment.objects.filter(organization=organization, archived_at=None).order_by("name")
        self._choose("experiment", [("", "Default"), *((str(one.pk), one.name) for one in experiments[:MOST_VERSIONS])])
        self.fields["register_as"].widget.attrs["placeholder"] = version.dataset.name
        for name in ("target", "task", "dataset_version"):
            self.fields[name].widget.attrs["data-reloads"] = ""

    def _choose(self, name: str, choices: list[tuple[str, str]]) -> None:
        self.fields[name].choices = choices  # type: ignore[attr-defined]

    @property
    def basic(self) -> list[forms.BoundField]:
        return [self[name] for one in FIELDS if not one.advanced and (name := f"config.{one.name}") in self.fields]

    @property
    def advanced(self) -> list[forms.BoundField]:
        plain = [name for one in FIELDS if one.advanced and (name := f"config.{one.name}") in self.fields]
        return [self[name] for name in plain + [name for name in self.fields if name.startswith("config.params.")]]

    @property
    def advanced_open(self) -> bool:
        """Opened when something in it is set or wrong, so that nothing hides."""
        return any(field.errors or field.value() for field in self.advanced)

    def feature_boxes(self) -> list[dict[str, Any]]:
        types = {column["name"]: column["type"] for column in self.version.columns}
        target = self["target"].value()
        return [
            {"box": box, "type": types[box.data["value"]]} for box in self["features"] if box.data["value"] != target
        ]

    def chosen_features(self) -> list[str]:
        """The features as they stand in the form, without the target."""
        target = self["target"].value()
        return [name for name in self["features"].value() or [] if name != target]

    def clean_features(self) -> list[str]:
        chosen = self.cleaned_data["features"]
        if not chosen and self["task"].value() != LANGUAGE:
            raise forms.ValidationError("Choose at least one column to learn from.")
        return chosen

    def config(self) -> dict[str, Any]:
        """The settings that were given, in the engine's shape; of a form in any state."""
        config: dict[str, Any] = {}
        params: dict[str, Any] = {}
        for name, field in self.fields.items():
            if not isinstance(field, SettingField) or not name.startswith("config."):
                continue
            value = field.to_python(self[name].value())
            if value is not None:
                (params if name.startswith("config.params.") else config)[name.rpartition(".")[2]] = value
        if self.code is not None:
            params = read_params(self["code_params"].value())[0]
        return {**config, **({"params": params} if params else {})}

    def clean_code_params(self) -> str:
        text: str = self.cleaned_data["code_params"]
        if fault := read_params(text)[1]:
            raise forms.ValidationError(fault)
        return text

    def choices(self) -> dict[str, Any]:
        """Arguments of the service, but for the experiment."""
        given = self.cleaned_data
        targets = list(dict.fromkeys([given["target"], *given["more_targets"]]))
        everything = {column["name"] for column in self.version.columns} - set(targets)
        features = [name for name in given["features"] if name not in targets]
        named = features_by_default(self.version, targets, given["task"])
        if given["task"] == LANGUAGE:
            named = features  # all the others are no default here
        return {
            "task": given["task"],
            "target": targets if len(targets) > 1 else targets[0],
            "features": None if set(features) == everything and not named else features or None,
            "config": self.config(),
            "name": given["name"],
            "register_as": given["register_as"],
            **({"code": self.code, "entry": given["entry"]} if self.code else {}),
        }


def _version_choices(organization: Organization, chosen: DatasetVersion) -> list[tuple[str, str]]:
    rows = {str(one.pk): one for one in ready_versions(organization)}
    rows.setdefault(str(chosen.pk), chosen)
    return [(key, f"{one.dataset.name} v{one.number} · {counted(one.rows or 0, 'row')}") for key, one in rows.items()]


def initial_of(version: DatasetVersion, target: str = "", task: str = "") -> dict[str, Any]:
    """A form filled with suggestions for a version."""
    names = [column["name"] for column in version.columns]
    target = target if target in names else suggested_target(version)
    chosen = task if task in Run.Task.values else suggested_task(version, target)
    return {
        "dataset_version": str(version.pk),
        "target": target,
        "task": chosen,
        "features": ["prompt"] * ("prompt" in names)
        if chosen == LANGUAGE
        else features_by_default(version, [target]) or [name for name in names if name != target],
    }


def initial_of_clone(run: Run) -> dict[str, Any]:
    """A form filled with another run's choices; settings at their default stay blank."""
    initial = initial_of(run.dataset_version, run.target_names[0], run.task) | {"more_targets": run.target_names[1:]}
    if run.features:
        initial["features"] = run.features
    initial |= {"experiment": str(run.experiment_id), "register_as": run.register_as}
    defaults = {one.name: one.default for one in FIELDS}
    initial |= {"entry": run.entry, "code_params": json.dumps(run.config.get("params", {}))} if run.code_id else {}
    for name, value in run.config.items():
        if name != "params" and value != defaults.get(name):
            initial[f"config.{name}"] = typed(value)
    for name, value in run.config.get("params", {}).items():
        initial[f"config.params.{name}"] = typed(value)
    return initial


def typed(value: Any) -> str:
    """A setting as somebody would type it."""
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
