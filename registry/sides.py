"""What is compared with what: versions of one model, or of several of one organization, such as adapters and their base."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError

from dlplatform.accounts.models import User

from .diff import settings_of
from .models import ModelVersion, RegisteredModel
from .services import version_named

MOST_BESIDE = 10
MOST_RELATED = 100


def side_named(*, user: User, model: RegisteredModel, text: str) -> ModelVersion | None:
    """A version of the model by id, number or ref; by its id also one of another model that the person may see."""
    found = version_named(model=model, text=text)
    if found is None:
        with suppress(ValueError):
            rows = ModelVersion.objects.visible_to(user).select_related("model", "dataset_version__dataset")
            return rows.filter(pk=UUID(text), model__organization=model.organization_id).first()
    return found


def side_of(*, user: User, model: RegisteredModel, identifier: UUID) -> ModelVersion:
    """As `side_named`; ValidationError on `base` for an id that is none."""
    found = side_named(user=user, model=model, text=str(identifier))
    if found is None:
        text = "There is no version with this id in this organization."
        raise ValidationError({"base": ValidationError(text, code="does_not_exist")})
    return found


def related(user: User, version: ModelVersion) -> list[ModelVersion]:
    """Versions of other models to compare with: the base of an adapter and its other adapters, or the adapters over it."""
    base = version.base or version
    rows = ModelVersion.objects.visible_to(user).select_related("model")
    family = rows.filter(base=base) | rows.filter(pk=base.pk)
    return list(family.exclude(model=version.model_id).order_by("-created_at")[:MOST_RELATED])


def beside(user: User, identifiers: Sequence[UUID]) -> list[ModelVersion]:
    """Those of the versions that the person may see and that belong to the organization of the first, in the given order."""
    wanted = list(dict.fromkeys(identifiers))[:MOST_BESIDE]
    rows = ModelVersion.objects.visible_to(user).filter(pk__in=wanted)
    found = {one.pk: one for one in rows.select_related("model", "base__model", "dataset_version__dataset")}
    there = [found[one] for one in wanted if one in found]
    return [one for one in there if one.model.organization_id == there[0].model.organization_id]


def metrics_beside(versions: Sequence[ModelVersion]) -> list[dict[str, Any]]:
    """[{name, cells}]: a row for every metric that one of them has."""
    names = sorted({name for one in versions for name in one.metrics})
    return [{"name": name, "cells": [one.metrics.get(name) for one in versions]} for name in names]


def settings_beside(versions: Sequence[ModelVersion]) -> list[dict[str, Any]]:
    """[{name, cells}] of the settings in which they differ."""
    flat = [settings_of(one) for one in versions]
    rows = [
        {"name": name, "cells": [one.get(name) for one in flat]}
        for name in dict.fromkeys(n for one in flat for n in one)
    ]
    return [row for row in rows if len({str(cell) for cell in row["cells"]}) > 1]
