"""What changes in the registry: models, commits, refs. The only writers."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from datasets.models import DatasetVersion
from dlplatform import events
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import Organization, User
from dlplatform.accounts.names import name_taken, unique_name
from dlplatform.api import Conflict
from dlplatform.objects.store import ObjectStore

from . import availability, history, releases, trees
from .commits import digest_of, identifier_of
from .models import ModelVersion, Ref, RefMove, RegisteredModel, Release, VersionParent

VERSIONS_LOOKED_AT = 20
REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
NUMBER = re.compile(r"v?([1-9]\d{0,8})")
RIGHT_TO_MOVE = {Ref.Kind.BRANCH: "model.write", Ref.Kind.TAG: "ref.move", Ref.Kind.ALIAS: "ref.move"}


def object_store(organization: UUID) -> ObjectStore:
    return ObjectStore("models", organization)


@transaction.atomic
def create_model(*, actor: User, organization: Organization, name: str, description: str = "") -> RegisteredModel:
    require(actor, "model.write", organization)
    if _living_namesakes(organization, name).exists():
        raise name_taken(_taken(name))
    with unique_name(_taken(name)):
        model = RegisteredModel.objects.create(
            organization=organization, name=name, description=description, created_by=actor
        )
    audit.record(actor, "model.create", model, organization, name=name)
    return model


def model_named(*, actor: User, organization: Organization, name: str) -> RegisteredModel:
    """The model of that name, made now when there is none. Of two who make it at once the second gets the first's."""
    found = _living_namesakes(organization, name).first()
    if found is not None:
        return found
    try:
        return create_model(actor=actor, organization=organization, name=name)
    except ValidationError:
        return _living_namesakes(organization, name).get()


def _living_namesakes(organization: Organization, name: str | None) -> "QuerySet[RegisteredModel]":
    return RegisteredModel.objects.filter(organization=organization, name=name, archived_at=None)


def _taken(name: str) -> str:
    return f"There is a model “{name}” already."


@transaction.atomic
def update_model(*, actor: User, model: RegisteredModel, **changes: str) -> RegisteredModel:
    """Change name or description."""
    require(actor, "model.write", model)
    name = changes.get("name")
    if name and _living_namesakes(model.organization, name).exclude(pk=model.pk).exists():
        raise name_taken(_taken(name))
    for field, value in changes.items():
        setattr(model, field, value)
    with unique_name(_taken(model.name)):
        model.save(update_fields=list(changes))
    audit.record(actor, "model.change", model, model.organization, **changes)
    return model


@transaction.atomic
def set_model_archived(*, actor: User, model: RegisteredModel, archived: bool) -> RegisteredModel:
    """Take a model out of the lists, or bring it back; nothing is lost either way."""
    require(actor, "model.delete", model)
    if not archived:
        availability.require_living(model)
        _free_name(model)
    model.archived_at = timezone.now() if archived else None
    model.save(update_fields=["archived_at"])
    audit.record(actor, "model.archive" if archived else "model.restore", model, model.organization)
    return model


def _free_name(model: RegisteredModel) -> None:
    if _living_namesakes(model.organization, model.name).exclude(pk=model.pk).exists():
        raise Conflict(f"Another model is named “{model.name}” now; rename it first.", code="name_taken")


