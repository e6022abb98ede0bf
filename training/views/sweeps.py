"""The list of sweeps, and the page of one: its trials, its best, what matters, and what can be done with it."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db.models import Count, Prefetch, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_POST, require_safe

from dlplatform.accounts.access import may, visible_or_404
from dlplatform.accounts.pages import no_organization, organization_of, page_of, refusals_as_messages, said, submitted
from dlplatform.web import page
from training.forms import PromotionForm
from training.models import Run, Sweep, Trial
from training.sweeps import drawing, services
from training.sweeps.progress import progress_of
from training.sweeps.space import counting
from training.sweeps.tuning import shared_by_all

PARTS = {"state": "training/_sweep_state.html", "charts": "training/_sweep_charts.html"}
SORTS = {"number": "number", "state": "state", "value": "value"}


@require_safe
def sweep_list(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    rows = (
        Sweep.objects.filter(experiment__organization=organization)
        .select_related("dataset_version__dataset", "created_by")
        .defer("dataset_version__profile", "dataset_version__columns", "dataset_version__problems")
        .annotate(
            drawn=Count("trials"), ended_trials=Count("trials", filter=~Q(trials__state__in=["running", "paused"]))
        )
    )
    context = {
        "section": "sweeps",
        "page": page_of(request, rows.order_by("-created_at", "pk")),
        "can_train": may(request.user, "run.write", organization),
    }
    return page(request, "training/sweeps.html", context, partial="training/_sweeps_table.html")


def sweep_or_404(request: HttpRequest, identifier: UUID) -> Sweep:
    rows = Sweep.objects.select_related(
        "experiment__organization", "dataset_version__dataset", "created_by", "base_version__model"
    )
    found: Sweep = visible_or_404(
        rows.defer("dataset_version__profile", "dataset_version__columns", "dataset_version__problems"),
        request.user,
        pk=identifier,
    )
    return found


@require_safe
def sweep_page(request: HttpRequest, sweep: UUID) -> HttpResponse:
    found = sweep_or_404(request, sweep)
    part = request.GET.get("part", "") if request.htmx else ""
    request.GET = request.GET.copy()
    request.GET.pop("part", None)  # what it links to are pages
    trials = _trials(found)
    context = {"section": "sweeps", "sweep": found, "can_write": may(request.user, "run.write", found)}
    context["shared_tuning"] = shared_by_all(found.finetune or {}, [one["name"] for one in found.space])
    if part != "charts":
        context |= _state(request, found, trials)
    if part != "state":
        context |= {"charts": drawing.charts(found, trials), "importance": _bars(found)}
    return page(request, "training/sweep.html", context, partial=PARTS.get(part))


def _trials(sweep: Sweep) -> list[Trial]:
    runs = Run.objects.only("pk", "name", "state", "progress", "epoch", "trial", "output_version")
    return list(sweep.trials.prefetch_related(Prefetch("runs", runs.order_by("created_at", "pk"))))


def _state(request: HttpRequest, sweep: Sweep, trials: list[Trial]) -> dict[str, Any]:
    best = services.best_trial(sweep)
    version = services.best_version(sweep, best) if best else None
    sort = request.GET.get("sort", "number")
    return {
        "progress": progress_of(sweep),
        "best": best,
        "best_settings": counting(best.params, sweep.config, sweep.finetune, sweep.task) if best else {},
        "best_version": version,
        "names": [dimension["name"] for dimension in sweep.space],
        "trials": [_row(sweep, one) for one in _sorted(trials, sort)],
        "sort": sort,
        "failed": sum(one.state == Trial.State.FAILED for one in trials),
        "can_alias": version is not None and may(request.user, "ref.move", version.model),
    }


def _row(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    its_runs = list(trial.runs.all())
    counted = counting(trial.params, sweep.config, sweep.finetune, sweep.task)
    return {
        "trial": trial,
        "runs": its_runs,
        "cells": [counted.get(dimension["name"]) for dimension in sweep.space],
        "epoch": max((run.epoch + 1 for run in its_runs if run.progress), default=0),
    }


def _sorted(trials: list[Trial], sort: str) -> list[Trial]:
    """By number, state, value, or a setting; what lacks a value comes last."""
    key, descending = sort.removeprefix("-"), sort.startswith("-")

    def of(trial: Trial) -> Any:
        return getattr(trial, SORTS[key]) if key in SORTS else trial.params.get(key)

    there = [one for one in trials if of(one) is not None]
    missing = [one for one in trials if of(one) is None]
    numeric = all(isinstance(of(one), int | float) for one in there)
    return sorted(there, key=lambda one: of(one) if numeric else str(of(one)), reverse=descending) + missing


def _bars(sweep: Sweep) -> list[dict[str, Any]]:
    shares = dict(sorted((sweep.importance or {}).items(), key=lambda item: -item[1]))  # the database keeps no order
    highest = max(shares.values(), default=0) or 1
    return [{"name": name, "share": share, "length": share / highest * 100} for name, share in shares.items()]


# --- changes -------------------------------------------------------------------------------------------


def _changed(request: HttpRequest, sweep: UUID, change: Callable[..., Any], text: str) -> HttpResponse:
    found = sweep_or_404(request, sweep)
    with refusals_as_messages(request):
        change(actor=request.user, sweep=found)
        said(request, text)
    return redirect("sweep", found.pk)


@require_POST
def sweep_cancel(request: HttpRequest, sweep: UUID) -> HttpResponse:
    return _changed(request, sweep, services.cancel_sweep, "Cancelled, with all runs that had not ended.")


@require_POST
def sweep_pause(request: HttpRequest, sweep: UUID) -> HttpResponse:
    return _changed(request, sweep, services.pause_sweep, "Paused. What trains saves a checkpoint and stops.")


@require_POST
def sweep_resume(request: HttpRequest, sweep: UUID) -> HttpResponse:
    return _changed(request, sweep, services.resume_sweep, "Going on where it was paused.")


@require_POST
def sweep_rerun(request: HttpRequest, sweep: UUID) -> HttpResponse:
    return _changed(request, sweep, services.rerun_failed, "The failed trials are queued again, and only those.")


@require_POST
def sweep_promote(request: HttpRequest, sweep: UUID) -> HttpResponse:
    found = sweep_or_404(request, sweep)
    with refusals_as_messages(request):
        wanted = submitted(PromotionForm(request.POST))
        ref = services.promote_best(actor=request.user, sweep=found, **wanted)
        said(request, f"“{ref.name}” of {ref.model.name} is now v{ref.version.number}, the best of this sweep.")
    return redirect("sweep", found.pk)
