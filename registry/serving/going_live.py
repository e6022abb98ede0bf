"""A version takes over in one step: in a deployment that serves its model already, or in a new one named after the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Exists, OuterRef, Prefetch, QuerySet

from dlplatform.accounts.access import allowed, may, require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry.availability import require_files
from registry.models import ModelVersion, RegisteredModel
from registry.optimizations import problems_of

from .assignment import shares
from .experiments.holding import Holder, holder_of, holders_of, name_of
from .experiments.services import shadows_beside
from .models import Deployment, Variant
from .naming import free_name
from .problems import in_sentences
from .services import MODEL_FILE, Wanted, change_variants, create_deployment

MOST_PLACES = 20
TRIES = 5  # for a name that another model's deployment takes at the same moment


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
        return _held(self.holder)


@dataclass(frozen=True)
class Choices:
    """What a person may do with a version in one click."""

    version: ModelVersion
    obstacle: str  # why it cannot answer anywhere; else empty
    places: list[Place]
    may_make: bool
    problems: str  # what speaks against a new deployment of it


def choices_of(user: User, version: ModelVersion) -> Choices:
    organization = version.model.organization
    found = allowed(user, "deploy", organization, serving_deployments(user, version))
    holders = holders_of(found)
    problems = in_sentences(problems_of(organization.pk, version.pk))
    return Choices(
        version=version,
        obstacle=obstacle_of(version),
        places=[_place(one, version, holders.get(one.pk), problems) for one in found],
        may_make=may(user, "deploy", organization),
        problems=problems,
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
    """The first of `_serving` by their names; with ``present``, their variants."""
    present = Variant.objects.filter(removed_at=None).select_related("version__model")
    rows = _serving(user, version).select_related("organization")
    rows = rows.prefetch_related(Prefetch("variants", queryset=present, to_attr="present"))
    return list(rows.order_by("name")[:MOST_PLACES])


def _serving(user: User, version: ModelVersion) -> "QuerySet[Deployment]":
    """Active ones with a version of the same model, of those the person sees."""
    using = Variant.objects.filter(removed_at=None, version__model=version.model_id).values("deployment")
    return Deployment.objects.visible_to(user).filter(
        organization=version.model.organization_id, state=Deployment.State.ACTIVE, pk__in=using
    )


def _place(deployment: Deployment, version: ModelVersion, holder: Holder | None, problems: str) -> Place:
    """``problems`` of the version; where it is in the deployment already, it was let in despite them."""
    variants: list[Variant] = deployment.present  # type: ignore[attr-defined]
    leaving = sorted({row.alias for row in _answering(variants) if row.alias and row.version_id != version.pk})
    return Place(
        deployment=deployment,
        answering=_told(deployment, variants),
        following=", ".join(leaving),
        alone=_alone(variants, version.pk),
        holder=holder,
        problems="" if _rows_of(variants, version) else problems,
    )


def _held(holder: Holder | None) -> str:
    return f"{name_of(holder)} is {holder.state} here: end it first." if holder else ""


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

    Whoever clicks twice has one: where one serves the model already, it is that, with this version if any has it. Raises as
    `create_deployment`, and Conflict for what cannot answer.
    """
    require(actor, "deploy", version.model.organization)
    _refuse_obstacle(version)
    # Of the model, not the version: clicks on two of its versions would make two deployments at once.
    RegisteredModel.objects.select_for_update(of=("self",)).get(pk=version.model_id)
    having = Variant.objects.filter(deployment=OuterRef("pk"), version=version.pk, removed_at=None)
    rows = _serving(actor, version).select_related("organization")
    if found := rows.order_by(Exists(having).desc(), "name").first():
        return found, False
    return _made(actor, version), True


def _made(actor: User, version: ModelVersion) -> Deployment:
    """Under the next free name, also where another model's deployment takes one at this moment."""
    organization = version.model.organization
    for _ in range(TRIES - 1):
        try:
            return _created(actor, version, free_name(organization, version.model.name))
        except ValidationError as error:
            if not _name_taken(error):
                raise
    return _created(actor, version, free_name(organization, version.model.name))


def _created(actor: User, version: ModelVersion, name: str) -> Deployment:
    return create_deployment(
        actor=actor, organization=version.model.organization, name=name, variants=[Wanted(version.pk)],
        reason=f"{version} goes live",
    )  # fmt: skip


def _name_taken(error: ValidationError) -> bool:
    named = error.error_dict.get("name", []) if hasattr(error, "error_dict") else []
    return any(one.code == "unique" for one in named)


def part_of(deployment: Deployment, version: ModelVersion) -> str:
    """What a version is in a deployment now, and what to do where it does not answer: a sentence or two."""
    told, advice = _part(list(deployment.variants.filter(removed_at=None)), version)
    if not advice:
        return f"{told}."
    held = _held(holder_of(deployment))  # nobody else changes the variants then
    return f"{told}. {held}" if held else f"{told}: {advice}."


def _part(variants: Sequence[Variant], version: ModelVersion) -> tuple[str, str]:
    ours = _rows_of(variants, version)
    if _alone(variants, version.pk):
        return f"{version} answers all its requests", ""
    if _answering(ours):
        return f"{version} answers a part of its requests", ""
    if any(row.role == Variant.Role.LIVE for row in ours):
        return f"{version} has the weight 0 in it and answers nobody", "give it a weight"
    if ours:
        return f"{version} is only a shadow in it and answers nobody", "choose “live, answers” as its role"
    return f"{version} is not in it", "add it to who answers"


def _rows_of(variants: Iterable[Variant], version: ModelVersion) -> list[Variant]:
    return [row for row in variants if row.version_id == version.pk]


def _refuse_obstacle(version: ModelVersion) -> None:
    if obstacle := obstacle_of(version):
        raise Conflict(obstacle, code="model_unusable")
