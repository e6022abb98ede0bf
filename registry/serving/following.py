"""Variants that follow an alias of their model: as it moves, the deployment is changed to its version, like by anybody else.

Pulled by a tick: the registry does not know what is deployed. What stands against the change (an experiment that holds the
deployment, a version that cannot answer) leaves the version before in place, is written down beside the variant, and is tried
again.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F, OuterRef, Q, QuerySet, Subquery

from dlplatform.api import Conflict
from registry.models import ModelVersion, Ref, RefMove

from .models import Deployment, Variant
from .services import Wanted, change_variants

SECONDS = 0.5

logger = logging.getLogger(__name__)


def tick() -> int:
    """Have every variant follow whose alias has moved; how many deployments were changed."""
    Variant.objects.filter(pk__in=_there_again().values("pk")).update(waiting="")
    behind = _behind().values_list("deployment_id", flat=True).order_by()
    return sum(follow(deployment) for deployment in set(behind))


def follow(deployment: UUID) -> bool:
    """Change one deployment to what its aliases name now; whether it was. What stands against it is written down."""
    found = Deployment.objects.select_related("organization").get(pk=deployment)
    try:
        return _follow(found)
    except (Conflict, ValidationError) as refusal:
        sentence = " ".join(refusal.messages) if isinstance(refusal, ValidationError) else str(refusal.detail)
        _tell_waiting(deployment, sentence)
    return False


@transaction.atomic
def _follow(deployment: Deployment) -> bool:
    Deployment.objects.select_for_update(of=("self",), no_key=True).get(pk=deployment.pk)
    behind = {row.pk: row for row in _behind().filter(deployment=deployment)}
    moving = {pk: row.target for pk, row in behind.items() if row.target is not None}  # type: ignore[attr-defined]
    for row in behind.values():
        if row.pk not in moving:
            _wait([row], f"The alias {row.alias} is gone; {row.version} goes on.")
    if not moving:
        return False
    present = Variant.objects.filter(deployment=deployment, removed_at=None)
    wanted = [Wanted(moving.get(row.pk, row.version_id), row.weight, row.role, row.arm, row.alias) for row in present]
    reason = "; ".join(_reason(behind[pk], version) for pk, version in moving.items())
    change_variants(actor=None, deployment=deployment, variants=wanted, reason=reason[:2000], by_platform=True)
    present.filter(removed_at=None).exclude(waiting="").update(waiting="")
    return True


def _behind() -> "QuerySet[Variant]":
    """Variants of active deployments whose alias names another version now (``target``), or none."""
    return _with_target().filter(Q(target=None, waiting="") | (Q(target__isnull=False) & ~Q(target=F("version"))))


def _there_again() -> "QuerySet[Variant]":
    """What waited for a change that is not needed any more: the alias came back."""
    return _with_target().exclude(waiting="").filter(target=F("version"))


def _with_target() -> "QuerySet[Variant]":
    named = Ref.objects.filter(kind=Ref.Kind.ALIAS, model=OuterRef("version__model"), name=OuterRef("alias"))
    rows = Variant.objects.filter(removed_at=None, deployment__state=Deployment.State.ACTIVE).exclude(alias="")
    return rows.annotate(target=Subquery(named.values("version")[:1])).select_related("version__model")


def _reason(variant: Variant, version: UUID) -> str:
    """As the log of the deployment tells it."""
    target = ModelVersion.objects.get(pk=version)
    moves = RefMove.objects.filter(model=target.model_id, kind=Ref.Kind.ALIAS, name=variant.alias, to_version=version)
    move = moves.select_related("actor").first()
    by = f" by {move.actor.username}" if move and move.actor else ""
    return f"alias {variant.alias} moved to v{target.number}{by}"


def _tell_waiting(deployment: UUID, sentence: str) -> None:
    _wait([row for row in _behind().filter(deployment=deployment) if row.waiting != sentence], sentence)


def _wait(rows: list[Variant], sentence: str) -> None:
    for row in rows:
        logger.warning("%s of deployment %s does not follow %s yet: %s", row, row.deployment_id, row.alias, sentence)
    Variant.objects.filter(pk__in=[row.pk for row in rows]).update(waiting=sentence)


@dataclass(frozen=True)
class Followed:
    """An alias that a variant can follow, and its version now."""

    alias: str
    version: ModelVersion

    @property
    def value(self) -> str:
        """As forms name it."""
        return f"{self.version.model_id}@{self.alias}"

    def __str__(self) -> str:
        return f"{self.version.model.name}, whatever {self.alias} is (now v{self.version.number})"


def aliases_of(models: Collection[UUID]) -> list[Followed]:
    """All aliases of these models."""
    rows = Ref.objects.filter(kind=Ref.Kind.ALIAS, model__in=models).select_related("version__model")
    return [Followed(row.name, row.version) for row in rows.order_by("model__name", "name")]


def version_named(models: "QuerySet[ModelVersion]", model: UUID, alias: str) -> UUID:
    """The version that an alias names; of what ``models`` lets see. Raises ValidationError on `alias`."""
    rows = Ref.objects.filter(kind=Ref.Kind.ALIAS, model=model, name=alias, version__in=models)
    version: UUID | None = rows.values_list("version_id", flat=True).first()
    if version is None:
        sentence = f"The model has no alias “{alias}”, or there is no such model."
        raise ValidationError({"alias": ValidationError(sentence, code="does_not_exist")})
    return version
