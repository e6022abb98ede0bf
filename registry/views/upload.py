"""Uploading a model: the page that sends its files in parts, and the page that follows what becomes of them."""

from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from dlplatform.accounts.access import may, require, visible_or_404
from dlplatform.accounts.pages import no_organization, organization_of, refusals_as_messages, said
from dlplatform.web import page
from registry import uploads
from registry.forms import ModelForm
from registry.models import Ref, Upload

from .model import model_or_404


@require_safe
def model_new(request: HttpRequest) -> HttpResponse:
    """The script makes the model and sends the files by the API."""
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    require(request.user, "model.write", organization)
    return _form(request, form=ModelForm(), branches=[uploads.MAIN])


@require_safe
def model_upload(request: HttpRequest, model: UUID) -> HttpResponse:
    found = model_or_404(request, model)
    require(request.user, "model.write", found)
    branches = found.refs.filter(kind=Ref.Kind.BRANCH).values_list("name", flat=True)
    opened = found.uploads.open().select_related("created_by").prefetch_related("parts")
    shown = [{"upload": upload, "there": sum(part.size for part in upload.parts.all())} for upload in opened]
    return _form(request, model=found, branches=list(branches) or [uploads.MAIN], opened=shown)


def _form(request: HttpRequest, **context: Any) -> HttpResponse:
    limit = settings.MODEL_UPLOAD_MAX_BYTES
    return render(request, "registry/upload.html", {"section": "models", "limit": limit, **context})


def upload_or_404(request: HttpRequest, identifier: UUID) -> Upload:
    rows = Upload.objects.select_related("model__organization", "created_by", "output_version")
    found: Upload = visible_or_404(rows, request.user, pk=identifier)
    return found


@require_safe
def upload_page(request: HttpRequest, upload: UUID) -> HttpResponse:
    found = upload_or_404(request, upload)
    context = {
        "section": "models",
        "upload": found,
        "model": found.model,
        "receiving": found.state == Upload.RECEIVING,
        "there": sum(part.size for part in found.parts.all()),
        "can_write": may(request.user, "model.write", found.model),
    }
    return page(request, "registry/upload_state.html", context, partial="registry/_upload.html")


@require_POST
def upload_abort(request: HttpRequest, upload: UUID) -> HttpResponse:
    found = upload_or_404(request, upload)
    with refusals_as_messages(request):
        uploads.abort(actor=request.user, upload=found)
        said(request, "Aborted; what was sent is gone.")
    return redirect("upload", found.pk)
