"""The rows that a request's body names by their ids."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db.models import Model

from datasets.models import DatasetVersion
from dlplatform.accounts.models import User
from registry.models import ModelVersion

from .models import CodeBundle, Experiment

# {field: (rows, what they are called)}
NAMED: Final = {
    "dataset_version": (DatasetVersion.objects.select_related("dataset__organization"), "dataset version"),
    "experiment": (Experiment.objects.all(), "experiment"),
    "code": (CodeBundle.objects.select_related("organization"), "code"),
    "base_version": (ModelVersion.objects.select_related("model__organization", "base__model"), "version"),
}


def with_rows(user: User, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, with rows for ids; a field that is empty is left out.

    Raises ValidationError for what is not there or not visible.
    """
    wanted = {field: value for field, value in given.items() if field not in NAMED}
    return wanted | {field: row_named(user, field, given[field]) for field in NAMED if given.get(field) is not None}


def row_named(user: User, field: str, identifier: UUID) -> Model:
    """The row that a field names. Raises ValidationError for what is not there or not visible."""
    rows, called = NAMED[field]
    found: Model | None = rows.visible_to(user).filter(pk=identifier).first()
    if found is None:
        raise ValidationError({field: ValidationError(f"There is no {called} with this id.", code="does_not_exist")})
    return found
