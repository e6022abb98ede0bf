"""Experiments: a list, and making one."""

from django.core.exceptions import ValidationError
from django.db.models import Count, Max, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods

from dlplatform.accounts.pages import no_organization, organization_of, page_of, said
from dlplatform.web import add_errors, page
from training import experiments
from training.forms import ExperimentForm
from training.models import Experiment

from .home import ACTIVE


@require_http_methods(["GET", "POST"])
def experiment_list(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    form = ExperimentForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = experiments.create_experiment(actor=request.user, organization=organization, **form.cleaned_data)
            said(request, f"Experiment “{made.name}” was made. Choose it when you train.")
            return redirect("experiments")
        except ValidationError as error:
            add_errors(form, error)
    rows = Experiment.objects.filter(organization=organization, archived_at=None).annotate(
        run_count=Count("runs", filter=Q(runs__archived_at=None)),
        active_count=Count("runs", filter=Q(runs__state__in=ACTIVE)),
        last_run=Max("runs__created_at"),
    )
    context = {"section": "experiments", "form": form, "page": page_of(request, rows.order_by("-created_at"))}
    return page(request, "training/experiments.html", context)
