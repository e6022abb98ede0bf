"""The page of one run, its live parts, and what can be done with it."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from datasets.models import DatasetVersion
from datasets.views.images import picture
from dlplatform.accounts.access import may, visible_or_404
from dlplatform.accounts.models import User
from dlplatform.accounts.pages import refusals_as_messages, said
from dlplatform.engine.fields import FIELDS
from dlplatform.engine.transformers_settings import SENSES
from dlplatform.web import page
from training import doctor, findings, services
from training.forms import NameForm
from training.models import Run, RunEvent
from training.writings import writings_of

LOG_SHOWN = 500
LOG_PAGE = 2000
MOST_FILES = 20
LOGGED = ("log", "checkpoint", "state")
TOLD_ELSEWHERE = {"settings", "rows", "parameters", "resumed_from", "device", "threads"}
PARTS = {"state": "training/_run_state.html", "results": "training/_run_results.html",
         "doctor": "training/_run_doctor.html", "writings": "training/_run_writings.html"}  # fmt: skip
BADGES = {"error": "bad", "warning": "warn", "info": "busy"}


def run_or_404(request: HttpRequest, identifier: UUID) -> Run:
    rows = Run.objects.select_related(
        "experiment__organization",
        "dataset_version__dataset",
        "output_version__model",
        "created_by",
        "cloned_from",
        "trial__sweep",
        "replays__model",
        "code",
    ).defer("dataset_version__profile", "dataset_version__problems", "dataset_version__columns")
    return visible_or_404(rows, request.user, pk=identifier)


def run_page(request: HttpRequest, run: UUID) -> HttpResponse:
    found = run_or_404(request, run)
    part = PARTS.get(request.GET.get("part", ""))
    context = {"section": "runs", "run": found, "can_write": may(request.user, "run.write", found)}
    context |= {"diagnoses": _diagnoses(found), "writings": writings_of(found)}
    context |= _results(found, request.user)
    if part is None:
        context |= _surroundings(found)
    return page(request, "training/run.html", context, partial=part)


def _diagnoses(run: Run) -> list[dict[str, Any]]:
    """The doctor's findings as the page shows them."""
    return [
        {**one, "badge": BADGES.get(one["severity"], ""), "name": one["code"].replace("_", " "),
         "words": doctor.change_in_words(one["change"]) if one["change"] else ""}
        for one in doctor.findings_of(run)
    ]  # fmt: skip


def _results(run: Run, user: User) -> dict[str, Any]:
    evaluation = run.evaluation
    if not evaluation:
        return {"evaluation": None}
    return {
        "evaluation": evaluation,
        "tiles": findings.tiles(evaluation),
        "matrix": findings.matrix(evaluation),
        "importance": findings.importance(evaluation),
        "worst": _with_pictures(findings.worst(evaluation), run.dataset_version, user),
        "charts": findings.charts(evaluation),
    }


def _with_pictures(worst: dict[str, Any], version: DatasetVersion, user: User) -> dict[str, Any]:
    """Images stand in the rows by their SHA-256; who may see the dataset sees their thumbnails instead."""
    images = set(version.image_columns) & set(worst["columns"]) if version.images else set()
    if not images or not DatasetVersion.objects.visible_to(user).filter(pk=version.pk).exists():
        return worst
    for cell in (cell for row in worst["rows"] for cell in row["cells"] if cell["name"] in images and cell["value"]):
        cell["picture"] = picture(version, cell["value"])
    return worst


def _surroundings(run: Run) -> dict[str, Any]:
    """What does not change while the page is open, and where the live parts begin."""
    started = RunEvent.objects.filter(run=run, type="started").order_by("-sequence").first()
    lines = list(RunEvent.objects.filter(run=run, type__in=LOGGED).order_by("-sequence")[:LOG_SHOWN])[::-1]
    facts = started.payload if started else {}
    return {
        "started": facts,
        "code_files": sorted(run.code.tree)[:MOST_FILES] if run.code else [],
        "environment": _environment(run, facts),
        "settings": settings_of(run, facts.get("config") or {}),
        "log": [log_line(event) for event in lines],
        "watch": {
            "run": str(run.pk),
            "name": run.name,
            "after": run.last_sequence,
            "ended": run.ended,
            "metrics": f"/api/v1/runs/{run.pk}/metrics?max_points=1000",
        },
    }


def settings_of(run: Run, resolved: dict[str, Any]) -> list[dict[str, Any]]:
    """Each setting as given and as the engine resolved it, those of the architecture among them."""
    given = {name: value for name, value in run.config.items() if name != "params"}
    given |= {f"params.{name}": value for name, value in run.config.get("params", {}).items()}
    final = {name: value for name, value in resolved.items() if name != "params"}
    final |= {f"params.{name}": value for name, value in resolved.get("params", {}).items()}
    known = [one.name for one in FIELDS if one.type != "params"]
    shown = (
        name
        for name in dict.fromkeys([*known, *sorted(given), *sorted(final)])
        if name not in SENSES or given.get(name)
    )
    return [
        {"name": name, "given": _shown(given.get(name, "auto")), "resolved": _shown(final.get(name))} for name in shown
    ]


