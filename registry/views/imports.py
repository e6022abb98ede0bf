"""Importing a model from the Hugging Face Hub."""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from dlplatform.accounts.access import require
from dlplatform.accounts.models import Organization
from dlplatform.accounts.pages import no_organization, organization_of
from dlplatform.api import Conflict
from dlplatform.web import add_errors
from registry import hub_imports
from registry.forms import HubImportForm
from registry.models import Upload


@require_http_methods(["GET", "POST"])
def model_import(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    require(request.user, "model.write", organization)
    form = HubImportForm(request.POST or None, initial=request.GET.dict())
    if request.method == "POST" and form.is_valid() and (upload := _begun(request, organization, form)):
        return redirect("upload", upload.pk)
    context = {"section": "models", "form": form, "endpoint": settings.HF_IMPORT_ENDPOINT}
    return render(request, "registry/import.html", context)


def _begun(request: HttpRequest, organization: Organization, form: HubImportForm) -> Upload | None:
    """The import; None, with the reason on the form, when it is refused."""
    given = {name: value for name, value in form.cleaned_data.items() if value}
    try:
        return hub_imports.begin_in(actor=request.user, organization=organization, **given)
    except ValidationError as error:
        add_errors(form, error)
    except Conflict as conflict:
        form.add_error(None, str(conflict.detail))
    return None
