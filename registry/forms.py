"""Forms of the model pages: name and description, moving a ref, trying a model."""

import base64
import math
import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from .models import Ref
from .releases import BUMPS

LARGEST_INTEGER = 2**63
LARGEST_IMAGE = 5 * 1024 * 1024  # as base64 it still fits into what the inference process takes
IMAGE_KINDS = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff"
PREFIX = "input-"
ERROR_PLACE = re.compile(r"instances\.0(?:\.(.*))?", re.DOTALL)


class ModelForm(forms.Form):
    name = forms.CharField(max_length=120)
    description = forms.CharField(max_length=10_000, required=False, widget=forms.Textarea({"rows": 3}))


class HubImportForm(forms.Form):
    """A repository of the Hugging Face Hub, and the model that it becomes a version of."""

    repository = forms.CharField(max_length=200, help_text="As on the Hub: owner/name")
    revision = forms.CharField(max_length=200, required=False, help_text="Branch, tag or commit. Blank: main")
    token = forms.CharField(
        max_length=500, required=False, strip=True, widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="For a private repository; used for this import and not kept",
    )  # fmt: skip
    name = forms.CharField(max_length=120, required=False, label="Model", help_text="Blank: the repository's name")


class RefForm(forms.Form):
    kind = forms.ChoiceField(choices=Ref.Kind.choices, initial=Ref.Kind.ALIAS)
    name = forms.CharField(max_length=80)
    version = forms.UUIDField()
    expected = forms.UUIDField(required=False)
    reason = forms.CharField(max_length=2000, required=False)


class RollbackForm(forms.Form):
    kind = forms.ChoiceField(choices=Ref.Kind.choices)
    name = forms.CharField(max_length=80)
    to = forms.UUIDField(required=False)
    reason = forms.CharField(max_length=2000, required=False)


class CompareForm(forms.Form):
    base = forms.UUIDField()
    head = forms.UUIDField()
    dataset_version = forms.UUIDField(required=False)


class ReleaseForm(forms.Form):
    bump = forms.ChoiceField(choices=[(bump, bump) for bump in BUMPS])
    notes = forms.CharField(max_length=10_000, required=False)


class TryForm(forms.Form):
    """One field for each input column of a model, by position, since a column may have any name.

    ``examples`` are pictures by column, of training rows that the person may see: {path, read}. Where no file is chosen,
    the picture is sent.
    """

    def __init__(
        self, *args: Any, inputs: list[dict[str, Any]], examples: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.inputs = inputs
        self.examples = examples or {}
        for position, column in enumerate(inputs):
            field = _field(column)
            field.picture = self.examples.get(column["name"])  # type: ignore[attr-defined]
            self.fields[f"{PREFIX}{position}"] = field

    @staticmethod
    def example(inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """An image is no text: its example is shown beside the field."""
        return {
            f"{PREFIX}{position}": _shown(column.get("example"))
            for position, column in enumerate(inputs)
            if column["type"] != "image"
        }

    @property
    def has_images(self) -> bool:
        return any(column["type"] == "image" for column in self.inputs)

    def instance(self) -> dict[str, Any]:
        """The row as the model takes it; blank is a missing value."""
        return {
            column["name"]: self._value(column, self.cleaned_data.get(f"{PREFIX}{position}") or "")
            for position, column in enumerate(self.inputs)
        }

    def _value(self, column: dict[str, Any], given: Any) -> Any:
        if column["type"] != "image":
            return _value(column["type"], given)
        example = self.examples.get(column["name"])
        content = given.read() if given else example and example["read"]()
        return base64.b64encode(content).decode() if content else None

    def add_refusal(self, refused: ValidationError) -> None:
        """Show what the model says about `instances.0.COLUMN` beside that column's field."""
        if not hasattr(refused, "error_dict"):
            self.add_error(None, refused)
            return
        names = {column["name"]: f"{PREFIX}{position}" for position, column in enumerate(self.inputs)}
        for place, errors in refused.error_dict.items():
            matched = ERROR_PLACE.fullmatch(place)
            self.add_error(names.get(matched[1] or "") if matched else None, errors)


class ImageFileField(forms.FileField):
    """Any bytes of bounded size: the inference process decodes them, and says what is wrong with them."""

    widget = forms.FileInput({"accept": IMAGE_KINDS})

    def clean(self, data: Any, initial: Any = None) -> Any:
        if data is not None and getattr(data, "size", 0) > LARGEST_IMAGE:
            size = LARGEST_IMAGE // (1024 * 1024)
            raise ValidationError(f"Choose an image of at most {size} MB, or ask by the API.", code="too_large")
        return super().clean(data, initial)


def _field(column: dict[str, Any]) -> forms.Field:
    label = column["name"]
    if column["type"] == "image":
        return ImageFileField(required=False, label=label, allow_empty_file=False)
    if column["type"] == "boolean":
        choices = [("", "missing"), ("true", "true"), ("false", "false")]
        return forms.ChoiceField(choices=choices, required=False, label=label)
    if column["type"] in ("number", "integer"):
        return forms.CharField(
            required=False, label=label, help_text=_range(column),
            widget=forms.TextInput({"inputmode": "decimal", "autocomplete": "off"}), max_length=60,
        )  # fmt: skip
    hint = "ISO 8601, such as 2026-03-01T12:00:00Z" if column["type"] == "datetime" else ""
    widget = forms.Textarea({"rows": 2}) if column["type"] == "text" else forms.TextInput({"autocomplete": "off"})
    field = forms.CharField(required=False, label=label, help_text=hint, widget=widget, max_length=20_000, strip=False)
    field.known = column.get("categories") or []  # type: ignore[attr-defined]
    return field


def _range(column: dict[str, Any]) -> str:
    if column.get("minimum") is None:
        return ""
    return f"seen: {_short(column['minimum'])} to {_short(column['maximum'])}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(type_: str, text: str) -> Any:
    """What cannot be read as the type goes on as text: the model names the mistake."""
    if text == "":
        return None
    if type_ == "boolean":
        return text == "true"
    if type_ in ("number", "integer"):
        return _number(text)
    return text


def _number(text: str) -> Any:
    """Within what JSON can carry; infinities and the like go on as text."""
    for read in (int, float):
        try:
            value = read(text)
        except ValueError:
            continue
        if abs(value) < (LARGEST_INTEGER if read is int else math.inf):
            return value
    return text
