"""The protocol's extensions that tell what is served: Triton's repository index and statistics.

https://github.com/triton-inference-server/server/tree/main/docs/protocol, extension_model_repository and extension_statistics.
Nothing is loaded nor unloaded by it: what is served is what is deployed.
"""

from typing import Any
from uuid import UUID

from dlplatform.accounts.models import User
from dlplatform.accounts.organizations import resolve
from registry.serving.models import Deployment

from .deployments import Served, ServedVariant
from .gate import Target
from .metrics import Answered, Metrics
from .models import Models

NANOSECONDS = 1e9


def to_ask(user: User, target: Target) -> tuple[UUID, ...]:
    """The deployments that a caller may ask, of one organization if the target names one, by name."""
    rows = Deployment.objects.visible_to(user).filter(state=Deployment.State.ACTIVE)
    if target.organization is not None:
        rows = rows.filter(organization=resolve(user, target.organization))
    return tuple(rows.distinct().order_by("name").values_list("pk", flat=True))


def index(served: list[Served], models: Models, *, ready_only: bool) -> list[dict[str, str]]:
    """A line for every live variant."""
    lines = []
    for deployment, variant in _live(served):
        ready = models.ready(variant.version) is not None
        if ready or not ready_only:
            line = {"name": deployment.name, "version": str(variant.number), "state": "READY" if ready else "LOADING"}
            lines.append(line | {"reason": ""})
    return lines


def statistics(served: list[Served], metrics: Metrics) -> dict[str, Any]:
    """What live variants have answered since the server was started: in how long, and how often not."""
    answered = metrics.by_variant()
    lines = [_line(deployment, variant, answered.get(str(variant.id))) for deployment, variant in _live(served)]
    return {"model_stats": lines}


def _line(deployment: Served, variant: ServedVariant, told: Answered | None) -> dict[str, Any]:
    told = told or Answered()
    stats = {
        "success": {"count": told.count, "ns": round(told.seconds * NANOSECONDS)},
        "fail": {"count": told.failed, "ns": 0},
    }
    return {
        "name": deployment.name, "version": str(variant.number), "inference_count": told.count,
        "execution_count": told.count, "inference_stats": stats,
    }  # fmt: skip


def _live(served: list[Served]) -> list[tuple[Served, ServedVariant]]:
    return [
        (one, variant) for one in served for variant in sorted(one.live.values(), key=lambda variant: variant.number)
    ]
