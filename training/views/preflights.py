"""Trying a run out from the new-run form: what was found replaces itself until it is there."""

from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST

from dlplatform.accounts.access import visible_or_404
from training.models import Preflight
from training.preflights import request_preflight
from training.run_form import RunForm

from .new_run import version_of_form

PART = "training/_preflight.html"
ASKED = ("task", "target", "features", "config")


@require_POST
def preflight_new(request: HttpRequest) -> HttpResponse:
    version = version_of_form(request)
    form = RunForm(request.POST, organization=version.dataset.organization, version=version)
    if not form.is_valid():
        problems = [f"{field}: {error}" for field, errors in form.errors.items() for error in errors]
        return render(request, PART, {"problems": problems})
    choices = form.choices()
    try:
        wanted = {name: choices[name] for name in ASKED}
        preflight = request_preflight(actor=request.user, dataset_version=version, **wanted)
    except ValidationError as error:
        return render(request, PART, {"problems": error.messages})
    return render(request, PART, {"preflight": preflight})


def preflight_part(request: HttpRequest, preflight: UUID) -> HttpResponse:
    return render(request, PART, {"preflight": visible_or_404(Preflight.objects, request.user, pk=preflight)})
