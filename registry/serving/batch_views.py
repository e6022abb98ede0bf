"""Pages of batch predictions: asking for one, watching it."""

from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from datasets.models import DatasetVersion
from dlplatform.accounts.access import may, require, visible_or_404
from dlplatform.accounts.pages import refusals_as_messages
from dlplatform.api import Conflict
from dlplatform.web import add_errors, page
from registry.comparisons import ready_data
from registry.models import ModelVersion

from . import batches
from .models import BatchPrediction

SHOWN = 20
MOST_CHOICES = 300


class BatchForm(forms.Form):
    dataset_version = forms.ModelChoiceField(
        DatasetVersion.objects.none(), label="Rows", empty_label="Choose a dataset version…"
    )
    name = forms.CharField(
        max_length=batches.LONGEST_NAME, required=False, label="Dataset of the predictions",
        help_text="Blank: one named after the data and the model. A dataset of this name gets a new version.",
    )  # fmt: skip

    def __init__(self, *args: Any, user: Any, version: ModelVersion, **more: Any) -> None:
        super().__init__(*args, **more)
        newest = ready_data(user, version.model).values("pk")[:MOST_CHOICES]
        rows = DatasetVersion.objects.filter(pk__in=newest).select_related("dataset").order_by("-created_at")
        self.fields["dataset_version"].queryset = rows  # type: ignore[attr-defined]


@require_http_methods(["GET", "HEAD", "POST"])
def batch_new(request: HttpRequest, version: UUID) -> HttpResponse:
    rows = ModelVersion.objects.select_related("model__organization")
    found: ModelVersion = visible_or_404(rows, request.user, pk=version)
    require(request.user, "predict", found.model)
    require(request.user, "dataset.write", found.model.organization)
    form = BatchForm(request.POST if request.method == "POST" else None, user=request.user, version=found)
    if request.method == "POST" and form.is_valid() and (made := _requested(request, form, found)):
        return redirect("batch", made.pk)
    past = BatchPrediction.objects.filter(version=found).select_related("dataset_version__dataset", "output_version")
    context = {"section": "models", "version": found, "form": form, "past": past[:SHOWN]}
    return page(request, "serving/batch_new.html", context)


def _requested(request: HttpRequest, form: BatchForm, version: ModelVersion) -> BatchPrediction | None:
    """The batch prediction that was asked for; None, with the reason on the form, when it is refused."""
    wanted = form.cleaned_data
    try:
        return batches.request_batch(actor=request.user, version=version, **wanted)
    except ValidationError as error:
        add_errors(form, error)
    except Conflict as conflict:
        form.add_error(None, str(conflict.detail))
    return None


def _batch_or_404(request: HttpRequest, identifier: UUID) -> BatchPrediction:
    rows = BatchPrediction.objects.select_related(
        "version__model__organization", "dataset_version__dataset", "output_version__dataset", "created_by"
    )
    found: BatchPrediction = visible_or_404(rows, request.user, pk=identifier)
    return found


@require_safe
def batch_page(request: HttpRequest, batch: UUID) -> HttpResponse:
    found = _batch_or_404(request, batch)
    may_stop = may(request.user, "dataset.write", found.version.model.organization)
    context = {"section": "models", "batch": found, "may_stop": may_stop}
    return page(request, "serving/batch.html", context, partial="serving/_batch.html")


@require_POST
def batch_cancel(request: HttpRequest, batch: UUID) -> HttpResponse:
    found = _batch_or_404(request, batch)
    with refusals_as_messages(request):
        batches.cancel_batch(actor=request.user, batch=found)
    return redirect("batch", found.pk)
