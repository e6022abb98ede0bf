"""The page of one model: versions, refs and their log, quality over the versions; and changes of it."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from dlplatform.accounts.access import may, visible_or_404
from dlplatform.accounts.pages import page_of, refusals_as_messages, safe_next, said, submitted
from dlplatform.objects.grace import undoable_until
from dlplatform.web import page
from registry import deletion, services
from registry.cards import card_of
from registry.forms import ModelForm, RefForm
from registry.models import ModelVersion, Ref, RefMove, RegisteredModel

from .version import try_context

MOST_METRICS = 4
MOST_POINTS = 500
MOVES_SHOWN = 30


def model_or_404(request: HttpRequest, identifier: UUID) -> RegisteredModel:
    return visible_or_404(RegisteredModel.objects.select_related("organization"), request.user, pk=identifier)


def model_page(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    refs = list(found.refs.select_related("version").defer("version__tree", "version__lineage"))
    shown = page_of(request, found.versions.select_related("author", "dataset_version__dataset").defer(
        "tree", "signature", "lineage", "dataset_version__profile", "dataset_version__problems",
        "dataset_version__columns", "dataset_version__parts",
    ))  # fmt: skip
    version = _telling_version(found, refs)
    context: dict[str, Any] = {
        "section": "models",
        "model": found,
        "refs": refs,
        "page": shown,
        "metrics": _with_cells(shown.object_list, refs),
        "moves": _moves(found),
        "charts": _charts(found),
        "version": version,
        "can_write": may(request.user, "model.write", found),
        "can_move": may(request.user, "ref.move", found),
        "can_archive": may(request.user, "model.delete", found),
        "undoable_until": found.deleted_at and undoable_until(found.deleted_at),
    }
    if version is not None and version.deleted_at is None:
        context |= {"card": card_of(version), **try_context(request, version)}
    return page(request, "registry/model.html", context)


def _telling_version(model: RegisteredModel, refs: list[Ref]) -> ModelVersion | None:
    """The version to show and to try: what is in production, else the newest."""
    production = next((ref.version_id for ref in refs if (ref.kind, ref.name) == (Ref.Kind.ALIAS, "production")), None)
    rows = ModelVersion.objects.filter(model=model, deleted_at=None).select_related("model__organization")
    return rows.filter(pk=production).first() if production else rows.order_by("-number").first()


def _with_cells(versions: Any, refs: list[Ref]) -> list[str]:
    """Give each version its refs and its metrics in the order of the columns, whose names are returned."""
    names = dict.fromkeys(name for version in versions for name in version.metrics)
    columns = list(names)[:MOST_METRICS]
    for version in versions:
        version.cells = [version.metrics.get(name) for name in columns]
        version.marks = [ref for ref in refs if ref.version_id == version.pk]
    return columns


def _moves(model: RegisteredModel) -> Any:
    moves = RefMove.objects.filter(model=model).select_related("actor", "from_version", "to_version")
    versions = ("from_version__number", "to_version__number")
    return moves.only("kind", "name", "reason", "moved_at", "model_id", "actor__username", *versions)[:MOVES_SHOWN]


def _charts(model: RegisteredModel) -> list[dict[str, Any]]:
    """Each metric over the versions, once there are two of them."""
    rows = list(model.versions.order_by("-number").values_list("number", "metrics")[:MOST_POINTS])[::-1]
    names = dict.fromkeys(name for _, metrics in rows for name in metrics)
    charts = []
    for name in names:
        points = [[number, metrics[name]] for number, metrics in rows if metrics.get(name) is not None]
        if len(points) > 1:
            series = [{"name": name, "points": points}]
            charts.append({"kind": "line", "title": name, "x": "version", "whole": True, "series": series})
    return charts[:MOST_METRICS]


@require_POST
def model_edit(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    with refusals_as_messages(request):
        services.update_model(actor=request.user, model=found, **submitted(ModelForm(request.POST)))
        said(request, "Saved.")
    return redirect("model", found.pk)


@require_POST
def model_archive(request: HttpRequest, model: UUID) -> HttpResponse:
    return _set_archived(request, model, True, "is archived: out of the lists, nothing is lost.", "model-restore")


@require_POST
def model_restore(request: HttpRequest, model: UUID) -> HttpResponse:
    return _set_archived(request, model, False, "is back in the lists.")


def _set_archived(request: HttpRequest, model: UUID, archived: bool, text: str, undo: str = "") -> HttpResponse:
    found = model_or_404(request, model)
    with refusals_as_messages(request):
        if archived:
            services.set_model_archived(actor=request.user, model=found, archived=True)
        else:
            deletion.restore_model(actor=request.user, model=found)
        said(request, f"“{found.name}” {text}", undo and reverse(undo, args=[found.pk]))
    return redirect("model", found.pk)


@require_POST
def ref_move(request: HttpRequest, model: UUID) -> HttpResponse:
    """Point a ref at a version, if it still points where the page showed it.

    The fields may come in the address too: that is how a message offers to take a move back.
    """
    found = model_or_404(request, model)
    given = request.POST.copy()
    given.update(request.GET)
    with refusals_as_messages(request):
        wanted = submitted(RefForm(_with_expected(given)))
        version = services.version_of(model=found, identifier=wanted["version"])
        services.move_ref(
            actor=request.user, model=found, kind=wanted["kind"], name=wanted["name"], version=version,
            reason=wanted["reason"], expected=wanted["expected"], check_expected=True,
        )  # fmt: skip
        said(request, f"{wanted['name']} points to v{version.number} now.", _undo(found, wanted))
    return redirect(safe_next(request, reverse("model", args=[found.pk])))


def _with_expected(given: QueryDict) -> QueryDict:
    """The page sends where every ref stood; the one that is to move counts."""
    place = f"expected:{given.get('kind', '')}:{given.get('name', '')}"
    if place in given:
        given["expected"] = given[place]
    return given


def _undo(model: RegisteredModel, wanted: dict[str, Any]) -> str:
    if wanted["expected"] is None or wanted["kind"] != Ref.Kind.ALIAS or wanted["expected"] == wanted["version"]:
        return ""
    query = QueryDict(mutable=True)
    query.update({"kind": wanted["kind"], "name": wanted["name"], "version": str(wanted["expected"]),
                  "expected": str(wanted["version"]), "reason": "Taken back"})  # fmt: skip
    return f"{reverse('ref-move', args=[model.pk])}?{query.urlencode()}"


@require_POST
def ref_delete(request: HttpRequest, model: UUID, kind: str, name: str) -> HttpResponse:
    found = model_or_404(request, model)
    with refusals_as_messages(request):
        services.delete_ref(actor=request.user, model=found, kind=kind, name=name.replace("\0", ""))
        said(request, f"The {kind} {name} was removed; the log keeps where it pointed.")
    return redirect("model", found.pk)
