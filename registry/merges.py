"""Merges of two versions: asked for, cancelled. The work is in `registry.merging`."""

import math
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict

from . import availability, graphs, history
from .models import Merge, ModelVersion, Ref, RegisteredModel

ADAPTER = "adapter"  # works an adapter into its base: what `merge_adapter` asks for
METHODS = ("average", "slerp", "task-arithmetic", "ties", "regmean")  # those of dlplatform.engine.merging
DEFAULT_RECIPE = {"method": "average", "shares": None, "density": 0.2, "shrink": 0.9}
# What each method asks for besides the two versions; the rest of a recipe does not touch it.
USES = {
    "average": ("shares",), "slerp": ("shares",), "task-arithmetic": ("shares",), "ties": ("shares", "density"),
    "regmean": ("shrink",),
}  # fmt: skip
PROPORTIONS = ("average", "slerp")  # whose shares are weighed against one another
NEED_ANCESTOR = ("task-arithmetic", "ties")


@transaction.atomic
def request_merge(
    *,
    actor: User,
    model: RegisteredModel,
    theirs: ModelVersion,
    branch: str = "main",
    recipe: dict[str, Any] | None = None,
    dataset_version: DatasetVersion | None = None,
) -> Merge:
    """Queue a merge of a version into a branch. What can be seen to conflict is refused now, by name.

    ``dataset_version`` is what the merged version is evaluated on, by default that of the branch's head. RegMean takes
    inputs for each parent from the data that it learned from. Raises ValidationError, Conflict.
    """
    require(actor, "model.write", model)
    head = Ref.objects.filter(model=model, kind=Ref.Kind.BRANCH, name=branch).select_related("version__model").first()
    if head is None:
        raise _invalid("branch", f"There is no branch “{branch[:80]}”.", "does_not_exist")
    ours = head.version
    availability.require_files(theirs)
    data = dataset_version or ours.dataset_version
    if data is None:
        raise _invalid("dataset_version", "Name the data to evaluate the merged version on.", "required")
    if data.dataset.organization_id != model.organization_id or data.state != DatasetVersion.State.READY:
        raise _invalid("dataset_version", "Choose a ready dataset version of this organization.", "invalid")
    wanted = DEFAULT_RECIPE | (recipe or {})
    _check_recipe(wanted)
    ancestor = history.common_ancestor(ours, theirs)
    if ancestor == theirs:
        raise Conflict(f"v{theirs.number} is part of “{branch}” already.", code="merged")
    if ancestor is None and wanted["method"] in NEED_ANCESTOR:
        raise _invalid("method", f"{wanted['method']} needs a common ancestor, and there is none.", "no_ancestor")
    if problems := conflicts(ours, theirs):
        raise ValidationError({"theirs": [ValidationError(problem, code="conflict") for problem in problems]})
    merge: Merge = Merge.objects.create(
        model=model, ours=ours, theirs=theirs, branch=branch, recipe=wanted, dataset_version=data, created_by=actor
    )
    audit.record(actor, "merge.request", model, model.organization, theirs=theirs.number, branch=branch)
    jobs.enqueue(merge)
    return merge


@transaction.atomic
def merge_adapter(*, actor: User, version: ModelVersion, branch: str = "main") -> Merge:
    """Queue the making of a full version out of an adapter and its base, on a branch of the adapter's model.

    Raises ValidationError, Conflict.
    """
    model, base = version.model, version.base
    require(actor, "model.write", model)
    availability.require_files(version)
    if base is None:
        raise Conflict(f"v{version.number} is no adapter; it is whole already.", code="not_an_adapter")
    data = version.dataset_version
    if data is None or data.state != DatasetVersion.State.READY:
        raise _invalid("dataset_version", "The data that the adapter learned from are not there any more.", "invalid")
    merge: Merge = Merge.objects.create(
        model=model, ours=base, theirs=version, branch=branch, recipe=DEFAULT_RECIPE | {"method": ADAPTER},
        dataset_version=data, created_by=actor,
    )  # fmt: skip
    audit.record(actor, "merge.request", model, model.organization, theirs=version.number, branch=branch)
    jobs.enqueue(merge)
    return merge


def _check_recipe(recipe: dict[str, Any]) -> None:
    """Refuse what the work would stumble over, or what could not even be stored."""
    shares = recipe["shares"]
    for field, values in (("shares", shares or []), ("density", [recipe["density"]]), ("shrink", [recipe["shrink"]])):
        if not all(map(math.isfinite, values)):
            raise _invalid(field, "Give finite numbers.", "invalid")
    if shares is not None and recipe["method"] in PROPORTIONS and not sum(shares) > 0:
        raise _invalid("shares", "The two shares must add up to more than zero.", "invalid")


def conflicts(ours: ModelVersion, theirs: ModelVersion) -> list[str]:
    """What keeps two versions from being merged: another task, target, inputs or classes."""
    found = []
    if graphs.brings_graph(ours) or graphs.brings_graph(theirs):
        found.append("One of the two is a graph, whose weights cannot be combined; take what it was made from.")
    if ours.task != theirs.task:
        found.append(f"The tasks differ: {ours.task} and {theirs.task}.")
    left, right = ours.signature, theirs.signature
    if left.get("target") != right.get("target"):
        found.append(f"The targets differ: {left.get('target')} and {right.get('target')}.")
    inputs = [{column["name"]: column["type"] for column in each.get("inputs", [])} for each in (left, right)]
    odd = sorted(name for name in inputs[0].keys() | inputs[1].keys() if inputs[0].get(name) != inputs[1].get(name))
    if odd:
        found.append(f"The inputs differ: {', '.join(odd[:10])}.")
    classes = [each.get("output", {}).get("classes") for each in (left, right)]
    if classes[0] != classes[1]:
        found.append("The classes differ, or stand in another order.")
    return found


def _invalid(field: str, detail: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(detail, code=code)})


def cancel_merge(*, actor: User, merge: Merge) -> Merge:
    """Stop it: at once while queued, within a second while it runs."""
    require(actor, "model.write", merge.model)
    stopped: Merge = jobs.cancel(merge)
    return stopped
