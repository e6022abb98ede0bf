"""Runs beside each other: curves, final metrics, and the settings in which they differ."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse

from dlplatform.web import page
from registry.diff import finetuning_of
from training.bands import line, seed_groups
from training.curves import Point, curves
from training.findings import lower_is_better
from training.models import MetricSeries, Run

MOST_RUNS = 10
MOST_POINTS = 400


def compare(request: HttpRequest) -> HttpResponse:
    runs = _chosen(request)
    groups = seed_groups(runs)
    single = request.GET.get("group") == "none" or len(groups) == len(runs)
    groups = [[run] for run in runs] if single else groups
    for color, group in enumerate(groups):
        for run in group:
            run.color = color  # type: ignore[attr-defined]
    context: dict[str, Any] = {
        "section": "runs",
        "runs": runs,
        "too_many": len(set(request.GET.getlist("run"))) > MOST_RUNS,
        "charts": charts_of(groups),
        "grouped": not single,
        "groupable": len(seed_groups(runs)) < len(runs),
        "metrics": _final_metrics(runs),
        "settings": _settings(runs, every=request.GET.get("settings") == "all"),
        "all_settings": request.GET.get("settings") == "all",
    }
    return page(request, "training/compare.html", context)


def _chosen(request: HttpRequest) -> list[Run]:
    identifiers = [one for text in request.GET.getlist("run") if (one := _uuid(text))]
    wanted = list(dict.fromkeys(identifiers))[:MOST_RUNS]
    rows = Run.objects.visible_to(request.user).filter(pk__in=wanted).defer("evaluation", "environment")
    found = {
        run.pk: run for run in rows.select_related("dataset_version__dataset", "experiment", "base_version__model")
    }
    return [found[identifier] for identifier in wanted if identifier in found]


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def charts_of(groups: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    """One chart a metric that has a curve, with one line a group of runs; its colour is the same in all."""
    by_key: dict[str, list[dict[str, Any]]] = {}
    for color, group in enumerate(groups):
        drawn: dict[str, list[list[Point]]] = {}
        for run in group:
            for key, points in curves(run, None, MOST_POINTS).items():
                if len(points) > 1:
                    drawn.setdefault(key, []).append(points)
        for key, lines in drawn.items():
            by_key.setdefault(key, []).append(line(group[0].name, color, lines))
    return [
        {"kind": "line", "title": key, "x": "step", "tools": True, "series": series}
        for key, series in sorted(by_key.items(), key=lambda item: (not item[0].startswith("validation/"), item[0]))
    ]


def _final_metrics(runs: list[Run]) -> list[dict[str, Any]]:
    series = MetricSeries.objects.filter(run__in=[run.pk for run in runs]).values_list("run_id", "key", "last")
    table: dict[str, dict[UUID, float]] = {}
    for run, key, last in series:
        if last is not None:
            table.setdefault(key, {})[run] = last
    return [_metric_row(key, table[key], runs) for key in sorted(table)]


def _metric_row(key: str, values: dict[UUID, float], runs: list[Run]) -> dict[str, Any]:
    judged = len(values) > 1 and key != "learning_rate"
    best = (min if lower_is_better(key) else max)(values.values()) if judged else None
    cells = [{"value": values.get(run.pk), "best": best is not None and values.get(run.pk) == best} for run in runs]
    return {"key": key, "cells": cells}


def _settings(runs: list[Run], *, every: bool) -> list[dict[str, Any]]:
    flat = [_flat(run) for run in runs]
    rows = []
    for name in dict.fromkeys(name for one in flat for name in one):
        cells = [one.get(name, "–") for one in flat]
        differs = len({str(cell) for cell in cells}) > 1
        if differs or every:
            rows.append({"name": name, "cells": cells, "differs": differs})
    return rows


def _flat(run: Run) -> dict[str, Any]:
    config = {name: value for name, value in run.config.items() if name != "params"}
    params = {f"params.{name}": value for name, value in run.config.get("params", {}).items()}
    data = {
        "dataset": f"{run.dataset_version.dataset.name} v{run.dataset_version.number}",
        "task": run.task,
        "target": run.target,
        "features": ", ".join(run.features) if run.features else "all",
    }
    base = {"base": str(run.base_version)} if run.base_version else {}
    return data | base | finetuning_of(run.finetune) | config | params
