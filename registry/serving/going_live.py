"""A version takes over in one step: in a deployment that serves its model already, or in a new one named after the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Prefetch

from dlplatform.accounts.access import may, require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry.availability import require_files
from registry.models import ModelVersion
from registry.optimizations import problems_of

from .assignment import shares
from .experiments.holding import Holder, holder_of, name_of
from .experiments.services import shadows_beside
from .models import Deployment, Variant
from .naming import free_name
from .services import MODEL_FILE, Wanted, change_variants, create_deployment, measured_problems

MOST_PLACES = 20


@dataclass(frozen=True)
class Place:
    """A deployment that serves the model, and what stands against the version answering alone there."""

    deployment: Deployment
    answering: str  # who answers, with shares
    following: str  # the alias that would not be followed any more
    alone: bool  # it answers alone already
    holder: Holder | None
    problems: str  # what was measured against it, in sentences

    @property
    def held(self) -> str:
        return f"{name_of(self.holder)} is {self.holder.state} here: end it first." if self.holder else ""


@dataclass(frozen=True)
class Choices:
    """What a person may do with a version in one click."""

    version: ModelVersion
    obstacle: str  # why it cannot answer anywhere; else empty
    places: list[Place]
    may_make: bool
    problems: str  # what speaks against a new deployment of it


def choices_of(user: User, version: ModelVersion) -> Choices:
    found = [one for one in serving_deployments(user, version) if may(user, "deploy", one)]
    organization = version.model.organization
    told = problems_of(organization.pk, version.pk)
    return Choices(
        version=version,
        obstacle=obstacle_of(version),
        places=[_place(one, version) for one in found],
        may_make=may(user, "deploy", organization),
        problems=" ".join(one["sentence"] for one in told),
    )


def obstacle_of(version: ModelVersion) -> str:
    """Why it can answer nowhere, as a sentence; empty where it can."""
    if version.model.archived_at is not None:
        return f"The model “{version.model.name}” is archived; restore it first."
    if MODEL_FILE not in version.tree:
        return f"v{version.number} has no {MODEL_FILE}: it was not trained here, and other programs load it."
    try:
        require_files(version)
    except Conflict as conflict:
        return str(conflict.detail)
    return ""


def serving_deployments(user: User, version: ModelVersion) -> list[Deployment]:
    """Active ones with a version of the same model, of those the person sees; with ``present``, their variants."""
    present = Variant.objects.filter(removed_at=None).select_related("version__model")
    using = present.filter(version__model=version.model_id).values("deployment")
    rows = Deployment.objects.visible_to(user).filter(
        organization=version.model.organization_id, state=Deployment.State.ACTIVE, pk__in=using
    )
    rows = rows.select_related("organization").prefetch_related(
        Prefetch("variants", queryset=present, to_attr="present")
    )
    return list(rows.order_by("name")[:MOST_PLACES])


def _place(deployment: Deployment, version: ModelVersion) -> Place:
    variants: list[Variant] = deployment.present  # type: ignore[attr-defined]
    leaving = sorted({row.alias for row in _answering(variants) if row.alias and row.version_id != version.pk})
    return Place(
        deployment=deployment,
        answering=_told(deployment, variants),
        following=", ".join(leaving),
        alone=_alone(variants, version.pk),
        holder=holder_of(deployment),
        problems=measured_problems(deployment, {"version": version.pk}).get("version", ""),
    )


def _answering(variants: Iterable[Variant]) -> list[Variant]:
    return [row for row in variants if row.role == Variant.Role.LIVE and row.weight > 0]


def _alone(variants: Iterable[Variant], version: UUID) -> bool:
    return {row.version_id for row in _answering(variants)} == {version}


def _told(deployment: Deployment, variants: Iterable[Variant]) -> str:
    of_keys: Any = shares(deployment.allocation)
    answering = _answering(variants)
    if len(answering) == 1:
        return str(answering[0].version)
    return ", ".join(f"{row.version} ({100 * of_keys.get(str(row.pk), 0.0):.3g} %)" for row in answering)


@transaction.atomic
def go_live(*, actor: User, deployment: Deployment, version: ModelVersion, revision: int | None = None) -> Deployment:
    """The version takes all traffic of a deployment; its shadows stay. One change of the log, undone like any.

    Where it answers alone already nothing changes. Raises as `change_variants`, and Conflict for what cannot answer.
    """
    require(actor, "deploy", deployment)
    _refuse_obstacle(version)
    locked = Deployment.objects.select_for_update(of=("self",)).select_related("organization").get(pk=deployment.pk)
    if locked.state == Deployment.State.ACTIVE and _alone(locked.variants.filter(removed_at=None), version.pk):
        return locked
    return change_variants(
        actor=actor, deployment=locked, variants=[Wanted(version.pk), *shadows_beside(locked, (version.pk,))],
        reason=f"{version} goes live", revision=revision,
    )  # fmt: skip


@transaction.atomic
def deploy(*, actor: User, version: ModelVersion) -> tuple[Deployment, bool]:
    """A deployment of this version alone, named after its model; whether it was made.

    Whoever clicks twice has one: where one serves the model already, it is that. Raises as `create_deployment`, and Conflict
    for what cannot answer.
    """
    require(actor, "deploy", version.model.organization)
    _refuse_obstacle(version)
    ModelVersion.objects.select_for_update(of=("self",), no_key=True).get(pk=version.pk)
    if found := serving_deployments(actor, version):
        return found[0], False
    organization = version.model.organization
    made = create_deployment(
        actor=actor, organization=organization, name=free_name(organization, version.model.name),
        variants=[Wanted(version.pk)], reason=f"{version} goes live",
    )  # fmt: skip
    return made, True


def _refuse_obstacle(version: ModelVersion) -> None:
    if obstacle := obstacle_of(version):
        raise Conflict(obstacle, code="model_unusable")
