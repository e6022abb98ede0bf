"""Making a version smaller or faster: asking for variants, watching them, their reports."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from dlplatform.accounts.access import may, require, visible_or_404
from dlplatform.accounts.pages import refusals_as_messages
from dlplatform.api import Conflict
from dlplatform.engine.optimizing.plan import parse_plan
from dlplatform.web import page
from registry import optimizations
from registry.models import ModelVersion, Optimization, OptimizedVariant
from registry.optimize_form import OptimizeForm

from .version import version_or_404

MICRO = 1e6
MOST_EARLIER = 20


@require_http_methods(["GET", "POST"])
def version_optimize(request: HttpRequest, version: UUID) -> HttpResponse:
    found = version_or_404(request, version)
    require(request.user, "model.write", found)
    form = OptimizeForm(request.POST or None, user=request.user, version=found)
    if request.method == "POST" and form.is_valid() and (made := _requested(request, form, found)):
        return redirect("optimization", made.pk)
    earlier = found.optimizations.order_by("-created_at").prefetch_related("variants")[:MOST_EARLIER]
    context = {"section": "models", "model": found.model, "version": found, "form": form, "earlier": earlier}
    return page(request, "registry/optimize.html", context)


def _requested(request: HttpRequest, form: OptimizeForm, version: ModelVersion) -> Optimization | None:
    """What was asked for; None, with the reason on the form, when it is refused."""
    given = form.cleaned_data
    try:
        return optimizations.request_optimization(
            actor=request.user, version=version, plans=form.plans(), dataset_version=given["dataset_version"],
            tolerance=given["tolerance"],
        )  # fmt: skip
    except ValidationError as error:
        form.add_refusal(error)
    except Conflict as conflict:
        form.add_error(None, str(conflict.detail))
    return None


def optimization_or_404(request: HttpRequest, identifier: UUID) -> Optimization:
    rows = Optimization.objects.select_related(
        "model__organization", "version", "created_by", "dataset_version__dataset"
    )
    found: Optimization = visible_or_404(rows, request.user, pk=identifier)
    return found


@require_safe
def optimization_page(request: HttpRequest, optimization: UUID) -> HttpResponse:
    found = optimization_or_404(request, optimization)
    variants = list(found.variants.select_related("output_version"))
    context = {
        "section": "models",
        "optimization": found,
        "model": found.model,
        "can_write": may(request.user, "model.write", found.model),
        "variants": [_shown(one) for one in variants],
        "parent": _parent(variants),
        "charts": _charts(variants),
    }
    return page(request, "registry/optimization.html", context, partial="registry/_optimization.html")


def _shown(variant: OptimizedVariant) -> dict[str, Any]:
    """One row of the tables."""
    told = variant.report
    shown = {"name": parse_plan(variant.plan).name, "version": variant.output_version, "error": variant.error}
    if told is None:
        return shown
    return shown | {
        "problems": told["problems"], "notes": told["notes"], "quality": told["quality"],
        "bytes": told["size"]["variant"]["bytes"], "compressed": told["size"]["variant"]["compressed"],
        "load": 1000 * told["load"]["variant"], "agreement": told["agreement"], "difference": told["difference"],
        "speeds": [_speed(each) for each in told["latency"].values()],
    }  # fmt: skip


def _speed(each: dict[str, Any]) -> dict[str, float]:
    low, middle, high = (1 / ratio for ratio in reversed(each["ratio"]))
    variant = each["variant"]
    return {
        "p50": MICRO * variant["p50"], "p99": MICRO * variant["p99"], "throughput": variant["throughput"],
        "low": low, "times": middle, "high": high, "slower": low < 1 and high < 1,
        "work": 1 / each["work"][1], "whole": 1 / each["whole"]["ratio"][1] if "whole" in each else None,
    }  # fmt: skip


def _parent(variants: list[OptimizedVariant]) -> dict[str, Any] | None:
    """The parent as it was measured beside the first variant; each has its own measurement, on the same machine."""
    told = next((one.report for one in variants if one.report), None)
    if told is None:
        return None
    return {
        "quality": told["quality"]["parent"], "name": told["quality"]["name"], "load": 1000 * told["load"]["parent"],
        "bytes": told["size"]["parent"]["bytes"], "compressed": told["size"]["parent"]["compressed"],
        "speeds": [{"p50": MICRO * each["parent"]["p50"], "p99": MICRO * each["parent"]["p99"],
                    "throughput": each["parent"]["throughput"]} for each in told["latency"].values()],
        "rows": told["rows"], "machine": told["machine"], "sizes": list(told["latency"]),
    }  # fmt: skip


def _charts(variants: list[OptimizedVariant]) -> list[dict[str, Any]]:
    """Quality against speed and against bytes. The front: those that no other beats in both."""
    measured = [one for one in variants if one.report]
    if not measured:
        return []
    first = measured[0].report or {}
    speed = [("parent", 1.0, first["quality"]["parent"][1])]
    size = [("parent", 1.0, first["quality"]["parent"][1])]
    for one in measured:
        told, name = one.report or {}, parse_plan(one.plan).name
        quality = told["quality"]["variant"][1]
        sizes = told["size"]
        speed.append((name, told["latency"]["64"]["ratio"][1], quality))
        size.append((name, sizes["variant"]["bytes"] / sizes["parent"]["bytes"], quality))
    label = first["quality"]["name"]
    return [
        _front("Quality against latency of 64 rows", "latency, of the parent's", label, speed),
        _front("Quality against bytes", "bytes, of the parent's", label, size),
    ]


def _front(title: str, x: str, y: str, points: list[tuple[str, float, float]]) -> dict[str, Any]:
    best = pareto([(cost, quality) for _, cost, quality in points])
    front = sorted([points[place][1], points[place][2]] for place in best)
    series: list[dict[str, Any]] = [{"name": "Pareto front", "points": front}]
    series += [{"name": name, "points": [[cost, quality]], "dots": True} for name, cost, quality in points]
    return {"kind": "line", "title": title, "x": x, "y": y, "series": series}


def pareto(points: list[tuple[float, float]]) -> set[int]:
    """Positions of the points (cost, quality) than which no other is at least as good in both and better in one."""
    return {
        place
        for place, (cost, quality) in enumerate(points)
        if not any(
            other_cost <= cost and other >= quality and (other_cost, other) != (cost, quality)
            for other_cost, other in points
        )
    }


@require_POST
def optimization_cancel(request: HttpRequest, optimization: UUID) -> HttpResponse:
    found = optimization_or_404(request, optimization)
    with refusals_as_messages(request):
        optimizations.cancel_optimization(actor=request.user, optimization=found)
    return redirect("optimization", found.pk)
