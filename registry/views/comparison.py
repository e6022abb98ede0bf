"""The part of a comparison page that a job fills: weights as a strip of heat, answers, flips and slices."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from datasets.models import DatasetVersion
from dlplatform.accounts.access import may, visible_or_404
from dlplatform.accounts.pages import refusals_as_messages, submitted
from dlplatform.web import page
from registry import comparisons, services
from registry.forms import CompareForm
from registry.models import Comparison, ModelVersion
from registry.sides import beside, metrics_beside, settings_beside, side_of

from .model import model_or_404

STRIP_WIDTH = 1000
LEAST_CELL = 3
HEATS = (0.0, 1e-4, 1e-3, 1e-2, 0.05, 0.2)  # relative change from which on each shade is used
MOST_DATA = 100


def comparison_context(request: HttpRequest, base: ModelVersion, head: ModelVersion) -> dict[str, Any]:
    """What `_comparison.html` shows for these two versions."""
    found = comparisons.newest(base, head)
    context = {
        "comparison": found,
        "can_write": may(request.user, "model.write", head),
        "data_choices": comparisons.ready_data(request.user, head.model)[:MOST_DATA],
    }
    if found is None or not found.result:
        return context
    behaviour = found.result.get("behaviour") or {}
    return context | {
        "strip": strip(found.result.get("weights") or []),
        "answers": _answers(behaviour.get("confusion")),
        "slices": _titled(
            behaviour.get("slices"), {"better": "Slices that got better", "worse": "Slices that got worse"}
        ),
        "flipped": _titled(behaviour.get("flipped"), {"to_right": "Gained most", "to_wrong": "Lost most"}),
    }


def names_of(base: ModelVersion, head: ModelVersion) -> dict[str, Any]:
    """What the two are called: by number within one model; with the model's name where they are of two."""
    foreign = base.model_id != head.model_id
    return {
        "foreign": foreign,
        "base_name": str(base) if foreign else f"v{base.number}",
        "head_name": str(head) if foreign else f"v{head.number}",
        "base_key": base.pk if foreign else base.number,
    }


def _address(base: ModelVersion, head: ModelVersion) -> str:
    return f"{reverse('model-diff', args=[head.model_id])}?base={names_of(base, head)['base_key']}&head={head.number}"


@require_safe
def versions_compare(request: HttpRequest) -> HttpResponse:
    """Versions of whichever models, as ticked on the page of a base; two of them tensor by tensor and answer by answer."""
    identifiers = [one for text in request.GET.getlist("version") if (one := _uuid(text))]
    versions = beside(request.user, identifiers)
    if len(versions) == 2:
        return redirect(_address(*versions))
    tables = [
        ("Metrics", metrics_beside(versions), "None of them has metrics."),
        ("Settings that differ", settings_beside(versions), "The settings are the same."),
    ]
    return page(request, "registry/beside.html", {"section": "models", "versions": versions, "tables": tables})


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _titled(parts: dict[str, Any] | None, titles: dict[str, str]) -> list[tuple[str, Any]]:
    return [(title, parts[name]) for name, title in titles.items()] if parts else []


def _answers(confusion: dict[str, Any] | None) -> list[dict[str, Any]]:
    if not confusion:
        return []
    return [
        {
            "name": name,
            "counts": [
                {"count": count, "same": row == column} for column, count in enumerate(confusion["counts"][row])
            ],
        }
        for row, name in enumerate(confusion["classes"])
    ]


def strip(weights: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Cells for the tensors in the model's order: width by size, shade by relative change."""
    if not weights:
        return None
    total = sum(row["elements"] for row in weights) or 1
    cells, x = [], 0.0
    for row in weights:
        width = max(STRIP_WIDTH * row["elements"] / total, LEAST_CELL)
        change = row.get("relative_norm")
        told = row["status"] if change is None else f"{change:.3g}"
        cells.append({"x": round(x, 1), "width": round(width, 1), "heat": heat(row), "title": f"{row['name']}: {told}"})
        x += width
    changed = sum(row["status"] != "same" for row in weights)
    return {"cells": cells, "width": round(x, 1), "changed": changed, "count": len(weights)}


def heat(row: dict[str, Any]) -> int:
    """0 for a tensor that is the same, up to 6; tensors without a counterpart are the hottest."""
    change = row.get("relative_norm")
    if row["status"] == "same":
        return 0
    return len(HEATS) if change is None else sum(change >= least for least in HEATS)


@require_POST
def model_compare(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    address = reverse("model-diff", args=[found.pk])
    with refusals_as_messages(request):
        wanted = submitted(CompareForm(request.POST))
        base = side_of(user=request.user, model=found, identifier=wanted["base"])
        head = services.version_of(model=found, identifier=wanted["head"])
        address = _address(base, head)
        data = None
        if wanted["dataset_version"]:
            data = visible_or_404(DatasetVersion.objects, request.user, pk=wanted["dataset_version"])
        comparisons.request_comparison(actor=request.user, base=base, head=head, dataset_version=data)
    return redirect(address)


@require_POST
def comparison_cancel(request: HttpRequest, comparison: UUID) -> HttpResponse:
    rows = Comparison.objects.select_related("model__organization", "base__model", "head__model")
    found = visible_or_404(rows, request.user, pk=comparison)
    with refusals_as_messages(request):
        comparisons.cancel_comparison(actor=request.user, comparison=found)
    return redirect(_address(found.base, found.head))