def _shown(value: Any) -> Any:
    """An architecture as it was written."""
    return json.dumps(value) if isinstance(value, dict) else value


def _environment(run: Run, started: dict[str, Any]) -> dict[str, Any]:
    """What the run ran on, flat; its settings and sizes stand elsewhere on the page."""
    told = run.environment or started.get("environment") or {}
    flat: dict[str, Any] = {}
    for name, value in told.items():
        if name not in TOLD_ELSEWHERE:
            flat |= value if isinstance(value, dict) else {name: value}
    return flat


def log_line(event: RunEvent) -> dict[str, Any]:
    """An event as a line for people: time, level, message."""
    told = event.payload
    if event.type == "state":
        return {"time": event.time, "level": "info", "message": f"{told.get('state')}"}
    if event.type == "checkpoint":
        best = ", the best so far" if told.get("best") else ""
        return {"time": event.time, "level": "muted", "message": f"checkpoint at step {told.get('step')}{best}"}
    return {"time": event.time, "level": told.get("level", "info"), "message": told.get("message", "")}


def run_log(request: HttpRequest, run: UUID) -> StreamingHttpResponse:
    """The whole log as a text file."""
    found = run_or_404(request, run)
    response = StreamingHttpResponse(_log_text(found.pk), content_type="text/plain; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="run-{found.pk}.log"'
    return response


async def _log_text(run: UUID) -> AsyncIterator[str]:
    """Page by page, so that a long log costs little memory."""
    after = -1
    while lines := await sync_to_async(_log_page)(run, after):
        for line in lines:
            told = log_line(line)
            yield f"{told['time'].isoformat()} {told['level']} {told['message']}\n"
        after = lines[-1].sequence


def _log_page(run: UUID, after: int) -> list[RunEvent]:
    lines = RunEvent.objects.filter(run_id=run, type__in=LOGGED, sequence__gt=after)
    return list(lines.order_by("sequence")[:LOG_PAGE])


def _changed(request: HttpRequest, run: UUID, change: Callable[[Run], Any], text: str, undo: str = "") -> HttpResponse:
    found = run_or_404(request, run)
    with refusals_as_messages(request):
        change(found)
        said(request, text, undo and reverse(undo, args=[found.pk]))
    return redirect("run", found.pk)


@require_POST
def run_cancel(request: HttpRequest, run: UUID) -> HttpResponse:
    return _changed(
        request, run, lambda found: services.cancel_run(actor=request.user, run=found),
        "The run stops after a checkpoint; it can be resumed from there.",
    )  # fmt: skip


@require_POST
def run_pause(request: HttpRequest, run: UUID) -> HttpResponse:
    return _changed(
        request, run, lambda found: services.pause_run(actor=request.user, run=found),
        "The run pauses after a checkpoint; continue it from there whenever you like.",
    )  # fmt: skip


@require_POST
def run_resume(request: HttpRequest, run: UUID) -> HttpResponse:
    return _changed(
        request, run, lambda found: services.resume_run(actor=request.user, run=found),
        "Queued again; it goes on from its last checkpoint.",
    )  # fmt: skip


@require_POST
def run_relaunch(request: HttpRequest, run: UUID) -> HttpResponse:
    """A copy with what a finding suggests."""
    found = run_or_404(request, run)
    with refusals_as_messages(request):
        made = doctor.relaunch(actor=request.user, run=found, code=request.POST.get("code", ""))
        said(request, "Queued again with the suggested settings.")
        return redirect("run", made.pk)
    return redirect("run", found.pk)


@require_POST
def run_archive(request: HttpRequest, run: UUID) -> HttpResponse:
    return _changed(
        request, run, lambda found: services.set_run_archived(actor=request.user, run=found, archived=True),
        "Archived: out of the lists, nothing is lost.", "run-restore",
    )  # fmt: skip


@require_POST
def run_restore(request: HttpRequest, run: UUID) -> HttpResponse:
    return _changed(
        request, run, lambda found: services.set_run_archived(actor=request.user, run=found, archived=False),
        "Back in the lists.",
    )  # fmt: skip


@require_POST
def run_rename(request: HttpRequest, run: UUID) -> HttpResponse:
    form = NameForm(request.POST)

    def rename(found: Run) -> None:
        form.full_clean()
        services.rename_run(actor=request.user, run=found, name=form.cleaned_data.get("name") or found.name)

    return _changed(request, run, rename, "Renamed.")
