"""Which model and which of its versions a client means."""

import re
from typing import Any

from django.db.models import QuerySet

from dlplatform.accounts.models import User
from registry.models import ModelVersion, Ref, RegisteredModel

from .errors import RepoNotFound, RevisionNotFound
from .names import identifier_in, model_name

MAIN = "main"
WHOLE_ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
PART_OF_ID = re.compile(r"[0-9a-f]{7,64}")


def visible_models(user: User) -> "QuerySet[RegisteredModel]":
    rows: QuerySet[RegisteredModel] = RegisteredModel.objects.visible_to(user)
    return rows.filter(archived_at=None).select_related("organization")


def model_of(user: User, namespace: str, name: str) -> RegisteredModel:
    """The model of a repository name. Raises RepoNotFound, for one that the caller may not see too."""
    identifier, real_name = identifier_in(name), model_name(name)
    wanted: dict[str, Any] = {"pk": identifier} if identifier else {"name": real_name}
    rows = visible_models(user).filter(organization__slug=namespace, **wanted)
    found = rows.first() if identifier or real_name else None
    if found is None:
        raise RepoNotFound
    return found


def version_of(model: RegisteredModel, revision: str) -> ModelVersion:
    """The version that a revision names. Raises RevisionNotFound.

    In this order: a whole commit id, a branch, a tag, an alias, the tag `1.0.0` for `v1.0.0`, an unambiguous start of
    a commit id of at least seven digits.
    """
    rows = ModelVersion.objects.filter(model=model, deleted_at=None).select_related("model__organization", "author")
    if WHOLE_ID.fullmatch(revision) and (found := rows.filter(digest__startswith=revision).first()):
        return found
    ref = ref_named(model, revision)
    if ref is not None:
        return rows.get(pk=ref.version_id)
    matching = rows.filter(digest__startswith=revision)[:2] if PART_OF_ID.fullmatch(revision) else []
    if len(matching) != 1:
        raise RevisionNotFound(revision)
    return matching[0]


def ref_named(model: RegisteredModel, name: str) -> Ref | None:
    """The branch, tag or alias of this name; `v1.0.0` also means the tag `1.0.0`."""
    if "\0" in name:
        return None
    refs = {
        (ref.kind, ref.name): ref for ref in Ref.objects.filter(model=model, name__in=[name, name.removeprefix("v")])
    }
    order = [(kind, name) for kind in (Ref.Kind.BRANCH, Ref.Kind.TAG, Ref.Kind.ALIAS)]
    return next((refs[key] for key in [*order, (Ref.Kind.TAG, name.removeprefix("v"))] if key in refs), None)


def head_of(model: RegisteredModel, branch: str) -> ModelVersion | None:
    """The newest version of a branch; None for a branch that does not exist, or a model without versions."""
    rows = ModelVersion.objects.filter(refs__kind=Ref.Kind.BRANCH, refs__name=branch.replace("\0", ""))
    return rows.filter(model=model).select_related("model__organization", "author").first()
