"""Pages of deployments."""

import json
import shlex
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db.models import Prefetch
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from dlplatform.accounts.access import may, require, visible_or_404
from dlplatform.accounts.pages import (
    no_organization,
    organization_of,
    page_of,
    refusals_as_messages,
    said,
    search_text,
    submitted,
)
from dlplatform.api import Conflict, Unavailable
from dlplatform.web import add_errors, page
from registry.chat_form import ChatForm, example_of, takes_chats
from registry.examples import example_images
from registry.generation_api import LANGUAGE
from registry.models import ModelVersion
from registry.views.version import shown_prediction

from . import feedback, prediction_log, predictions, processes, services, shadowing
from .assignment import shares
from .changes import in_words
from .client import Unusable
from .experiments.holding import Holder, holder_of, name_of
from .experiments.models import Rollout
from .following import aliases_of
from .forms import (
    ChangeForm,
    DeploymentForm,
    DeploymentTryForm,
    VariantsForm,
    candidates,
    details_form,
    servable_versions,
    variants_of,
)
from .latency import latency_charts
from .models import Deployment, PredictionRecord, Variant
from .states import state_of

CHANGES_SHOWN = 30
EXPERIMENTS_SHOWN = 5
RECORDS_SHOWN = 20
SORTS = {"name": "name", "-name": "-name", "created": "created_at", "-created": "-created_at"}


def deployment_or_404(request: HttpRequest, identifier: UUID) -> Deployment:
    found: Deployment = visible_or_404(
        Deployment.objects.select_related("organization", "created_by"), request.user, pk=identifier
    )
    return found


