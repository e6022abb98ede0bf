"""Merging a version into a branch: asking for it, watching it, its outcome."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from dlplatform.accounts.access import may, require, visible_or_404
from dlplatform.accounts.pages import refusals_as_messages
from dlplatform.api import Conflict
from dlplatform.web import page
from registry import merges, services
from registry.merge_form import MergeForm
from registry.models import Merge, ModelVersion, RegisteredModel

from .model import model_or_404

HOW = {
    "merged": "changed on both sides and merged",
    "taken": "changed on one side and taken from it",
    "same": "the same on both",
}


def merge_or_404(request: HttpRequest, identifier: UUID) -> Merge:
    rows = Merge.objects.select_related("model__organization", "ours", "theirs", "output_version", "created_by")
    found: Merge = visible_or_404(rows.select_related("dataset_version__dataset"), request.user, pk=identifier)
    return found


@require_http_methods(["GET", "POST"])
def model_merge(request: HttpRequest, model: UUID) -> HttpResponse:
    """The form as a page of its own: where scripts are off, and where something about it is refused."""
    found = model_or_404(request, model)
    require(request.user, "model.write", found)
    given = request.POST if request.method == "POST" else request.GET
    theirs = services.version_named(model=found, text=given.get("theirs", ""))
    if theirs is None:
        raise Http404
    form = MergeForm(request.POST or None, user=request.user, model=found, theirs=theirs)
    if request.method == "POST" and form.is_valid() and (made := _requested(request, form, found, theirs)):
        return redirect("merge", made.pk)
    context = {"section": "models", "model": found, "theirs": theirs, "form": form}
    return page(request, "registry/merge_new.html", context)


def _requested(request: HttpRequest, form: MergeForm, model: RegisteredModel, theirs: ModelVersion) -> Merge | None:
    """The merge that was asked for; None, with the reason on the form, when it is refused."""
    wanted = form.cleaned_data
    try:
        return merges.request_merge(
            actor=request.user, model=model, theirs=theirs, branch=wanted["branch"], recipe=form.recipe(),
            dataset_version=wanted["dataset_version"],
        )  # fmt: skip
    except ValidationError as error:
        form.add_refusal(error)
    except Conflict as conflict:
        form.add_error(None, str(conflict.detail))
    return None


@require_POST
def adapter_merge(request: HttpRequest, version: UUID) -> HttpResponse:
    """Make a full version out of an adapter and its base."""
    found: ModelVersion = visible_or_404(
        ModelVersion.objects.select_related("model__organization", "base__model", "dataset_version"),
        request.user,
        pk=version,
    )
    with refusals_as_messages(request):
        made = merges.merge_adapter(actor=request.user, version=found)
        return redirect("merge", made.pk)
    return redirect("model-version", found.pk)


@require_safe
def merge_page(request: HttpRequest, merge: UUID) -> HttpResponse:
    found = merge_or_404(request, merge)
    context = {
        "section": "models",
        "merge": found,
        "model": found.model,
        "recipe": _told(found.recipe),
        "can_write": may(request.user, "model.write", found.model),
        "tensors": [(HOW[how], count) for how, count in (found.result or {}).get("tensors", {}).items()],
        "metrics": _metrics(found),
    }
    return page(request, "registry/merge.html", context, partial="registry/_merge.html")


def _told(recipe: dict[str, Any]) -> str:
    """The method and what was given for it, in words."""
    method = recipe["method"]
    told = [method]
    for part in merges.USES.get(method, ()):
        value = recipe.get(part)
        if isinstance(value, list):
            told.append(f"{part} {value[0]:g} and {value[1]:g}")
        elif value is not None:
            told.append(f"{part} {value:g}")
    return " · ".join(told)


def _metrics(merge: Merge) -> list[tuple[str, list[float | None]]]:
    """(name, [branch, theirs, merged])."""
    measured = (merge.result or {}).get("metrics", {})
    sides = [measured.get(side, {}) for side in ("ours", "theirs", "merged")]
    return [(name, [side.get(name) for side in sides]) for name in sides[2]]


@require_POST
def merge_cancel(request: HttpRequest, merge: UUID) -> HttpResponse:
    found = merge_or_404(request, merge)
    with refusals_as_messages(request):
        merges.cancel_merge(actor=request.user, merge=found)
    return redirect("merge", found.pk)
