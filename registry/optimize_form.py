"""The form of an optimization: which variants, with which settings."""

from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError

from datasets.models import DatasetVersion
from dlplatform.accounts.models import User
from dlplatform.engine.optimizing.plan import KEEPING, PASSES, SETTINGS, SHAPING, SPARSE

from .comparisons import ready_data
from .models import ModelVersion
from .optimizations import DEFAULT_TOLERANCE, MOST_TOLERANCE

MOST_DATA = 100
LABELS = {
    "onnx": "ONNX", "onnx-int8-dynamic": "ONNX, 8 bits, scaled as it comes",
    "onnx-int8-static": "ONNX, 8 bits, calibrated", "torch-export": "torch.export",
    "torch-compile": "torch.compile", "bfloat16": "16-bit weights", "int8": "8-bit weights",
    "structured": "Fewer units and channels", "sparse": "Sparse weights", "distil": "A smaller network, taught",
}  # fmt: skip
COMBINED = tuple(
    (shape, keep)
    for shape in SHAPING
    if shape != SPARSE
    for keep in ("onnx", "onnx-int8-dynamic", "onnx-int8-static", "torch-compile")
)
FIRST = ("onnx", "onnx-int8-dynamic", "onnx-int8-static", "structured+onnx-int8-dynamic")
FIRST_OF_IMAGES = ("onnx", "onnx-int8-static", "distil+onnx")


class OptimizeForm(forms.Form):
    """Several variants at once; the settings hold for those that use them."""

    variants = forms.MultipleChoiceField(
        choices=[], widget=forms.CheckboxSelectMultiple, error_messages={"required": "Choose at least one variant."}
    )
    tolerance = forms.FloatField(
        min_value=0, max_value=MOST_TOLERANCE, initial=DEFAULT_TOLERANCE, label="Tolerance",
        widget=forms.NumberInput({"step": "any", "inputmode": "decimal"}),
        help_text="Points, of a hundred, by which the quality on held-out rows may fall.",
    )  # fmt: skip
    dataset_version = forms.UUIDField(
        label="Rows", required=False, widget=forms.Select,
        help_text="To learn on from, to calibrate with, and to be judged by: each row for one of these.",
    )  # fmt: skip

    def __init__(self, *args: Any, user: User, version: ModelVersion, **more: Any) -> None:
        super().__init__(*args, **more)
        self.auto_id = "optimize-%s"
        self.data_rows = ready_data(user, version.model)
        names = [*KEEPING, *SHAPING, *("+".join(pair) for pair in COMBINED)]
        self.fields["variants"].choices = [(name, name) for name in names]  # type: ignore[attr-defined]
        self.fields["variants"].initial = list(FIRST_OF_IMAGES if _looks(version) else FIRST)
        for name, default, low, high, takers, help_text in SETTINGS:
            kind = forms.IntegerField if name == "epochs" else forms.FloatField
            self.fields[name] = kind(
                label=name.capitalize(), min_value=low, max_value=high, initial=default, required=False,
                help_text=f"{help_text} For {', '.join(takers)}.",
                widget=forms.NumberInput({"step": 1 if name == "epochs" else "any", "inputmode": "decimal"}),
            )  # fmt: skip
        self.fields["dataset_version"].widget.choices = [  # type: ignore[attr-defined]
            ("", "those that it learned from"),
            *((one.pk, f"{one.dataset.name} v{one.number}") for one in self.data_rows[:MOST_DATA]),
        ]

    def groups(self) -> list[dict[str, Any]]:
        """The variants with their words, those that keep the network first."""
        chosen = set(self["variants"].value() or ())
        kinds = (
            ("Kept otherwise, the same network", [(each,) for each in KEEPING]),
            ("Another network, which learns on", [(each,) for each in SHAPING]),
            ("Both", list(COMBINED)),
        )
        return [
            {"legend": legend, "choices": [_choice(passes, chosen) for passes in passes_of]}
            for legend, passes_of in kinds
        ]

    def settings_fields(self) -> list[Any]:
        return [self[name] for name, *_ in SETTINGS] + [self["tolerance"], self["dataset_version"]]

    def clean_dataset_version(self) -> DatasetVersion | None:
        wanted: UUID | None = self.cleaned_data["dataset_version"]
        if wanted is None:
            return None
        found: DatasetVersion | None = self.data_rows.filter(pk=wanted).first()
        if found is None:
            raise ValidationError("There is no ready dataset version with this id.", code="does_not_exist")
        return found

    def plans(self) -> list[dict[str, Any]]:
        """What was chosen, each with the settings that its passes use."""
        given = self.cleaned_data
        return [
            {"passes": passes, **{
                name: given[name] for name, _, _, _, takers, _ in SETTINGS
                if given.get(name) is not None and set(takers) & set(passes)
            }}
            for passes in (name.split("+") for name in given["variants"])
        ]  # fmt: skip

    def add_refusal(self, refused: ValidationError) -> None:
        """Show what the service refuses beside the field that it is about."""
        if not hasattr(refused, "error_dict"):
            self.add_error(None, refused)
            return
        for field, errors in refused.error_dict.items():
            name = field.split(".")[-1] if field.startswith("variants.") else field
            self.add_error(name if name in self.fields else None, errors)


def _looks(version: ModelVersion) -> bool:
    """Whether convolutions are most of it: matrices of 8 bits alone bring it nothing, a student without normalisations much."""
    return any(column.get("type") == "image" for column in (version.signature or {}).get("inputs", ()))


def _choice(passes: tuple[str, ...], chosen: set[str]) -> dict[str, Any]:
    name = "+".join(passes)
    told = PASSES[passes[0]] if len(passes) == 1 else ""
    return {
        "value": name, "label": " → ".join(LABELS[each] for each in passes), "help": told, "checked": name in chosen,
    }  # fmt: skip
