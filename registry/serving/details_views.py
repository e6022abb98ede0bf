"""The form of a deployment's description and sample rate."""

from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods
from django_htmx.http import HttpResponseClientRedirect

from dlplatform.accounts.access import require
from dlplatform.accounts.pages import said
from dlplatform.api import Conflict
from dlplatform.web import add_errors, page

from . import services
from .experiments.holding import holder_of
from .forms import DetailsForm, details_form, say_moved
from .models import Deployment
from .views import deployment_or_404, page_context, undo_of


@require_http_methods(["GET", "HEAD", "POST"])
def deployment_details(request: HttpRequest, deployment: UUID) -> HttpResponse:
    """Description and sample rate; the page again with a message, or the form with what stands against them."""
    found = deployment_or_404(request, deployment)
    require(request.user, "deploy", found)
    if request.method != "POST":
        return redirect("deployment", found.pk)
    form = details_form(found, holder_of(found), request.POST)
    if form.is_valid() and _details_changed(request, found, form):
        address = reverse("deployment", args=[found.pk])
        return HttpResponseClientRedirect(address) if request.htmx else redirect(address)  # type: ignore[attr-defined]
    context = page_context(request, found) | {"details_form": form}
    return page(request, "serving/deployment.html", context, partial="serving/_details.html")


def _details_changed(request: HttpRequest, found: Deployment, form: DetailsForm) -> bool:
    """Whether it was done; else the form says why not."""
    why = {name: form.cleaned_data[name] for name in ("reason", "revision")}
    try:
        changed = services.set_details(actor=request.user, deployment=found, **why, **form.changed)  # type: ignore[arg-type]
    except ValidationError as error:
        add_errors(form, error)
    except Conflict as conflict:
        _say_refused(form, found, conflict)
    else:
        if form.changed and changed.revision != found.revision:
            said(request, f"“{found.name}” is changed.", undo_of(changed))
        else:
            said(request, f"“{found.name}” is as it was: nothing was changed.")
        return True
    return False


def _say_refused(form: DetailsForm, found: Deployment, conflict: Conflict) -> None:
    if conflict.get_codes() == "held":
        form.add_error("sample_rate", str(conflict.detail))
    else:
        found.refresh_from_db()
        say_moved(form, found)
