"""Queueing a run: choose the data, the column to predict and, if wished, the settings."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from datasets.models import DatasetVersion
from dlplatform.accounts.access import may_run_code, require, require_code, visible_or_404
from dlplatform.accounts.models import Organization
from dlplatform.accounts.pages import no_organization, organization_of, said
from dlplatform.api import Conflict
from dlplatform.web import add_errors, page
from training import experiments, services
from training.estimate import estimate
from training.finetune_form import address_of
from training.models import CodeBundle, Experiment, Run
from training.run_form import RunForm, initial_of, initial_of_clone, suggested_version


@require_http_methods(["GET", "POST"])
def run_new(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    require(request.user, "run.write", organization)
    clone = run_to_clone(request)
    if clone and clone.base_version_id and request.method == "GET":
        return redirect(address_of(clone))  # the form of a new run knows no base
    code = code_for(request, clone)
    version = version_for(request, organization, clone)
    if version is None:
        return render(request, "training/run_new_empty.html", {"section": "runs"})
    if request.method == "POST":
        form = RunForm(request.POST, organization=version.dataset.organization, version=version, code=code)
        run = _queued(request, form, clone) if form.is_valid() else None
        if run:
            said(request, "Queued. Training starts as soon as a worker is free.")
            return redirect("run", run.pk)
    else:
        initial = initial_for(request, version, clone)
        form = RunForm(initial=initial, organization=version.dataset.organization, version=version, code=code)
    context = {"section": "runs", "form": form, "clone": clone, "version": version, "estimate": _estimate(form)}
    context |= {"code": code, "may_run_code": may_run_code(request.user, version.dataset.organization)}
    return page(request, "training/run_new.html", context, partial="training/_run_form.html")


def version_for(request: HttpRequest, organization: Organization, clone: Run | None) -> DatasetVersion | None:
    """The chosen version; without a choice the clone's, else the newest one with enough rows."""
    given = request.POST or request.GET
    wanted = given.get("dataset_version") or given.get("version")
    rows = DatasetVersion.objects.select_related("dataset__organization")
    if wanted:
        return visible_or_404(rows, request.user, pk=uuid_of(wanted))
    if clone:
        return clone.dataset_version
    suggested = suggested_version(organization)
    return rows.get(pk=suggested.pk) if suggested else None


def code_for(request: HttpRequest, clone: Run | None) -> CodeBundle | None:
    """The code to launch: the chosen one, else the clone's; Http404 or PermissionDenied for whom it is not."""
    wanted = (request.POST or request.GET).get("code")
    if not wanted:
        found = clone.code if clone and not request.POST else None
    else:
        found = visible_or_404(CodeBundle.objects.select_related("organization"), request.user, pk=uuid_of(wanted))
    if found is not None:
        require_code(request.user, found.organization)
    return found


def version_of_form(request: HttpRequest) -> DatasetVersion:
    """The version that a submitted form names; Http404 for one that the person may not see."""
    rows = DatasetVersion.objects.select_related("dataset__organization")
    found: DatasetVersion = visible_or_404(rows, request.user, pk=uuid_of(request.POST.get("dataset_version", "")))
    require(request.user, "run.write", found.dataset.organization)
    return found


def uuid_of(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return UUID(int=0)


def run_to_clone(request: HttpRequest) -> Run | None:
    wanted = request.GET.get("clone")
    if not wanted:
        return None
    rows = Run.objects.select_related("experiment", "code__organization", "dataset_version__dataset__organization")
    return visible_or_404(rows, request.user, pk=uuid_of(wanted))


def initial_for(request: HttpRequest, version: DatasetVersion, clone: Run | None) -> dict[str, Any]:
    """Suggestions, then a clone's choices, then what stands in the form when one of its fields changed."""
    given = request.GET
    if clone and not request.htmx:
        return initial_of_clone(clone)
    same_data = given.get("shown_version") == str(version.pk)
    target = given.get("target", "")
    task = given.get("task", "") if same_data and given.get("shown_target") == target else ""
    initial = initial_of(version, target, task)
    kept = ("experiment", "new_experiment", "name", "register_as", "entry", "code_params")
    initial |= {name: value for name, value in given.items() if name in kept or name.startswith("config.")}
    initial["more_targets"] = given.getlist("more_targets") if same_data else []
    if same_data and (chosen := given.getlist("features")):
        # The column that was the target until now had no box to tick.
        freed = {given.get("shown_target")} - {initial["target"]}
        initial["features"] = [name for name in initial["features"] if name in chosen or name in freed]
    return initial


def _queued(request: HttpRequest, form: RunForm, clone: Run | None) -> Run | None:
    try:
        experiment = experiment_for(request, form)
        return services.create_run(
            actor=request.user,
            dataset_version=form.version,
            experiment=experiment,
            cloned_from=clone,
            **form.choices(),
        )
    except ValidationError as error:
        add_errors(form, error)
    except Conflict as conflict:
        form.add_error(None, str(conflict.detail))
    return None


def experiment_for(request: HttpRequest, form: RunForm) -> Experiment | None:
    organization = form.version.dataset.organization
    if name := form.cleaned_data["new_experiment"]:
        return experiments.experiment_named(actor=request.user, organization=organization, name=name)
    if chosen := form.cleaned_data["experiment"]:
        return visible_or_404(Experiment.objects.select_related("organization"), request.user, pk=uuid_of(chosen))
    return None


def _estimate(form: RunForm) -> str:
    task, target = form["task"].value(), form["target"].value()
    if form.code is not None:
        return f"{form.code} runs in a sandbox; how long it takes only it knows."
    found = estimate(form.version, task or "", target or "", form.chosen_features(), form.config())
    return found.words if found else ""