@require_safe
def deployment_list(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    archived, text = request.GET.get("archived") == "on", search_text(request)
    state = Deployment.State.ARCHIVED if archived else Deployment.State.ACTIVE
    rows = Deployment.objects.filter(organization=organization, state=state)
    if text:
        rows = rows.filter(name__icontains=text)
    sort = request.GET.get("sort", "-created")
    present = Variant.objects.filter(removed_at=None).select_related("version__model")
    rows = rows.prefetch_related(Prefetch("variants", queryset=present, to_attr="present"))
    shown = page_of(request, rows.order_by(SORTS.get(sort, "-created_at"), "pk"))
    for deployment in shown.object_list:
        _with_shares(deployment, deployment.present)
    context = {"section": "deployments", "page": shown, "sort": sort, "q": text, "archived": archived}
    return page(request, "serving/list.html", context, partial="serving/_table.html")


def _with_shares(deployment: Deployment, variants: list[Variant]) -> None:
    of_keys = shares(deployment.allocation)
    for variant in variants:
        variant.share = of_keys.get(str(variant.pk), 0.0)  # type: ignore[attr-defined]


def _with_runtimes(variants: list[Variant]) -> None:
    said = [one.runtimes for one in processes.told()] if variants else []
    for variant in variants:
        variant.runtime = processes.together(said, str(variant.version_id), "without it in memory yet")  # type: ignore[attr-defined]


@require_http_methods(["GET", "HEAD", "POST"])
def deployment_new(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    require(request.user, "deploy", organization)
    versions = servable_versions(request.user, organization)
    form = DeploymentForm(
        request.POST if request.method == "POST" else None, versions=versions,
        initial={"version": request.GET.get("version", "")},
    )  # fmt: skip
    if request.method == "POST" and form.is_valid():
        wanted = form.cleaned_data
        try:
            made = services.create_deployment(
                actor=request.user, organization=organization, name=wanted["name"],
                description=wanted["description"], variants=[services.Wanted(wanted["version"])],
                reason=wanted["reason"], despite_problems=wanted["despite_problems"],
            )  # fmt: skip
        except ValidationError as error:
            add_errors(form, error)
        except Conflict as conflict:
            form.add_error("version", str(conflict.detail))
        else:
            said(request, f"“{made.name}” answers from now on.")
            return redirect("deployment", made.pk)
    return render(request, "serving/new.html", {"section": "deployments", "form": form, "versions": versions})


@require_safe
def deployment_page(request: HttpRequest, deployment: UUID) -> HttpResponse:
    found = deployment_or_404(request, deployment)
    part = {"requests": "serving/_requests.html"}.get(request.GET.get("part", ""))
    return page(request, "serving/deployment.html", page_context(request, found), partial=part)


def page_context(request: HttpRequest, found: Deployment) -> dict[str, Any]:
    """What the page of a deployment shows, as far as the person may see it; the other forms of the page have it too."""
    variants = list(Variant.objects.filter(deployment=found, removed_at=None).select_related("version__model"))
    _with_shares(found, variants)
    _with_runtimes(variants)
    can_deploy = may(request.user, "deploy", found)
    in_it = {row.version_id for row in variants}
    choices = candidates(request.user, found) if can_deploy else []  # type: ignore[arg-type]
    holder = holder_of(found)
    return {
        "section": "deployments",
        "deployment": found,
        "variants": variants,
        "can_deploy": can_deploy,
        "choices": [one for one in choices if one.pk not in in_it],
        "followable": [one for one in aliases_of({row.model_id for row in choices}) if one.version.pk not in in_it],
        **_holder_context(found, holder),
        "details_form": details_form(found, holder) if can_deploy else None,
        "experiments": found.experiments.select_related("control__model", "challenger__model").prefetch_related(
            "further__version__model"
        )[:EXPERIMENTS_SHOWN],
        "rollouts": found.rollouts.select_related("candidate__model")[:EXPERIMENTS_SHOWN],
        "changes": in_words(
            found.changes.select_related("actor", "undoes")[:CHANGES_SHOWN],
            held=state_of(found) if holder else None,
        ),
        **_log_context(found),
        **_try_context(request, found),
    }


def _holder_context(deployment: Deployment, holder: Holder | None) -> dict[str, Any]:
    """The experiment or canary that the variants belong to now, if any."""
    if holder is None:
        return {"holder": None}
    page_of_it = "canary" if isinstance(holder, Rollout) else "deployment-experiment"
    address = reverse(page_of_it, args=[deployment.pk, holder.number])
    return {"holder": holder, "holder_name": name_of(holder), "holder_address": address}


def _log_context(deployment: Deployment) -> dict[str, Any]:
    """The last requests with their labels, and what the labels say of each variant."""
    rows = PredictionRecord.objects.filter(deployment=deployment, role=Variant.Role.LIVE)
    rows = rows.select_related("variant__version__model")
    records = list(rows.order_by("-id")[:RECORDS_SHOWN])
    labels = prediction_log.labels_of(deployment.pk, [record.request_id for record in records])
    for record in records:
        record.told = told(record.predictions)
        record.labels = list(labels.get(record.request_id, {}).values())
    return {
        "records": records,
        "qualities": feedback.quality_of(deployment),
        "charts": latency_charts(deployment),
        "shadows": shadowing.comparisons_of(deployment),
    }


def told(answers: list[dict[str, Any]] | None) -> Any:
    """The first answer in a word; None after an error."""
    if not answers:
        return None
    first = answers[0]
    return next((first[name] for name in ("label", "labels", "value", "values", "text") if name in first), None)


# --- changes ------------------------------------------------------------------------------------------


def _why(request: HttpRequest, form: type[ChangeForm] = ChangeForm) -> dict[str, Any]:
    return submitted(form(request.POST))


@require_POST
def deployment_variants(request: HttpRequest, deployment: UUID) -> HttpResponse:
    found = deployment_or_404(request, deployment)
    require(request.user, "deploy", found)
    with refusals_as_messages(request):
        changed = services.change_variants(
            actor=request.user,
            deployment=found,
            variants=variants_of(request.user, request.POST),
            **_why(request, VariantsForm),
        )
        said(request, f"“{found.name}” is changed.", undo_of(changed))
    return redirect("deployment", found.pk)


@require_POST
def deployment_undo(request: HttpRequest, deployment: UUID) -> HttpResponse:
    """Take back the change named by `change`, its revision; without it the newest."""
    found = deployment_or_404(request, deployment)
    require(request.user, "deploy", found)
    with refusals_as_messages(request):
        change = _change(found, request.POST.get("change", ""))
        why = submitted(ChangeForm(request.GET.dict() | request.POST.dict()))  # a message's button has only an address
        changed = services.undo_change(actor=request.user, deployment=found, change=change, **why)
        moved = changed.revision != found.revision  # else the newest change is another's
        said(request, f"“{found.name}” is as it was before.", undo_of(changed) if moved else "")
    return redirect("deployment", found.pk)


def undo_of(deployment: Deployment) -> str:
    """The address that takes back the change just made, as long as it is the newest."""
    return f"{reverse('deployment-undo', args=[deployment.pk])}?revision={deployment.revision}"


def _change(deployment: Deployment, revision: str) -> Any:
    if not revision:
        return None
    if not (revision.isascii() and revision.isdecimal() and len(revision) < 10):
        raise ValidationError("There is no such change.")
    return services.change_of(deployment=deployment, revision=int(revision))


@require_POST
def deployment_archive(request: HttpRequest, deployment: UUID) -> HttpResponse:
    return _archived(request, deployment, True, "does not answer any more")


@require_POST
def deployment_restore(request: HttpRequest, deployment: UUID) -> HttpResponse:
    return _archived(request, deployment, False, "answers again")


def _archived(request: HttpRequest, deployment: UUID, archived: bool, told: str) -> HttpResponse:
    found = deployment_or_404(request, deployment)
    require(request.user, "deploy", found)
    with refusals_as_messages(request):
        changed = services.set_archived(actor=request.user, deployment=found, archived=archived, **_why(request))
        said(request, f"“{found.name}” {told}.", undo_of(changed))
    return redirect("deployment", found.pk)


# --- trying it ----------------------------------------------------------------------------------------


def _try_context(request: HttpRequest, deployment: Deployment) -> dict[str, Any]:
    version = predictions.telling_version(deployment)
    inputs = version.signature.get("inputs", []) if version else []
    if not inputs or version is None or deployment.state != Deployment.State.ACTIVE:
        return {"try_form": None}
    form = DeploymentTryForm(
        initial=DeploymentTryForm.example(inputs), inputs=inputs, examples=_examples(request, version)
    )
    instance = example_of(version, {column["name"]: column.get("example") for column in inputs})
    return {"try_form": form, "curl": _curl(request, deployment, inputs, instance), **_writing_context(version)}


def _writing_context(version: ModelVersion) -> dict[str, Any]:
    """What the form of a language model has besides."""
    chats = takes_chats(version)
    return {"writes": version.task == LANGUAGE, "chat_form": ChatForm(asks_key=True) if chats else None}


def _examples(request: HttpRequest, version: ModelVersion) -> dict[str, Any]:
    return example_images(request.user, version)  # type: ignore[arg-type]


def _curl(request: HttpRequest, deployment: Deployment, inputs: Any, instance: dict[str, Any]) -> str:
    images = [column["name"] for column in inputs if column["type"] == "image"]
    instance = instance | dict.fromkeys(images, "BASE64_OF_AN_IMAGE_FILE")
    address = request.build_absolute_uri(f"/api/v1/deployments/{deployment.name}/predict")
    body = shlex.quote(json.dumps({"instances": [instance], "key": "customer 7"}, ensure_ascii=False))
    return (
        f'curl -X POST {shlex.quote(address)} \\\n  -H "Authorization: Bearer $DLP_API_KEY" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d {body}"
    )


@require_http_methods(["GET", "HEAD", "POST"])
def deployment_try(request: HttpRequest, deployment: UUID) -> HttpResponseBase:
    found = deployment_or_404(request, deployment)
    version = predictions.telling_version(found)
    if request.method != "POST" or version is None:
        return redirect("deployment", found.pk)
    require(request.user, "predict", found)
    inputs = version.signature.get("inputs", [])
    form = DeploymentTryForm(request.POST, request.FILES, inputs=inputs, examples=_examples(request, version))
    instance = form.instance() if form.is_valid() else {}
    context = {
        "deployment": found, "try_form": form, "curl": _curl(request, found, inputs, instance),
        **_writing_context(version),
    }  # fmt: skip
    if form.is_valid():
        context |= _answered(request, found, form, instance)
    if request.htmx:  # type: ignore[attr-defined]
        return render(request, "serving/_try.html", context)
    return render(request, "serving/try.html", {"section": "deployments", **context})


@require_http_methods(["GET", "HEAD", "POST"])
def deployment_chat(request: HttpRequest, deployment: UUID) -> HttpResponseBase:
    """As `registry.views.version.version_chat`."""
    found = deployment_or_404(request, deployment)
    version = predictions.telling_version(found)
    if request.method != "POST" or version is None or not takes_chats(version):
        return redirect("deployment", found.pk)
    require(request.user, "predict", found)
    form = ChatForm(asks_key=True) if "over" in request.POST else ChatForm(request.POST, asks_key=True)

    def ask(instance: dict[str, Any]) -> str:
        key = form.cleaned_data["key"] or None
        answer = predictions.predict(
            actor=request.user, deployment=found, instances=[instance], key=key  # type: ignore[arg-type]
        )  # fmt: skip
        return str(answer.predictions[0]["text"])

    if form.is_bound and form.is_valid():
        form = form.answered(ask)
    context = {**_try_context(request, found), "deployment": found, "chat_form": form}
    return render(request, "serving/try.html", {"section": "deployments", **context})


def _answered(
    request: HttpRequest, deployment: Deployment, form: DeploymentTryForm, instance: dict[str, Any]
) -> dict[str, Any]:
    try:
        answer = predictions.predict(
            actor=request.user, deployment=deployment, instances=[instance],  # type: ignore[arg-type]
            key=form.cleaned_data["key"] or None,
        )  # fmt: skip
    except ValidationError as error:
        form.add_refusal(error)
    except (Unavailable, Conflict, Unusable) as error:
        form.add_error(None, str(error.detail))
    except Http404:
        form.add_error(None, "The inference process does not know this version; it may have been removed.")
    else:
        by = ModelVersion.objects.select_related("model").get(pk=answer.version)
        return {"prediction": shown_prediction(answer.predictions[0]), "answer": answer, "answered_by": by}
    return {}
