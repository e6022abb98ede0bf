"""Answering with a deployment: who answers, and the answer. The web side, without torch."""

import uuid
from dataclasses import dataclass
from typing import Any

from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry.models import ModelVersion

from . import client
from .assignment import assign
from .models import Deployment, Variant


@dataclass(frozen=True)
class Answer:
    """``predictions`` in the order of the instances; ``request_id`` names this answer afterwards."""

    request_id: uuid.UUID
    variant: uuid.UUID
    version: uuid.UUID
    predictions: list[dict[str, Any]]


def predict(*, actor: User, deployment: Deployment, instances: list[dict[str, Any]], key: str | None = None) -> Answer:
    """Have the variant answer that the key belongs to. Raises PermissionDenied, Conflict and what `client.predict` does."""
    require(actor, "predict", deployment)
    variant, version = answering(deployment, key)
    predictions = client.predict(version, instances)
    return Answer(uuid.uuid4(), variant, version, predictions)


def answering(deployment: Deployment, key: str | None) -> tuple[uuid.UUID, uuid.UUID]:
    """(variant, version) that answer a request with this key. Raises Conflict when the deployment is archived."""
    if deployment.state != Deployment.State.ACTIVE:
        raise Conflict(f"“{deployment.name}” is archived and does not answer.", code="archived")
    variant = uuid.UUID(assign(deployment.allocation, deployment.salt, key))
    version = Variant.objects.filter(pk=variant).values_list("version_id", flat=True).get()
    return variant, version


def telling_version(deployment: Deployment) -> ModelVersion | None:
    """The version whose inputs stand for the deployment's: that of the heaviest live variant."""
    live = Variant.objects.filter(deployment=deployment, removed_at=None, role=Variant.Role.LIVE)
    row = live.select_related("version__model__organization").order_by("-weight", "version__number").first()
    return row.version if row else None
