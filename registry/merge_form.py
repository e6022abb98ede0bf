"""The form of a merge: which version into which branch, by which method, and what that method asks for."""

from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError

from datasets.models import DatasetVersion
from dlplatform.accounts.models import User

from .comparisons import ready_data
from .merges import DEFAULT_RECIPE, METHODS, USES
from .models import ModelVersion, Ref, RegisteredModel

MOST_CHOICES = 500
MOST_DATA = 100
LABELS = {
    "average": "average",
    "slerp": "slerp, along the arc",
    "task-arithmetic": "task arithmetic, both changes added",
    "ties": "TIES, the greatest changes that agree",
    "regmean": "RegMean, by the inputs of every layer",
}
# The fields of what a recipe holds.
FIELDS = {"shares": ("ours_share", "theirs_share"), "density": ("density",), "shrink": ("shrink",)}
SHARE_HELP = "A proportion for average and slerp, a factor of its change for task arithmetic and TIES."


def _number(label: str, low: float, high: float, default: Any, help_text: str) -> forms.FloatField:
    shown = {"step": "any", "placeholder": default, "inputmode": "decimal"}
    return forms.FloatField(
        label=label, min_value=low, max_value=high, required=False, help_text=help_text,
        widget=forms.NumberInput(shown),
    )  # fmt: skip


class MergeForm(forms.Form):
    """What is left empty takes the method's default; what the chosen method does not use is refused by name."""

    branch = forms.CharField(max_length=80, widget=forms.Select)
    method = forms.ChoiceField(choices=[(method, LABELS[method]) for method in METHODS])
    ours_share = _number("Share of the branch", -100, 100, 1, SHARE_HELP)
    theirs_share = _number("Share of the version", -100, 100, 1, SHARE_HELP)
    density = _number("Density", 0.001, 1, DEFAULT_RECIPE["density"], "The share of each change that TIES keeps.")
    shrink = _number(
        "Shrink", 0, 1, DEFAULT_RECIPE["shrink"],
        "The share of the off-diagonals of the inputs' Gram matrices that RegMean keeps.",
    )  # fmt: skip
    dataset_version = forms.UUIDField(
        label="Rows to evaluate on", required=False, widget=forms.Select,
        help_text="All three are measured on them; RegMean also takes its inputs from them.",
    )  # fmt: skip

    def __init__(self, *args: Any, user: User, model: RegisteredModel, theirs: ModelVersion, **more: Any) -> None:
        super().__init__(*args, **more)
        self.auto_id = "merge-%s"
        self.theirs = theirs
        self.data_rows = ready_data(user, model)
        self.branches = _branches(model, theirs)
        self.fields["branch"].widget.choices = [(name, name) for name in self.branches]  # type: ignore[attr-defined]
        self.fields["theirs_share"].label = f"Share of v{theirs.number}"
        self.fields["dataset_version"].widget.choices = [  # type: ignore[attr-defined]
            ("", "those that the branch learned from"),
            *((one.pk, f"{one.dataset.name} v{one.number}") for one in self.data_rows[:MOST_DATA]),
        ]

    def groups(self) -> list[dict[str, Any]]:
        """The fields that only some methods use, with the names of those methods."""
        return [
            {
                "legend": part.capitalize() if len(names) > 1 else "",
                "methods": " ".join(method for method in METHODS if part in USES[method]),
                "fields": [self[name] for name in names],
            }
            for part, names in FIELDS.items()
        ]

    def clean_dataset_version(self) -> DatasetVersion | None:
        wanted: UUID | None = self.cleaned_data["dataset_version"]
        if wanted is None:
            return None
        found: DatasetVersion | None = self.data_rows.filter(pk=wanted).first()
        if found is None:
            raise ValidationError("There is no ready dataset version with this id.", code="does_not_exist")
        return found

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = self.cleaned_data
        method = given.get("method")
        for part, names in FIELDS.items():
            filled = [name for name in names if given.get(name) is not None]
            if method is not None and part not in USES[method]:
                self._refuse_unused(method, part, filled)
            elif filled and len(filled) < len(names) and not set(names) & self.errors.keys():
                (empty,) = set(names) - set(filled)
                self.add_error(empty, "Give both shares, or leave both empty.")
        return given

    def _refuse_unused(self, method: str, part: str, filled: list[str]) -> None:
        takers = ", ".join(other for other in METHODS if part in USES[other])
        for name in filled:
            label = self.fields[name].label
            self.add_error(name, f"{label} is not used by {method}, only by {takers}. Leave it empty.")

    def recipe(self) -> dict[str, Any]:
        """The method with what was given for it."""
        found: dict[str, Any] = {"method": self.cleaned_data["method"]}
        for part, names in FIELDS.items():
            values = [self.cleaned_data[name] for name in names]
            if values[0] is not None:
                found[part] = values if part == "shares" else values[0]
        return found

    def add_refusal(self, refused: ValidationError) -> None:
        """Show what the service refuses beside the field that it is about."""
        if not hasattr(refused, "error_dict"):
            self.add_error(None, refused)
            return
        for field, errors in refused.error_dict.items():
            field = FIELDS.get(field, (field,))[0]
            self.add_error(field if field in self.fields else None, errors)


def _branches(model: RegisteredModel, theirs: ModelVersion) -> list[str]:
    rows = model.refs.filter(kind=Ref.Kind.BRANCH).exclude(version=theirs)
    return list(rows.values_list("name", flat=True)[:MOST_CHOICES])
