"""Fine-tuning a version: which data, what trains, and what it will take."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.pages import said
from dlplatform.api import Conflict
from dlplatform.web import add_errors, page
from registry import availability
from registry.models import ModelVersion
from registry.transformers_bases import is_transformers, why_not
from training import finetuning
from training.finetune_form import FinetuneForm, not_shown
from training.finetune_outlook import outlook, trainable_blocks
from training.models import Run


@require_http_methods(["GET", "POST"])
def finetune_new(request: HttpRequest, version: UUID) -> HttpResponse:
    found = tunable_version(request, version)
    require(request.user, "run.write", found.model.organization)
    if not finetuning.is_trainable(found) or found.deleted_at is not None:
        context = {"section": "models", "version": found, "model": found.model, "reason": _reason(found)}
        return page(request, "training/finetune_impossible.html", context)
    availability.require_files(found)
    form = form_for(request, found)
    if request.method == "POST" and form.is_valid() and (run := _queued(request, form, found)):
        said(request, "Queued. Training starts from the base as soon as a worker is free.")
        return redirect("run", run.pk)
    if request.method == "GET":
        form.errors.clear()
    context = {
        "section": "models", "version": found, "model": found.model, "form": form, "data": form.data_versions,
        "outlook": outlook(found, form.parsed(), _task(request)), "checked": set(form["blocks"].value() or []),
    }  # fmt: skip
    return page(request, "training/finetune.html", context, partial="training/_finetune_form.html")


def tunable_version(request: HttpRequest, version: UUID) -> ModelVersion:
    """The version that is to be fine-tuned; Http404 for one that the person may not see."""
    rows = ModelVersion.objects.select_related("model__organization", "base__model")
    found: ModelVersion = visible_or_404(rows, request.user, pk=version)
    return found


def form_for(request: HttpRequest, version: ModelVersion) -> FinetuneForm:
    """The form as it was sent, or as it stands in the address."""
    data = finetuning.fitting_data(request.user, version)
    given = request.POST if request.method == "POST" else request.GET
    return FinetuneForm(given or None, version=version, data=data, blocks=trainable_blocks(version, _task(request)))


def _task(request: HttpRequest) -> str:
    return (request.POST if request.method == "POST" else request.GET).get("task", "")


def arguments(form: FinetuneForm, clone: Run | None) -> dict[str, Any]:
    """What a valid form asks of the services of fine-tuning; what it does not show is that of the run which is cloned."""
    wanted = form.cleaned_data
    data = next(one for one in form.data_versions if str(one.pk) == wanted["dataset_version"])
    kept = not_shown(clone) if clone else {}
    features = (
        clone.features if clone and is_transformers(form.version) and clone.dataset_version_id == data.pk else None
    )
    return {
        "dataset_version": data, "settings": form.settings(), "config": kept | form.given("config"),
        "task": wanted.get("task", ""), "target": wanted.get("target"), "features": features,
    }  # fmt: skip


def cloned(request: HttpRequest, form: FinetuneForm) -> Run | None:
    """The run of the same base whose choices the form was filled with. Http404 for one that the person may not see."""
    if not (wanted := form.cleaned_data.get("clone")):
        return None
    rows = Run.objects.select_related("experiment", "base_version").filter(base_version=form.version)
    found: Run = visible_or_404(rows, request.user, pk=wanted)
    return found


def _reason(version: ModelVersion) -> str | None:
    """Why a Hugging Face directory cannot be a base."""
    return why_not(version) if is_transformers(version) and version.deleted_at is None else None


def _queued(request: HttpRequest, form: FinetuneForm, version: ModelVersion) -> Run | None:
    """The run; None, with the reason on the form, when it is refused."""
    belongs = {name: form.cleaned_data[name] for name in ("name", "register_as", "branch")}
    clone = cloned(request, form)
    belongs |= {"cloned_from": clone, "experiment": clone.experiment if clone else None}
    try:
        return finetuning.finetune(actor=request.user, version=version, **arguments(form, clone), **belongs)
    except ValidationError as error:
        add_errors(form, error)
    except Conflict as conflict:
        form.add_error(None, str(conflict.detail))
    return None
