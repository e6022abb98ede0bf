"""The form of a new sweep: that of a run, and beside it the settings to search and how."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from dlplatform.engine import fields as engine
from dlplatform.engine.fields import ARCHITECTURES, ENCODER_PARAMS, FIELDS, PARAMS
from training.models import Sweep
from training.run_form import BOOLEANS, RunForm, read_number

from .judging import METRICS
from .plans import LIMITS, LONGEST_METRIC
from .space import FIXED

ROWS = 8
PARTS = ("name", "low", "high", "log", "points", "choices")
PREFIX = "space"
NUMBERS = {
    "trials": "Trials to draw. Blank: 20, or all points of a grid.", "parallel": "Trials that train at a time.",
    "seeds": "Runs of every trial that differ in their seed.", "eta": "ASHA: one trial in so many goes on from a rung.",
    "least_epochs": "The first rung: epochs after which trials are judged.", "seed": "Of the sampler.",
}  # fmt: skip
LABELS = {
    "parallel": "At a time",
    "seeds": "Seeds of a trial",
    "least_epochs": "First rung",
    "seed": "Seed of the sampler",
}
OF_CODE = engine.Field("", "number", None, "")  # a parameter that only somebody's own code knows
DEFAULTS = {"trials": 20, "parallel": 2, "seeds": 1, "eta": 3, "least_epochs": 1, "seed": 0}


def searchable() -> dict[str, engine.Field]:
    """Every setting that can be searched, by its name; those of an architecture are `params.NAME`."""
    found = {one.name: one for one in FIELDS if one.name not in FIXED}
    for architecture in ARCHITECTURES:
        for one in (*PARAMS[architecture], *ENCODER_PARAMS):
            found.setdefault(f"params.{one.name}", one)
    return found


class SweepForm(RunForm):
    """A row of the search space has the fields `space.0.name`, `space.0.low`, …, as the errors name them."""

    sampler = forms.ChoiceField(choices=[("tpe", "TPE"), ("cmaes", "CMA-ES"), ("random", "random"), ("grid", "grid")],
                                initial="tpe", help_text="How the next settings are chosen.")  # fmt: skip
    pruner = forms.ChoiceField(
        choices=[("none", "none"), ("asha", "ASHA"), ("median", "median")], initial="none",
        help_text="Ends trials early that do badly beside the others; needs a number of epochs below.",
    )  # fmt: skip
    metric = forms.ChoiceField(help_text="What is to be best, measured on held-out rows.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["name"].label = "Name of the sweep"
        self._choose("metric", [(one, one) for one in METRICS.get(self.task_now, METRICS["classification"])])
        if self.code is not None:
            self._ask_what_code_reports()
        for name, help_text in NUMBERS.items():
            low, high = LIMITS[name]
            self.fields[name] = forms.IntegerField(
                required=False, label=LABELS.get(name), min_value=low, max_value=high, help_text=help_text,
                widget=forms.TextInput({"inputmode": "numeric", "placeholder": str(DEFAULTS[name]), "autocomplete": "off"}),
            )  # fmt: skip
        for row in range(ROWS):
            self._add_row(row)

    @property
    def task_now(self) -> str:
        """As it stands in the form."""
        return self["task"].value()

    def searchable(self) -> dict[str, engine.Field]:
        """The settings that can be searched, by their names."""
        return searchable()

    def _ask_what_code_reports(self) -> None:
        """Names that only the code knows are typed: of its metric here, of its parameters in the rows."""
        self.fields["metric"] = forms.CharField(
            max_length=LONGEST_METRIC, initial="validation/loss",
            help_text="What is to be best: validation/loss or the like of an architecture, whatever run.log reports of a script.",
        )  # fmt: skip
        self.fields["direction"] = forms.ChoiceField(
            required=False, choices=[("", "as the metric is meant"), *Sweep.Direction.choices],
            help_text="Needed for a metric that the platform does not know.",
        )  # fmt: skip

    def _add_row(self, row: int) -> None:
        known = [("", "–"), *((name, name) for name in self.searchable())]
        texts = {"low": "from", "high": "to", "points": "grid points", "choices": "or values, separated by commas"}
        for part in PARTS:
            name, label = f"{PREFIX}.{row}.{part}", f"Setting {row + 1}: {texts.get(part, part)}"
            field: forms.Field
            if part == "name" and self.code is not None:
                field = forms.CharField(required=False, max_length=120, label=label)
                field.widget.attrs["placeholder"] = "params.width"
            elif part == "name":
                field = forms.ChoiceField(required=False, choices=known, label=label)
            elif part == "log":
                field = forms.BooleanField(required=False, label=label)
            else:
                field = forms.CharField(required=False, max_length=2000, label=label)
            if part != "log":
                field.widget.attrs["aria-label"] = label
            self.fields[name] = field

    def rows(self) -> list[dict[str, Any]]:
        """The search space as rows of bound fields."""
        return [
            {
                "fields": [self[f"{PREFIX}.{row}.{part}"] for part in PARTS],
                "errors": [text for part in PARTS for text in self[f"{PREFIX}.{row}.{part}"].errors],
            }
            for row in range(ROWS)
        ]

    @property
    def search_fields(self) -> list[forms.BoundField]:
        judged = ("metric", "direction") if "direction" in self.fields else ("metric",)
        return [self[name] for name in ("sampler", "pruner", *judged, *NUMBERS)]

    def _filled(self) -> list[int]:
        return [row for row in range(ROWS) if self[f"{PREFIX}.{row}.name"].value()]

    def space(self) -> list[dict[str, Any]]:
        """The search space as the service takes it; rows without a setting are left out."""
        return [self._dimension(row) for row in self._filled()]

    def _dimension(self, row: int) -> dict[str, Any]:
        given = {part: self.cleaned_data.get(f"{PREFIX}.{row}.{part}") or "" for part in PARTS}
        described = self.searchable().get(given["name"], OF_CODE)
        values = [text.strip() for text in given["choices"].split(",") if text.strip()]
        if values or described.type in ("choice", "boolean"):
            return {"name": given["name"], "kind": "categorical", "choices": _choices(described, values)}
        ends = (read_number(given["low"]), read_number(given["high"]))
        whole = described.type == "integer" or (described is OF_CODE and all(isinstance(end, int) for end in ends))
        kind = "integer" if whole else "float"
        found = {"name": given["name"], "kind": kind, "low": ends[0], "high": ends[1],
                 "log": bool(given["log"])}  # fmt: skip
        return {**found, **({"points": read_number(given["points"])} if given["points"] else {})}

    def sweep_choices(self) -> dict[str, Any]:
        """Arguments of the service, but for the experiment."""
        chosen = {name: self.cleaned_data[name] for name in ("sampler", "pruner", "metric")}
        if self.cleaned_data.get("direction"):
            chosen["direction"] = self.cleaned_data["direction"]
        numbers = {name: self.cleaned_data[name] for name in NUMBERS if self.cleaned_data[name] is not None}
        return {**self.choices(), **chosen, **numbers, "space": self.space()}

    def add_refusal(self, error: ValidationError) -> None:
        """Show a service's errors where they belong; it counts only the rows that were filled in."""
        filled = self._filled()
        for field, errors in getattr(error, "error_dict", {None: error}).items():
            parts = (field or "").split(".")
            if parts[0] == PREFIX and len(parts) > 1 and parts[1].isdigit() and int(parts[1]) < len(filled):
                field = ".".join([PREFIX, str(filled[int(parts[1])]), parts[2] if len(parts) > 2 else "name"])
            self.add_error(field if field in self.fields else None, errors)


def _choices(described: engine.Field, values: list[str]) -> list[Any]:
    """The values that were typed, each as what it looks like; none stands for all that there are."""
    if not values:
        return [True, False] if described.type == "boolean" else [one for one in described.choices if one != "auto"]
    if described.type == "choice":
        return values
    return [BOOLEANS[text.lower()] if text.lower() in BOOLEANS else read_number(text) for text in values]


def starting_space(task: str) -> dict[str, Any]:
    """Two settings that are worth searching almost always, to begin with."""
    return {
        f"{PREFIX}.0.name": "learning_rate", f"{PREFIX}.0.low": "0.0003", f"{PREFIX}.0.high": "0.03",
        f"{PREFIX}.0.log": True, f"{PREFIX}.1.name": "batch_size", f"{PREFIX}.1.choices": "32, 64, 128, 256",
        "metric": METRICS.get(task, METRICS["classification"])[0], "sampler": Sweep.Sampler.TPE,
    }  # fmt: skip
