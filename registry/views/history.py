"""Pages of a model's history: the graph of its versions, what its refs pointed to at a time, a comparison of two."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_POST, require_safe

from dlplatform.accounts.pages import page_of, refusals_as_messages, safe_next, said, submitted
from dlplatform.web import page
from registry import history, services
from registry.diff import diff
from registry.forms import ReleaseForm, RollbackForm
from registry.graph import graph, width_of
from registry.merge_form import MergeForm
from registry.models import ModelVersion, Ref, RefMove, RegisteredModel
from registry.sides import related, side_named

from .comparison import comparison_context, names_of
from .model import model_or_404
from .version import version_or_404

ROWS = 100
MOST_CHOICES = 500


@require_safe
def model_history(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    rows = graph(list(found.versions.order_by("-number").values_list("number", flat=True)), history.edges_of(found.pk))
    shown = page_of(request, rows, ROWS)
    moment = _moment(request.GET.get("time", ""))
    context = {
        "section": "models",
        "model": found,
        "page": shown,
        "rows": _with_versions(found, shown.object_list),
        "width": width_of(shown.object_list),
        "releases": found.releases.select_related("version", "released_by").only(
            "number", "bump", "changes", "released_at", "version__number", "version__model_id", "released_by__username"
        )[:ROWS],
        **_then(found, moment),
    }
    part = {"then": "registry/_then.html"}.get(request.GET.get("part", ""))
    return page(request, "registry/history.html", context, partial=part)


def _moment(text: str) -> datetime:
    """The time asked for, as UTC; now when there is none that can be read."""
    try:
        moment = parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None:
        return timezone.now()
    return moment if timezone.is_aware(moment) else moment.replace(tzinfo=UTC)


def _then(model: RegisteredModel, moment: datetime) -> dict[str, Any]:
    """The refs as they stood at a time, and the stretch of time that the slider covers."""
    first = RefMove.objects.filter(model=model).order_by("id").values_list("moved_at", flat=True).first()
    return {"moment": moment, "first": first or moment, "now": timezone.now(), "then": history.refs_at(model, moment)}


def _with_versions(model: RegisteredModel, rows: Any) -> list[dict[str, Any]]:
    """Each row of the drawing with its version and the refs that point there now."""
    numbers = [row.number for row in rows]
    versions = model.versions.filter(number__in=numbers).select_related("author")
    by_number = {
        version.number: version
        for version in versions.only("number", "message", "created_at", "metrics", "model_id", "author__username")
    }
    marks: dict[UUID, list[Ref]] = {}
    for ref in model.refs.all():
        marks.setdefault(ref.version_id, []).append(ref)
    return [
        {"graph": row, "version": by_number[row.number], "marks": marks.get(by_number[row.number].pk, [])}
        for row in rows
        if row.number in by_number
    ]


@require_safe
def model_diff(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    head = _version(found, request.GET.get("head", "")) or found.versions.order_by("-number").first()
    if head is None:
        raise Http404
    base = _base(request, found) or head.parents.order_by("child_edges__position").first() or head
    context = {"section": "models", "model": found, "base": base, "head": head} | names_of(base, head)
    context |= comparison_context(request, base, head)
    if request.GET.get("part") == "comparison" and request.htmx:
        return page(request, "registry/_comparison.html", context)
    if context["can_write"]:
        form = MergeForm(user=request.user, model=found, theirs=head)
        context |= {"merge_form": form, "branches": form.branches}
    context["related"] = related(request.user, head)
    if base.model_id != found.pk and base not in context["related"]:
        context["related"].insert(0, base)
    context["choices"] = found.versions.order_by("-number").values_list("number", "message")[:MOST_CHOICES]
    return page(request, "registry/diff.html", context | {"diff": diff(base, head)})


def _base(request: HttpRequest, model: RegisteredModel) -> ModelVersion | None:
    text = request.GET.get("base", "")
    return side_named(user=request.user, model=model, text=text) if text else None


def _version(model: RegisteredModel, text: str) -> ModelVersion | None:
    return services.version_named(model=model, text=text) if text else None


@require_POST
def ref_rollback(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    with refusals_as_messages(request):
        wanted = submitted(RollbackForm(request.POST))
        to = services.version_of(model=found, identifier=wanted["to"]) if wanted["to"] else None
        ref = services.roll_back(
            actor=request.user, model=found, kind=wanted["kind"], name=wanted["name"], to=to, reason=wanted["reason"]
        )
        said(request, f"{ref.name} is back: it points to v{ref.version.number} now.")
    return redirect(safe_next(request, reverse("model", args=[found.pk])))


@require_POST
def version_release(request: HttpRequest, version: UUID) -> HttpResponse:
    found = version_or_404(request, version)
    with refusals_as_messages(request):
        release = services.release_version(actor=request.user, version=found, **submitted(ReleaseForm(request.POST)))
        said(request, f"v{found.number} is released as {release.number}.")
    return redirect("model-version", found.pk)
