"""Trying a run out from the form of a new run or of a fine-tuning: what was found replaces itself until it is there."""

from collections.abc import Callable
from uuid import UUID

from django.core.exceptions import ValidationError
from django.forms import Form
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.api import Conflict
from training import finetuning
from training.models import Preflight
from training.preflights import request_preflight
from training.run_form import RunForm

from .finetune import arguments, cloned, form_for, tunable_version
from .new_run import code_for, version_of_form

PART = "training/_preflight.html"
ASKED = ("task", "target", "features", "config", "code", "entry")


@require_POST
def preflight_new(request: HttpRequest) -> HttpResponse:
    version = version_of_form(request)
    code = code_for(request, None)
    form = RunForm(request.POST, organization=version.dataset.organization, version=version, code=code)

    def ask() -> Preflight:
        wanted = {name: value for name, value in form.choices().items() if name in ASKED}
        return request_preflight(actor=request.user, dataset_version=version, **wanted)

    return _asked(request, form, ask)


@require_POST
def finetune_preflight(request: HttpRequest, version: UUID) -> HttpResponse:
    found = tunable_version(request, version)
    require(request.user, "run.write", found.model.organization)
    if not finetuning.is_trainable(found) or found.deleted_at is not None:
        return render(request, PART, {"problems": ["No run can start from this version."]})
    form = form_for(request, found)

    def ask() -> Preflight:
        clone = cloned(request, form)
        wanted = arguments(form, clone)
        return finetuning.request_finetune_preflight(actor=request.user, version=found, cloned_from=clone, **wanted)

    return _asked(request, form, ask)


def _asked(request: HttpRequest, form: Form, ask: Callable[[], Preflight]) -> HttpResponse:
    """The preflight that was asked for, or what is wrong with the form."""
    if not form.is_valid():
        problems = [f"{field}: {error}" for field, errors in form.errors.items() for error in errors]
        return render(request, PART, {"problems": problems})
    try:
        return render(request, PART, {"preflight": ask()})
    except ValidationError as error:
        return render(request, PART, {"problems": error.messages})
    except Conflict as conflict:
        return render(request, PART, {"problems": [str(conflict.detail)]})


def preflight_part(request: HttpRequest, preflight: UUID) -> HttpResponse:
    return render(request, PART, {"preflight": visible_or_404(Preflight.objects, request.user, pk=preflight)})
