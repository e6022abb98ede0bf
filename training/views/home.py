"""The first page: what is going on, what is new, what to do next."""

from typing import Any

from django.http import HttpRequest, HttpResponse

from datasets.models import Dataset, DatasetVersion
from dlplatform.accounts.models import Organization
from dlplatform.accounts.pages import no_organization, organization_of
from dlplatform.web import page
from registry.models import Ref, RegisteredModel
from training.models import Run

ACTIVE = (Run.State.QUEUED, Run.State.PREPARING, Run.State.RUNNING)
SHOWN = 6


def home(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    context = {"section": "home", **_counts(organization), **_newest(organization)}
    context["first_steps"] = _first_steps(organization, context)
    return page(request, "training/home.html", context, partial="training/_home.html")


def _counts(organization: Organization) -> dict[str, int]:
    runs = Run.objects.filter(experiment__organization=organization, archived_at=None)
    return {
        "dataset_count": Dataset.objects.filter(organization=organization, archived_at=None).count(),
        "model_count": RegisteredModel.objects.filter(organization=organization, archived_at=None).count(),
        "run_count": runs.count(),
        "active_count": runs.filter(state__in=ACTIVE).count(),
    }


def _newest(organization: Organization) -> dict[str, Any]:
    runs = (
        Run.objects.filter(experiment__organization=organization, archived_at=None)
        .select_related("dataset_version__dataset", "experiment")
        .only(
            "name",
            "state",
            "progress",
            "phase",
            "eta_seconds",
            "created_at",
            "started_at",
            "finished_at",
            "metrics",
            "task",
            "experiment__name",
            "dataset_version__number",
            "dataset_version__dataset__name",
        )
    )
    datasets = Dataset.objects.filter(organization=organization, archived_at=None)
    models = RegisteredModel.objects.filter(organization=organization, archived_at=None)
    newest_versions = DatasetVersion.objects.filter(dataset__in=datasets).order_by("-created_at")
    return {
        "live_runs": list(runs.filter(state__in=ACTIVE).order_by("-created_at")[:SHOWN]),
        "ended_runs": list(runs.exclude(state__in=ACTIVE).order_by("-created_at")[:SHOWN]),
        "new_versions": list(
            newest_versions.select_related("dataset").defer("profile", "problems", "columns", "parts")[:SHOWN]
        ),
        "new_models": list(models.prefetch_related("refs__version").order_by("-created_at")[:SHOWN]),
    }


def _first_steps(organization: Organization, counts: dict[str, Any]) -> list[dict[str, Any]]:
    """What a new organization still has to do; empty once all of it is done."""
    in_production = Ref.objects.filter(model__organization=organization, kind=Ref.Kind.ALIAS, name="production")
    steps = [
        {"done": counts["dataset_count"] > 0, "url": "dataset-new", "title": "Upload a dataset",
         "text": "CSV, NDJSON or Parquet. Its columns are typed and checked for you."},
        {"done": counts["run_count"] > 0, "url": "run-new", "title": "Train a model on it",
         "text": "Choose the column to predict; everything else has a good default."},
        {"done": counts["model_count"] > 0, "url": "models", "title": "Look at the model",
         "text": "Its quality against a baseline, its mistakes, its card. Try it with your own values."},
        {"done": in_production.exists(), "url": "models", "title": "Make a version “production”",
         "text": "Programs that ask for production get that version; moving back is one click."},
    ]  # fmt: skip
    return [] if all(step["done"] for step in steps) else steps
