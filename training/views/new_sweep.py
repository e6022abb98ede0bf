"""Starting a sweep: the data as for a run, the settings to search, and how."""

from typing import Any

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from datasets.models import DatasetVersion
from dlplatform.accounts.access import require
from dlplatform.accounts.pages import no_organization, organization_of, said
from dlplatform.api import Conflict
from dlplatform.web import page
from training.models import Sweep
from training.sweeps import services
from training.sweeps.form import PREFIX, SweepForm, starting_space

from .new_run import code_for, experiment_for, initial_for, version_for

KEPT = ("sampler", "pruner", "metric", "trials", "parallel", "seeds", "eta", "least_epochs", "seed")


@require_http_methods(["GET", "POST"])
def sweep_new(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    require(request.user, "run.write", organization)
    version = version_for(request, organization, None)
    if version is None:
        return render(request, "training/run_new_empty.html", {"section": "sweeps"})
    code = code_for(request, None)
    bound = {"organization": version.dataset.organization, "version": version, "code": code}
    if request.method == "POST":
        form = SweepForm(request.POST, **bound)
        sweep = _started(request, form) if form.is_valid() else None
        if sweep:
            said(request, "Started. Its first trials are queued.")
            return redirect("sweep", sweep.pk)
    else:
        form = SweepForm(initial=_initial(request, version), **bound)
    context = {"section": "sweeps", "form": form, "version": version, "code": code}
    return page(request, "training/sweep_new.html", context, partial="training/_sweep_form.html")


def _initial(request: HttpRequest, version: DatasetVersion) -> dict[str, Any]:
    initial = initial_for(request, version, None)
    given = {name: value for name, value in request.GET.items() if name in KEPT or name.startswith(f"{PREFIX}.")}
    return {**starting_space(initial["task"]), **initial} if not given else {**initial, **given}


def _started(request: HttpRequest, form: SweepForm) -> Sweep | None:
    try:
        return services.create_sweep(
            actor=request.user,
            dataset_version=form.version,
            experiment=experiment_for(request, form),
            **form.sweep_choices(),
        )
    except ValidationError as error:
        form.add_refusal(error)
    except Conflict as conflict:
        form.add_error(None, str(conflict.detail))
    return None
