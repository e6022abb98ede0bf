"""What changes in deployments. The only writers; every change is a row of the log and can be taken back."""

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from dlplatform import events
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import Organization, TenantQuerySet, User
from dlplatform.accounts.names import name_taken, unique_name
from dlplatform.api import Conflict
from registry.availability import require_files
from registry.models import ModelVersion, RegisteredModel

from .assignment import reallocate
from .experiments.holding import Holder, refuse_held
from .models import Deployment, DeploymentChange, Variant
from .naming import check_name, claim_name, namesakes, taken
from .problems import refuse_problems
from .refusing import refused
from .states import (
    DETAILS,
    answers_as,
    details_in,
    differs_in_description_alone,
    own_details,
    present_variants,
    state_of,
    target_of,
)

MOST_VARIANTS = 20
HEAVIEST = 1e6
MODEL_FILE = "model.json"  # what the inference process can load


@dataclass(frozen=True)
class Wanted:
    """A variant as it shall be."""

    version: UUID
    weight: float = 1.0
    role: str = Variant.Role.LIVE
    arm: str = ""  # only an experiment has a version twice
    alias: str | None = None  # that it follows from now on; None: as its variant does already


@transaction.atomic
def create_deployment(
    *, actor: User, organization: Organization, name: str, variants: Sequence[Wanted], description: str = "",
    reason: str = "", despite_problems: bool = False,
) -> Deployment:  # fmt: skip
    """A deployment that answers at once. Raises ValidationError, PermissionDenied, Conflict.

    ``despite_problems``: also versions that were measured to be slower, bigger or worse than what they were made from;
    then a reason must be given.
    """
    require(actor, "deploy", organization)
    check_name(name)
    if namesakes(organization, name).exists():
        raise name_taken(taken(name))
    _check_variants(variants)
    # The models before the name: whoever deploys by a click has locked the model when they insert theirs.
    _lock_versions(actor, organization.pk, variants)
    with unique_name(taken(name)):
        deployment = Deployment.objects.create(
            organization=organization, name=name, description=description, created_by=actor, salt=secrets.token_hex(16)
        )
    audit.record(actor, "deployment.create", deployment, organization, name=name)
    empty = {"state": Deployment.State.ACTIVE, "variants": [], "allocation": []}
    _refuse_problems(deployment, variants, despite_problems, reason)
    _allocate(deployment, _write_variants(deployment, variants))
    _log(actor, deployment, empty, reason)
    return deployment


@transaction.atomic
def change_variants(
    *, actor: User | None, deployment: Deployment, variants: Sequence[Wanted], reason: str = "",
    revision: int | None = None, holder: Holder | None = None, by_platform: bool = False,
    despite_problems: bool = False,
) -> Deployment:  # fmt: skip
    """Set versions, weights and roles. With ``revision`` only if that is still the newest. Raises Conflict else.

    ``holder``: the experiment or rollout on whose behalf it is done; while one holds the deployment nobody else may. No
    ``actor``: the platform itself, for a holder that a person started, or (``by_platform``) as an alias was moved that a
    variant follows. ``despite_problems``: see `create_deployment`; what is in the deployment already was let in.
    """
    locked = _locked(actor, deployment, revision, holder, by_platform=by_platform)
    with _one_row(actor, locked, reason):
        let_in = actor is None and not by_platform  # a holder goes on, or back, with what it was let have at its start
        _change_variants(actor, locked, variants, reason, despite=despite_problems, let_in=let_in)
    return locked


@transaction.atomic
def change_deployment(
    *, actor: User, deployment: Deployment, archived: bool | None = None, variants: Sequence[Wanted] | None = None,
    details: Mapping[str, Any] | None = None, reason: str = "", revision: int | None = None,
    despite_problems: bool = False,
) -> Deployment:  # fmt: skip
    """All that is given as one row of the log, which one undo takes back; or nothing where a part is refused.

    ``details``: see `set_details`. Raises what the verbs of the parts do.
    """
    details = details or {}
    held_back = archived is not None or variants is not None or "sample_rate" in details
    locked = _locked(actor, deployment, revision, free=held_back)
    with _one_row(actor, locked, reason):
        if archived is not None:
            _archive(actor, locked, archived, variants or ())
        if variants is not None:
            _change_variants(actor, locked, variants, reason, despite=despite_problems)
        _change_details(actor, locked, details)
    return locked


