"""Answering with a deployment: who answers, the answer, and its record. The web side, without torch."""

import hashlib
import random
import time
import uuid
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.http import Http404
from django.utils import timezone
from rest_framework.exceptions import APIException

from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry.models import ModelVersion

from . import client, prediction_log
from .assignment import assign, shares
from .models import Deployment, PredictionRecord, Variant


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
    variant = answering(deployment, key)
    request_id, began = uuid.uuid4(), time.perf_counter()
    predictions, error = None, ""
    try:
        predictions = client.predict(variant.version_id, instances)
    except (ValidationError, APIException, Http404) as refusal:
        error = getattr(refusal, "default_code", "invalid" if isinstance(refusal, ValidationError) else "not_found")
        raise
    finally:
        if random.random() < deployment.sample_rate:  # noqa: S311 - a sample, no secret
            prediction_log.buffer.add(
                PredictionRecord(
                    request_id=request_id, deployment_id=deployment.pk, variant_id=variant.pk, key=key or "",
                    revision=deployment.revision, propensity=shares(deployment.allocation)[str(variant.pk)],
                    instances=without_images(instances, variant.version.signature), predictions=predictions,
                    milliseconds=(time.perf_counter() - began) * 1000, error=error or "", at=timezone.now(),
                )
            )  # fmt: skip
    return Answer(request_id, variant.pk, variant.version_id, predictions)


def answering(deployment: Deployment, key: str | None) -> Variant:
    """The variant that answers a request with this key. Raises Conflict when the deployment is archived."""
    if deployment.state != Deployment.State.ACTIVE:
        raise Conflict(f"“{deployment.name}” is archived and does not answer.", code="archived")
    chosen = uuid.UUID(assign(deployment.allocation, deployment.salt, key))
    return Variant.objects.select_related("version").only("version__signature").get(pk=chosen)


def without_images(instances: list[dict[str, Any]], signature: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows as the log keeps them: an image would be most of it, and is kept as the SHA-256 of its text."""
    images = [column["name"] for column in signature.get("inputs", []) if column["type"] == "image"]
    if not images:
        return instances
    return [row | {name: _hashed(row[name]) for name in images if isinstance(row.get(name), str)} for row in instances]


def _hashed(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def telling_version(deployment: Deployment) -> ModelVersion | None:
    """The version whose inputs stand for the deployment's: that of the heaviest live variant."""
    live = Variant.objects.filter(deployment=deployment, removed_at=None, role=Variant.Role.LIVE)
    row = live.select_related("version__model__organization").order_by("-weight", "version__number").first()
    return row.version if row else None
