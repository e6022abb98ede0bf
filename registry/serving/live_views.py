"""A version goes live in one click."""

from uuid import UUID

from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from dlplatform.accounts.access import require
from dlplatform.accounts.pages import refusals_as_messages, said, submitted
from registry.models import ModelVersion
from registry.views.version import version_or_404

from . import going_live
from .forms import GoLiveForm
from .models import Deployment
from .views import deployment_or_404, undo_of


@require_POST
def version_deploy(request: HttpRequest, version: UUID) -> HttpResponse:
    """A deployment named after the model; its page, or with what stands against it the version's."""
    found = version_or_404(request, version)
    require(request.user, "deploy", found.model.organization)
    with refusals_as_messages(request):
        deployment, made = going_live.deploy(actor=request.user, version=found)  # type: ignore[arg-type]
        _say_deployed(request, deployment, found, made)
        return redirect("deployment", deployment.pk)
    return redirect("model-version", found.pk)


def _say_deployed(request: HttpRequest, deployment: Deployment, version: ModelVersion, made: bool) -> None:
    if made:
        archive = reverse("deployment-archive", args=[deployment.pk])
        said(request, f"“{deployment.name}” answers with {version} from now on.", archive)
    else:
        part = going_live.part_of(deployment, version)
        said(request, f"“{deployment.name}” serves this model already. {part}")


@require_POST
def deployment_go_live(request: HttpRequest, deployment: UUID) -> HttpResponse:
    """The version takes all traffic of the deployment, in sight of its page as it was at ``revision``."""
    found = deployment_or_404(request, deployment)
    require(request.user, "deploy", found)
    with refusals_as_messages(request):
        wanted = submitted(GoLiveForm(request.POST))
        version = _version_named(request, wanted["version"])
        changed = going_live.go_live(
            actor=request.user, deployment=found, version=version, revision=wanted["revision"]  # type: ignore[arg-type]
        )  # fmt: skip
        _say_live(request, changed, version, changed.revision != found.revision)
    return redirect("deployment", found.pk)


def _version_named(request: HttpRequest, identifier: UUID) -> ModelVersion:
    rows = ModelVersion.objects.visible_to(request.user).select_related("model__organization")
    found: ModelVersion | None = rows.filter(pk=identifier).first()
    if found is None:
        raise ValidationError("There is no model version with this id.")
    return found


def _say_live(request: HttpRequest, deployment: Deployment, version: ModelVersion, changed: bool) -> None:
    if changed:
        said(request, f"{version} answers all requests of “{deployment.name}” from now on.", undo_of(deployment))
    else:
        said(request, f"{version} answers all requests of “{deployment.name}” already.")