def store_directory(
    organization: UUID,
    directory: Path,
    *,
    like: Mapping[str, str] | None = None,
    beat: Callable[[int], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Put every file of a package into the object store, all or none; the tree that names them.

    ``like`` is {path: SHA-256} of an earlier version, see ``earlier_files``: what is alike is stored as a difference.
    ``beat`` is told of the work as it goes on, see `objects.writing.Batch`.
    """
    files = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    earlier = like or {}
    stored = object_store(organization).put_files([(path, earlier.get(name)) for name, path in files.items()], beat)
    return {name: {"sha256": one.sha256, "size": one.size} for name, one in zip(files, stored, strict=True)}


def earlier_files(*, organization: Organization, name: str, branch: str = "main") -> dict[str, str]:
    """{path: SHA-256} of a model's files: of the branch's head, and what that lacks of the newest versions that have it."""
    versions = ModelVersion.objects.filter(model__organization=organization, model__name=name, model__archived_at=None)
    head = versions.filter(refs__kind=Ref.Kind.BRANCH, refs__name=branch).values_list("tree", flat=True)
    newest = versions.order_by("-number").values_list("tree", flat=True)[:VERSIONS_LOOKED_AT]
    found: dict[str, str] = {}
    for tree in [*head, *newest]:
        found = {path: entry["sha256"] for path, entry in tree.items()} | found
    return found


@transaction.atomic
def commit_version(
    *,
    actor: User,
    model: RegisteredModel,
    tree: dict[str, dict[str, Any]],
    task: str,
    signature: dict[str, Any],
    metrics: dict[str, Any],
    lineage: dict[str, Any],
    message: str,
    dataset_version: DatasetVersion | None = None,
    parents: Sequence[ModelVersion] | None = None,
    branch: str = "main",
    base: ModelVersion | None = None,
) -> ModelVersion:
    """Add an immutable version and move the branch to it. Parents default to the branch's head.

    ``base`` is the version that an adapter belongs to.
    """
    require(actor, "model.write", model)
    availability.require_living(RegisteredModel.objects.select_for_update().get(pk=model.pk))
    if parents is None:
        head = Ref.objects.filter(model=model, kind=Ref.Kind.BRANCH, name=branch).select_related("version").first()
        parents = [head.version] if head else []
    created_at = timezone.now()
    content = {
        "model": str(model.pk), "tree": tree, "parents": [parent.digest for parent in parents],
        "author": str(actor.pk), "time": created_at.isoformat(), "message": message, "task": task,
        "signature": signature, "metrics": metrics, "lineage": lineage,
        "dataset_version": str(dataset_version.pk) if dataset_version else None,
        **({"base": base.digest} if base else {}),
    }  # fmt: skip
    digest = digest_of(content)
    number = (model.versions.order_by("-number").values_list("number", flat=True).first() or 0) + 1
    version = ModelVersion.objects.create(
        id=identifier_of(digest), model=model, number=number, digest=digest, tree=tree, message=message,
        author=actor, task=task, signature=signature, metrics=metrics, lineage=lineage,
        dataset_version=dataset_version, created_at=created_at, base=base,
    )  # fmt: skip
    VersionParent.objects.bulk_create(
        VersionParent(child=version, parent=parent, position=position) for position, parent in enumerate(parents)
    )
    _point(actor, model, Ref.Kind.BRANCH, branch, version, reason=message)
    audit.record(actor, "version.commit", version, model.organization, number=number, digest=digest)
    return version


@transaction.atomic
def commit_files(
    *,
    actor: User,
    model: RegisteredModel,
    message: str,
    added: Mapping[str, dict[str, Any]],
    deleted: Collection[str] = (),
    branch: str = "main",
    expected: str | None = None,
    lineage: dict[str, Any] | None = None,
) -> ModelVersion:
    """Add a version whose tree is that of the branch with files added and taken away; no change makes no version.

    ``expected`` is (the beginning of) the digest that the branch is expected at: Conflict `ref_moved` otherwise. What
    is known of the model stays known while its package stays the same.
    """
    require(actor, "model.write", model)
    RegisteredModel.objects.select_for_update().get(pk=model.pk)
    head = ModelVersion.objects.filter(model=model, refs__kind=Ref.Kind.BRANCH, refs__name=branch).first()
    if head is None and branch != "main":
        raise ValidationError(
            {"branch": ValidationError(f"There is no branch “{branch[:80]}”.", code="does_not_exist")}
        )
    if expected is not None and not (head and head.digest.startswith(expected)):
        raise Conflict(f"“{branch}” was moved meanwhile; look at what is new and try again.", code="ref_moved")
    tree = trees.changed(head.tree if head else {}, added, deleted)
    if head and tree == head.tree:
        return head
    known = head if head and trees.same_model(head.tree, tree) else None
    return commit_version(
        actor=actor, model=model, tree=tree, message=message, branch=branch, task=known.task if known else "",
        signature=known.signature if known else {}, metrics=known.metrics if known else {},
        lineage=_inherited(known) | (lineage or {}),
        dataset_version=known.dataset_version if known else None,
    )  # fmt: skip


def _inherited(known: ModelVersion | None) -> dict[str, Any]:
    """What a commit of the same package keeps of its parent's lineage; restoring an earlier version was the parent's."""
    lineage = known.lineage if known else {}
    return {name: value for name, value in lineage.items() if name != "restores"}


@transaction.atomic
def move_ref(
    *,
    actor: User,
    model: RegisteredModel,
    kind: str,
    name: str,
    version: ModelVersion,
    reason: str = "",
    expected: UUID | None = None,
    check_expected: bool = False,
) -> Ref:
    """Point a ref at a version, making it when new. Compare-and-set when ``check_expected``.

    Raises Conflict when a tag would move or the ref is not where the caller expects it.
    """
    require(actor, RIGHT_TO_MOVE[Ref.Kind(kind)], model)
    _check_name(name)
    if version.model_id != model.pk:
        raise ValidationError(
            {"version": ValidationError("This version belongs to another model.", code="does_not_exist")}
        )
    RegisteredModel.objects.select_for_update().get(pk=model.pk)
    version.refresh_from_db(fields=["deleted_at"])
    availability.require_files(version)
    current = Ref.objects.filter(model=model, kind=kind, name=name).first()
    if current and kind == Ref.Kind.TAG and current.version_id != version.pk:
        raise Conflict(f"The tag “{name}” exists and tags never move; choose another name.", code="tag_exists")
    if check_expected and (current.version_id if current else None) != expected:
        raise Conflict(f"“{name}” was moved meanwhile; load the page again and decide anew.", code="ref_moved")
    return _point(actor, model, kind, name, version, reason)


@transaction.atomic
def delete_ref(*, actor: User, model: RegisteredModel, kind: str, name: str, reason: str = "") -> None:
    """Remove a branch or an alias; tags stay. The log keeps where it pointed."""
    require(actor, "ref.move", model)
    RegisteredModel.objects.select_for_update().get(pk=model.pk)
    ref = Ref.objects.filter(model=model, kind=kind, name=name).first()
    if ref is None:
        raise ValidationError({"name": ValidationError(f"There is no {kind} “{name[:80]}”.", code="does_not_exist")})
    if kind == Ref.Kind.TAG:
        raise Conflict("Tags are permanent.", code="tag_exists")
    RefMove.objects.create(
        model=model, kind=kind, name=name, from_version=ref.version, to_version=None, actor=actor, reason=reason
    )
    ref.delete()
    audit.record(actor, "ref.delete", model, model.organization, kind=kind, name=name)


@transaction.atomic
def release_version(*, actor: User, version: ModelVersion, bump: str | None = None, notes: str = "") -> Release:
    """Give a version the next semantic number, as a tag that never moves, with the changelog line it deserves.

    ``bump`` may be greater than what the signature demands, not less: ValidationError.
    """
    model = version.model
    require(actor, "ref.move", model)
    RegisteredModel.objects.select_for_update().get(pk=model.pk)
    released = Release.objects.filter(version=version).first()
    if released:
        raise Conflict(f"v{version.number} is released as {released.number} already.", code="released")
    proposed = releases.proposal(version, bump)
    if proposed.base and bump and releases.BUMPS.index(bump) < releases.BUMPS.index(proposed.bump):
        reasons = "; ".join(proposed.reasons)
        raise ValidationError(
            {"bump": ValidationError(f"This needs a {proposed.bump} release: {reasons}.", code="too_small")}
        )
    move_ref(
        actor=actor, model=model, kind=Ref.Kind.TAG, name=proposed.number, version=version, reason=notes or "Released"
    )
    release = Release.objects.create(
        model=model, version=version, number=proposed.number, bump=bump or proposed.bump, base=proposed.base,
        changes=releases.changelog_line(proposed, version), notes=notes, released_by=actor,
    )  # fmt: skip
    audit.record(actor, "version.release", version, model.organization, number=proposed.number)
    return release


@transaction.atomic
def roll_back(
    *, actor: User, model: RegisteredModel, kind: str, name: str, to: ModelVersion | None = None, reason: str = ""
) -> Ref:
    """Take a ref back to an earlier version, by default to where it pointed before.

    An alias moves back. A branch gets a new version with the earlier one's tree, so that its history stays; either
    way weights, preprocessing, card and all else return together, for they are one tree.
    """
    require(actor, RIGHT_TO_MOVE[Ref.Kind(kind)], model)
    RegisteredModel.objects.select_for_update().get(pk=model.pk)
    ref = Ref.objects.filter(model=model, kind=kind, name=name).select_related("version").first()
    if ref is None:
        raise ValidationError({"name": ValidationError(f"There is no {kind} “{name[:80]}”.", code="does_not_exist")})
    if kind == Ref.Kind.TAG:
        raise Conflict("Tags never move; release the earlier version again instead.", code="tag_exists")
    target = to or history.before(ref)
    if target is None or target.pk == ref.version_id:
        raise Conflict(f"“{name}” has nowhere to go back to; name a version.", code="nothing_before")
    availability.require_files(target)
    told = reason or f"Roll back from v{ref.version.number} to v{target.number}"
    if kind == Ref.Kind.ALIAS:
        return move_ref(actor=actor, model=model, kind=kind, name=name, version=target, reason=told)
    commit_version(
        actor=actor, model=model, tree=target.tree, task=target.task, signature=target.signature,
        metrics=target.metrics, lineage={**target.lineage, "restores": str(target.pk)}, message=told,
        dataset_version=target.dataset_version, parents=[ref.version], branch=name,
    )  # fmt: skip
    return Ref.objects.select_related("version").get(pk=ref.pk)


def _check_name(name: str) -> None:
    if not REF_NAME.fullmatch(name):
        raise ValidationError(
            {"name": ValidationError("Use letters, digits, dot, dash and underscore; at most 80.", code="invalid")}
        )


def _point(actor: User, model: RegisteredModel, kind: str, name: str, version: ModelVersion, reason: str) -> Ref:
    """Write the ref and its log line; a move to where it is already changes and logs nothing."""
    ref = Ref.objects.filter(model=model, kind=kind, name=name).first()
    if ref and ref.version_id == version.pk:
        return ref
    RefMove.objects.create(
        model=model, kind=kind, name=name, from_version=ref.version if ref else None, to_version=version,
        actor=actor, reason=reason,
    )  # fmt: skip
    ref, _ = Ref.objects.update_or_create(model=model, kind=kind, name=name, defaults={"version": version})
    audit.record(actor, "ref.move", model, model.organization, kind=kind, name=name, version=str(version.pk))
    transaction.on_commit(
        lambda: events.publish_state(model.organization_id, "model", model.pk, f"{kind} {name} moved", model.name)
    )
    return ref


def version_of(*, model: RegisteredModel, identifier: UUID) -> ModelVersion:
    """A version of this model; ValidationError on `version` for any other id."""
    version = ModelVersion.objects.filter(model=model, pk=identifier).first()
    if version is None:
        raise ValidationError(
            {"version": ValidationError("This model has no version with this id.", code="does_not_exist")}
        )
    return version


def version_named(*, model: RegisteredModel, text: str) -> ModelVersion | None:
    """The version that a person means by its id, its number (`7`, `v7`) or a ref: branch, then tag, then alias."""
    rows = ModelVersion.objects.filter(model=model).select_related("model", "dataset_version__dataset")
    text = text.replace("\0", "")
    with suppress(ValueError):
        return rows.filter(pk=UUID(text)).first()
    if matched := NUMBER.fullmatch(text):
        return rows.filter(number=int(matched[1])).first()
    refs = {ref.kind: ref.version_id for ref in Ref.objects.filter(model=model, name=text)}
    wanted = next((refs[kind] for kind in (Ref.Kind.BRANCH, Ref.Kind.TAG, Ref.Kind.ALIAS) if kind in refs), None)
    return rows.filter(pk=wanted).first() if wanted else None