@transaction.atomic
def set_details(
    *, actor: User, deployment: Deployment, reason: str = "", revision: int | None = None, **details: Any
) -> Deployment:
    """Change ``description`` or ``sample_rate``: nobody gets another answer, and it is a row of the log like any change.

    With ``revision`` only if both are still what they were then; who answers may have moved, as a bandit does every minute.
    Raises Conflict else, and for the rate while an experiment or a canary needs the whole log; ValidationError on
    `sample_rate`.
    """
    locked = _locked(actor, deployment, None, free="sample_rate" in details)
    _refuse_other_details(locked, revision)
    with _one_row(actor, locked, reason):
        _change_details(actor, locked, details)
    return locked


def set_archived(
    *, actor: User, deployment: Deployment, archived: bool, reason: str = "", revision: int | None = None
) -> Deployment:
    """Stop answering and let the versions go, or answer again as before."""
    return change_deployment(actor=actor, deployment=deployment, archived=archived, reason=reason, revision=revision)


@transaction.atomic
def undo_change(
    *, actor: User, deployment: Deployment, change: DeploymentChange | None = None, reason: str = "",
    revision: int | None = None,
) -> Deployment:  # fmt: skip
    """Go back to what was before a change, by default the newest: state, variants, details, and who gets which keys."""
    locked = _locked(actor, deployment, revision, free=False)
    undone = change or locked.changes.first()
    if undone is None or not undone.before["variants"]:
        refuse_held(locked)
        raise Conflict("There is nothing before the creation to go back to; archive it instead.", code="nothing_before")
    before = state_of(locked)
    target = target_of(undone, before)
    if not differs_in_description_alone(target, before):
        refuse_held(locked)
    if target == before:
        return locked
    if answers_as(target, before):
        _write_details(locked, {name: target[name] for name in DETAILS if target[name] != before[name]})
    else:
        _restore(actor, locked, target)
    _log(actor, locked, before, reason or f"Back to what was before change {undone.revision}", undoes=undone)
    return locked


def change_of(*, deployment: Deployment, revision: int) -> DeploymentChange:
    """The change of that number; ValidationError on `change` when there is none."""
    found = DeploymentChange.objects.filter(deployment=deployment, revision=revision).first()
    if found is None:
        raise refused("change", f"There is no change number {revision}.", "does_not_exist")
    return found


def _restore(actor: User, deployment: Deployment, target: dict[str, Any]) -> None:
    wanted = [
        Wanted(UUID(one["version"]), one["weight"], one["role"], one.get("arm", ""), one["alias"])
        for one in target["variants"]
    ]
    if target["state"] == Deployment.State.ACTIVE:
        _lock_versions(actor, deployment.organization_id, wanted)
        claim_name(deployment)
    _write_variants(deployment, wanted)
    deployment.allocation = target["allocation"]
    _write_details(deployment, details_in(target))
    _set_state(deployment, target["state"])


def _change_details(actor: User, deployment: Deployment, details: Mapping[str, Any]) -> None:
    if not details:
        return
    if not 0 <= details.get("sample_rate", 0) <= 1:
        raise refused("sample_rate", "Give a share from 0 to 1.")
    now = own_details(deployment)
    if any(now[name] != value for name, value in details.items()):
        _write_details(deployment, details)
        audit.record(actor, "deployment.details", deployment, deployment.organization, **details)


def _write_details(deployment: Deployment, details: Mapping[str, Any]) -> None:
    for field, value in details.items():
        setattr(deployment, field, value)
    deployment.save(update_fields=list(details))


