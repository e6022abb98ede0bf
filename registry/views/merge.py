"""Merging a version into a branch: asking for it, watching it, its outcome."""

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from dlplatform.accounts.access import may, visible_or_404
from dlplatform.accounts.pages import refusals_as_messages, safe_next, submitted
from dlplatform.web import page
from registry import merges, services
from registry.forms import MergeForm
from registry.models import Merge

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


@require_POST
def model_merge(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    with refusals_as_messages(request):
        wanted = submitted(MergeForm(request.POST))
        theirs = services.version_of(model=found, identifier=wanted["theirs"])
        made = merges.request_merge(
            actor=request.user, model=found, theirs=theirs, branch=wanted["branch"], recipe={"method": wanted["method"]}
        )
        return redirect("merge", made.pk)
    return redirect(safe_next(request, reverse("model-history", args=[found.pk])))


@require_safe
def merge_page(request: HttpRequest, merge: UUID) -> HttpResponse:
    found = merge_or_404(request, merge)
    context = {
        "section": "models",
        "merge": found,
        "model": found.model,
        "can_write": may(request.user, "model.write", found.model),
        "tensors": [(HOW[how], count) for how, count in (found.result or {}).get("tensors", {}).items()],
        "metrics": _metrics(found),
    }
    return page(request, "registry/merge.html", context, partial="registry/_merge.html")


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
