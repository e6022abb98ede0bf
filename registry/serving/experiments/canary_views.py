"""Pages of canaries and blue/green."""

from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from dlplatform.accounts.access import may, require
from dlplatform.accounts.pages import made_or_none, refusals_as_messages, said, submitted
from dlplatform.web import page
from registry.serving.forms import ChangeForm, candidates
from registry.serving.views import deployment_or_404, undo_of

from . import rollouts
from .canary_forms import CanaryForm, written
from .models import Rollout


def rollout_or_404(request: HttpRequest, deployment: UUID, number: int) -> Rollout:
    found = rollouts.rollout_numbered(deployment_or_404(request, deployment), number)
    if found is None:
        raise Http404
    return found


@require_http_methods(["GET", "HEAD", "POST"])
def canary_new(request: HttpRequest, deployment: UUID) -> HttpResponse:
    found = deployment_or_404(request, deployment)
    require(request.user, "deploy", found)
    at_once = request.GET.get("at_once") == "on"
    answering = set(
        found.variants.filter(removed_at=None, role="live", weight__gt=0).values_list("version_id", flat=True)
    )
    versions = [one for one in candidates(request.user, found) if one.pk not in answering]  # type: ignore[arg-type]
    form = CanaryForm(
        request.POST if request.method == "POST" else None, versions=versions,
        initial={"steps": written(rollouts.BLUE_GREEN if at_once else rollouts.CANARY)},
    )  # fmt: skip
    if (
        request.method == "POST"
        and form.is_valid()
        and (
            made := made_or_none(
                form, lambda: rollouts.start_rollout(actor=request.user, deployment=found, **form.wanted())
            )
        )
    ):
        said(request, f"Canary {made.number} begins with {100 * made.share:g} % of the traffic.")
        return redirect("canary", found.pk, made.number)
    context = {"section": "deployments", "deployment": found, "form": form, "versions": versions, "at_once": at_once}
    return render(request, "serving/canary_new.html", context)


@require_safe
def canary_page(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    found = rollout_or_404(request, deployment, number)
    steps = [
        one | {"done": position < found.step or found.state == Rollout.State.FINISHED, "now": position == found.step}
        for position, one in enumerate(found.steps)
    ]
    context = {
        "section": "deployments", "deployment": found.deployment, "rollout": found, "steps": steps,
        "guardrails": found.watched.get("guardrails", []), "may_act": may(request.user, "deploy", found.deployment),
    }  # fmt: skip
    return page(request, "serving/canary.html", context, partial="serving/_canary.html")


def _acted(request: HttpRequest, deployment: UUID, number: int, verb: Any, told: str, **more: Any) -> HttpResponse:
    found = rollout_or_404(request, deployment, number)
    require(request.user, "deploy", found.deployment)
    with refusals_as_messages(request):
        verb(actor=request.user, rollout=found, **more)
        said(request, told)
    return redirect("canary", found.deployment_id, number)


@require_POST
def canary_pause(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(
        request, deployment, number, rollouts.pause_rollout, "It stays at this step, and is watched all the same."
    )


@require_POST
def canary_continue(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(request, deployment, number, rollouts.continue_rollout, "It goes on.")


@require_POST
def canary_abort(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    found = rollout_or_404(request, deployment, number)
    require(request.user, "deploy", found.deployment)
    with refusals_as_messages(request):
        reason = submitted(ChangeForm(request.POST))["reason"]
        rollouts.abort_rollout(actor=request.user, rollout=found, reason=reason)  # type: ignore[arg-type]
        found.deployment.refresh_from_db(fields=["revision"])
        said(request, "The version before answers alone again.", undo_of(found.deployment))
    return redirect("canary", found.deployment_id, number)