# --- the steps ----------------------------------------------------------------------------------------


def _locked(
    actor: User | None, deployment: Deployment, revision: int | None, holder: Holder | None = None, *,
    by_platform: bool = False, free: bool = True,
) -> Deployment:  # fmt: skip
    """Its row, locked. ``free``: only where nobody else than ``holder`` holds it."""
    if actor is not None or (holder is None and not by_platform):
        require(actor, "deploy", deployment)  # type: ignore[arg-type]
    locked = Deployment.objects.select_for_update(of=("self",)).select_related("organization").get(pk=deployment.pk)
    if free:
        refuse_held(locked, holder)
    _refuse_moved(locked, revision)
    return locked


def require_active(deployment: Deployment) -> None:
    """Raise Conflict for an archived one."""
    if deployment.state != Deployment.State.ACTIVE:
        raise Conflict(f"“{deployment.name}” is archived; restore it first.", code="archived")


def _refuse_moved(locked: Deployment, revision: int | None) -> None:
    if revision is not None and revision != locked.revision:
        raise Conflict(
            f"It was changed meanwhile: the newest change is number {locked.revision}, not {revision}.", code="moved"
        )


def _refuse_other_details(locked: Deployment, revision: int | None) -> None:
    """As `_refuse_moved`, where only the details count: the first change since ``revision`` tells what they were."""
    if revision is None or revision == locked.revision:
        return
    since = locked.changes.filter(revision__gt=revision).order_by("revision").first()
    now = own_details(locked)
    if since is None or any(since.before.get(name, now[name]) != now[name] for name in DETAILS):
        _refuse_moved(locked, revision)


@contextmanager
def _one_row(actor: User | None, locked: Deployment, reason: str) -> Iterator[None]:
    """What is changed within is one row of the log; none where all is as it was."""
    before = state_of(locked)
    yield
    if state_of(locked) != before:
        _log(actor, locked, before, reason)


def _archive(actor: User, deployment: Deployment, archived: bool, coming: Sequence[Wanted] = ()) -> None:
    """``coming``: the variants that it gets in the same transaction; their models too are locked before the name is taken."""
    wanted = Deployment.State.ARCHIVED if archived else Deployment.State.ACTIVE
    if deployment.state == wanted:
        return
    if not archived:
        present = [Wanted(row.version_id) for row in present_variants(deployment)]
        _lock_models(deployment.organization_id, [*present, *coming])
        _lock_versions(actor, deployment.organization_id, present)
        claim_name(deployment)
    _set_state(deployment, wanted)


def _refuse_problems(deployment: Deployment, variants: Sequence[Wanted], despite: bool, reason: str) -> None:
    named = {f"variants.{position}.version": one.version for position, one in enumerate(variants)}
    refuse_problems(deployment, named, despite=despite, reason=reason)


def _change_variants(
    actor: User | None, deployment: Deployment, variants: Sequence[Wanted], reason: str, *, despite: bool,
    let_in: bool = False,
) -> None:  # fmt: skip
    """``let_in``: nobody asks once more what was measured against them."""
    require_active(deployment)
    if not let_in:
        _refuse_problems(deployment, variants, despite, reason)
    _check_variants(variants)
    _lock_versions(actor, deployment.organization_id, variants)
    _allocate(deployment, _write_variants(deployment, variants))


def _allocate(deployment: Deployment, live: dict[str, float]) -> None:
    allocation = [(end, variant) for end, variant in deployment.allocation]
    deployment.allocation = [list(part) for part in reallocate(allocation, live)]
    deployment.save(update_fields=["allocation"])


