"""Asking a deployment, from the web process: the inference server chooses who answers, and keeps the record."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from registry.models import ModelVersion

from . import client
from .models import Deployment, Variant


@dataclass(frozen=True)
class Answer:
    """``predictions`` in the order of the instances; ``request_id`` names this answer afterwards."""

    request_id: UUID
    variant: UUID
    version: UUID
    predictions: list[dict[str, Any]]


def predict(
    *, actor: User, deployment: Deployment, instances: list[dict[str, Any]], key: str | None = None,
    bearer: str | None = None,
) -> Answer:  # fmt: skip
    """Have the variant answer that the key belongs to. ``bearer``: see `client.predict`. Raises PermissionDenied and what
    `client.predict_by_deployment` does."""
    require(actor, "predict", deployment)
    told = client.predict_by_deployment(deployment.pk, deployment.revision, instances, key, bearer=bearer)
    return Answer(UUID(told["request_id"]), UUID(told["variant"]), UUID(told["version"]), told["predictions"])


def generate(
    *, actor: User, deployment: Deployment, instance: dict[str, Any], key: str | None = None, bearer: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """As `predict`, of one row by a language model, told while it is written: see `client.generate_by_deployment`."""
    require(actor, "predict", deployment)
    return client.generate_by_deployment(deployment.pk, deployment.revision, instance, key, bearer=bearer)


def telling_version(deployment: Deployment) -> ModelVersion | None:
    """The version whose inputs stand for the deployment's: that of the heaviest live variant."""
    live = Variant.objects.filter(deployment=deployment, removed_at=None, role=Variant.Role.LIVE)
    row = live.select_related("version__model__organization").order_by("-weight", "version__number").first()
    return row.version if row else None
