"""Starting a sweep: the data as for a run, or a base to fine-tune; the settings to search, and how."""

from typing import Any

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from datasets.models import DatasetVersion
from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.pages import no_organization, organization_of, said
from dlplatform.api import Conflict
from dlplatform.web import page
from registry.models import ModelVersion
from registry.transformers_bases import tasks_of
from training import finetuning
from training.models import Sweep
from training.sweeps import services
from training.sweeps.form import PREFIX, SweepForm, starting_space
from training.sweeps.tuning import BLOCKS
from training.sweeps.tuning import PREFIX as TUNING
from training.sweeps.tuning_form import TuningSweepForm, starting_ways

from .new_run import code_for, experiment_for, initial_for, uuid_of, version_for

KEPT = ("sampler", "pruner", "metric", "trials", "parallel", "seeds", "eta", "least_epochs", "seed")


@require_http_methods(["GET", "POST"])
def sweep_new(request: HttpRequest) -> HttpResponse:
    if base := base_for(request):
        return _from_base(request, base)
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    require(request.user, "run.write", organization)
    version = version_for(request, organization, None)
    if version is None:
        return render(request, "training/run_new_empty.html", {"section": "sweeps"})
    code = code_for(request, None)
    bound = {"organization": version.dataset.organization, "version": version, "code": code}
    form = SweepForm(*_sent(request), initial=_initial(request, version), **bound)
    return _answered(request, form, {"version": version, "code": code})


def base_for(request: HttpRequest) -> ModelVersion | None:
    """The version that is to be fine-tuned, if one is named; Http404 for one that the person may not see."""
    wanted = (request.POST or request.GET).get("base")
    rows = ModelVersion.objects.select_related("model__organization", "base__model")
    return visible_or_404(rows, request.user, pk=uuid_of(wanted)) if wanted else None


def _from_base(request: HttpRequest, base: ModelVersion) -> HttpResponse:
    """Where nothing can be learned from the base, its page of fine-tuning says why."""
    require(request.user, "run.write", base.model.organization)
    usable = finetuning.is_trainable(base) and base.deleted_at is None
    data = finetuning.fitting_data(request.user, base) if usable else []
    if not data:
        return redirect("finetune", base.pk)
    wanted = (request.POST or request.GET).get("dataset_version")
    version = next((one for one in data if str(one.pk) == wanted), data[0])
    bound = {"organization": base.model.organization, "version": version, "base": base, "data": data}
    form = TuningSweepForm(*_sent(request), initial=_initial_of_base(request, version, base), **bound)
    return _answered(request, form, {"version": version, "base": base})


def _sent(request: HttpRequest) -> list[Any]:
    return [request.POST] if request.method == "POST" else []


def _answered(request: HttpRequest, form: SweepForm, context: dict[str, Any]) -> HttpResponse:
    if request.method == "POST" and form.is_valid() and (sweep := _started(request, form)):
        said(request, "Started. Its first trials are queued.")
        return redirect("sweep", sweep.pk)
    context |= {"section": "sweeps", "form": form}
    return page(request, "training/sweep_new.html", context, partial="training/_sweep_form.html")


def _initial(request: HttpRequest, version: DatasetVersion) -> dict[str, Any]:
    initial = initial_for(request, version, None)
    return _begun(request, starting_space(initial["task"]), initial)


def _initial_of_base(request: HttpRequest, version: DatasetVersion, base: ModelVersion) -> dict[str, Any]:
    """The settings of the page of fine-tuning, whose blocks are boxes, and suggestions of what to search."""
    initial = initial_for(request, version, None)
    task = base.task or request.GET.get("task") or tasks_of(base)[0]
    tuning = {name: value for name, value in request.GET.items() if name.startswith(TUNING)}
    if blocks := request.GET.getlist("blocks"):
        tuning[f"{TUNING}{BLOCKS}"] = " ".join(blocks)
    start = starting_space(task) | starting_ways(tuning.get(f"{TUNING}mode", ""))
    return _begun(request, start, initial | {"task": task, "experiment": ""} | tuning)


def _begun(request: HttpRequest, start: dict[str, Any], initial: dict[str, Any]) -> dict[str, Any]:
    """What to search as it stands in the address; suggestions where it says nothing of it."""
    given = {name: value for name, value in request.GET.items() if name in KEPT or name.startswith(f"{PREFIX}.")}
    return {**start, **initial} if not given else {**initial, **given}


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