def _check_variants(variants: Sequence[Wanted]) -> None:
    if not variants or len(variants) > MOST_VARIANTS:
        raise refused("variants", f"Give from 1 to {MOST_VARIANTS} variants.", "invalid")
    if len({(one.version, one.arm) for one in variants}) < len(variants):
        raise refused("variants", "Name each version once.", "unique")
    for position, one in enumerate(variants):
        if not (math.isfinite(one.weight) and 0 <= one.weight <= HEAVIEST):
            raise refused(f"variants.{position}.weight", f"Give a weight from 0 to {HEAVIEST:,.0f}.", "invalid")
        if one.role not in Variant.Role.values:
            raise refused(f"variants.{position}.role", "Choose live or shadow.", "invalid")
    if not any(one.weight > 0 for one in variants if one.role == Variant.Role.LIVE):
        raise refused("variants", "One live variant needs a weight above 0: somebody has to answer.", "nobody_answers")


def _lock_versions(actor: User | None, organization: UUID, variants: Sequence[Wanted]) -> None:
    """Hold off whoever deletes files of these versions; raise for what cannot be served from here."""
    rows = _lock_models(organization, variants)
    versions = [one.version for one in variants]
    seen = rows if actor is None else rows.visible_to(actor)
    found = {row.pk: row for row in seen.select_related("model")}
    for position, version in enumerate(versions):
        _check_version(found.get(version), position)
    tasks = {row.task for row in found.values()}
    if len(tasks) > 1:
        raise refused("variants", f"All variants must have one task, not {', '.join(sorted(tasks))}.", "task_mismatch")


def _lock_models(organization: UUID, variants: Sequence[Wanted]) -> TenantQuerySet:
    """Of these versions, which it gives. In a transaction it comes behind the deployment's row and before its name is written,
    of all models at once: without one order, two wait for each other."""
    rows = ModelVersion.objects.filter(pk__in=[one.version for one in variants], model__organization_id=organization)
    models = set(rows.values_list("model_id", flat=True))
    list(RegisteredModel.objects.select_for_update().filter(pk__in=models).order_by("pk"))
    return rows


def _check_version(version: ModelVersion | None, position: int) -> None:
    place = f"variants.{position}.version"
    if version is None:
        raise refused(place, "The organization has no model version with this id.", "does_not_exist")
    require_files(version)
    if MODEL_FILE not in version.tree:
        sentence = f"v{version.number} has no {MODEL_FILE}: it was not trained here, and other programs load it."
        raise refused(place, sentence, "model_unusable")


def _write_variants(deployment: Deployment, variants: Sequence[Wanted]) -> dict[str, float]:
    """Write the rows; the weights of the live ones by the ids of their variants."""
    rows = {(row.version_id, row.arm): row for row in Variant.objects.filter(deployment=deployment)}
    gone = [rows[place].pk for place in set(rows) - {(one.version, one.arm) for one in variants}]
    Variant.objects.filter(pk__in=gone, removed_at=None).update(removed_at=timezone.now())
    live = {}
    for one in variants:
        row = rows.get((one.version, one.arm)) or Variant(deployment=deployment, version_id=one.version, arm=one.arm)
        alias = one.alias if one.alias is not None else "" if row.removed_at else row.alias
        if alias != row.alias:
            row.alias, row.waiting = alias, ""
        row.weight, row.role, row.removed_at = float(one.weight), one.role, None
        row.save()
        if one.role == Variant.Role.LIVE:
            live[str(row.pk)] = row.weight
    return live


def _set_state(deployment: Deployment, state: str) -> None:
    deployment.state = state
    with unique_name(taken(deployment.name)):
        deployment.save(update_fields=["state", "allocation"])


def _log(
    actor: User | None,
    deployment: Deployment,
    before: dict[str, Any],
    reason: str,
    undoes: DeploymentChange | None = None,
) -> None:
    deployment.revision += 1
    deployment.save(update_fields=["revision"])
    DeploymentChange.objects.create(
        deployment=deployment, revision=deployment.revision, before=before, after=state_of(deployment), actor=actor,
        reason=reason, undoes=undoes,
    )  # fmt: skip
    audit.record(actor, "deployment.change", deployment, deployment.organization, revision=deployment.revision)
    transaction.on_commit(
        lambda: events.publish_state(
            deployment.organization_id, "deployment", deployment.pk, deployment.state, deployment.name
        )
    )
