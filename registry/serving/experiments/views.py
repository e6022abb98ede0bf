"""Pages of experiments on deployments."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from dlplatform.accounts.access import may, require
from dlplatform.accounts.pages import made_or_none, refusals_as_messages, said, submitted
from dlplatform.web import page
from registry.serving.forms import ChangeForm, candidate_named, candidates
from registry.serving.views import deployment_or_404

from . import looks, services
from .design import SHARES, make_plan, traffic_of, version_answering_most
from .forms import METRICS, DesignForm, ExperimentForm
from .models import Experiment, Look
from .sums import Measure

A_A_EFFECT = 0.02
LOOKS_SHOWN = 120


def experiment_or_404(request: HttpRequest, deployment: UUID, number: int) -> Experiment:
    found = services.experiment_numbered(deployment_or_404(request, deployment), number)
    if found is None:
        raise Http404
    return found


# --- planning -----------------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
def experiment_new(request: HttpRequest, deployment: UUID) -> HttpResponse:
    found = deployment_or_404(request, deployment)
    require(request.user, "deploy", found)
    control = version_answering_most(found)
    form = ExperimentForm(
        request.POST if request.method == "POST" else None, control=control,
        versions=candidates(request.user, found),  # type: ignore[arg-type]
        initial={"challenger": request.GET.get("challenger", "")},
    )  # fmt: skip
    if (
        request.method == "POST"
        and form.is_valid()
        and (
            made := made_or_none(
                form, lambda: services.create_experiment(actor=request.user, deployment=found, **form.wanted())
            )
        )
    ):
        said(request, f"Experiment {made.number} is planned; nothing has changed yet.")
        return redirect("deployment-experiment", found.pk, made.number)
    context = {"section": "deployments", "deployment": found, "form": form, "control": control}
    return render(request, "serving/experiment_new.html", context)


@require_POST
def experiment_plan(request: HttpRequest, deployment: UUID) -> HttpResponse:
    """What the form as it stands would take, as a part of its page."""
    found = deployment_or_404(request, deployment)
    form, context = DesignForm(request.POST), {}
    if form.is_valid():
        try:
            services.check_design(**form.design())
            b = candidate_named(request.user, found, request.POST.get("challenger", ""))  # type: ignore[arg-type]
            context = {
                "planned": make_plan(
                    deployment=found, control=version_answering_most(found), challenger=b, **form.design()
                )
            }
        except ValidationError as error:
            context = {"refusal": " ".join(error.messages)}
    else:
        context = {"refusal": "Fill in the difference that must not be missed, and the shares."}
    return render(request, "serving/_experiment_plan.html", context)


@require_POST
def experiment_same(request: HttpRequest, deployment: UUID) -> HttpResponse:
    """An A/A test by one click: of what the log can tell already, else of failures."""
    found = deployment_or_404(request, deployment)
    require(request.user, "deploy", found)
    with refusals_as_messages(request):
        control = version_answering_most(found)
        if control is None:
            raise ValidationError("Nobody answers in this deployment.")
        labelled = traffic_of(found, control, Measure("accuracy")).baseline is not None
        with transaction.atomic():
            made = services.create_experiment(
                actor=request.user, deployment=found, challenger=control.pk, minimum_effect=A_A_EFFECT,  # type: ignore[arg-type]
                metric="accuracy" if labelled else "errors", baseline=None if labelled else A_A_EFFECT,
                hypothesis="Nothing differs: the same version twice tells whether split and numbers can be believed.",
            )  # fmt: skip
            services.start_experiment(actor=request.user, experiment=made)  # type: ignore[arg-type]
        said(request, f"Experiment {made.number}, an A/A test, is running.")
        return redirect("deployment-experiment", found.pk, made.number)
    return redirect("deployment", found.pk)


# --- watching -----------------------------------------------------------------------------------------


@require_safe
def experiment_page(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    found = experiment_or_404(request, deployment, number)
    taken = list(found.taken.select_related("taken_by").order_by("-number")[:LOOKS_SHOWN])[::-1]
    context = {
        "section": "deployments",
        "deployment": found.deployment,
        "experiment": found,
        "metric": METRICS[found.metric],
        "moving": found.mode == Experiment.Mode.BANDIT,
        "paired": found.mode == Experiment.Mode.PAIRED,
        "arms": _arms(found),
        "in_points": found.metric in SHARES,
        "looks": taken[::-1],
        "last": taken[-1] if taken else None,
        "charts": traffic_chart(found, taken) if found.mode == Experiment.Mode.BANDIT else interval_chart(found, taken),
        "guardrails": _guardrails(found, taken),
        "may_act": may(request.user, "deploy", found.deployment),
    }
    return page(request, "serving/experiment.html", context, partial="serving/_experiment.html")


def _guardrails(experiment: Experiment, taken: list[Look]) -> list[dict[str, Any]]:
    """What was seen last of each: by a tick, or by the look that ended it."""
    if taken and taken[-1].kind == Look.Kind.HARM:
        return list(taken[-1].results["guardrails"])
    return list(experiment.watched.get("guardrails", []))


def _arms(experiment: Experiment) -> list[dict[str, Any]]:
    """What the last tick saw of each arm."""
    told = experiment.watched.get("bandit")
    seen = experiment.watched.get("units", {})
    return [
        {
            "name": arm.upper(), "version": version, "planned": planned, "units": seen.get(arm),
            "mean": experiment.watched.get("means", {}).get(arm),
            "bandit": {name: told[name][arm] for name in ("shares", "best", "requests", "means", "values")} if told else None,
        }
        for arm, version, planned in (
            ("a", experiment.control, experiment.units_a), ("b", experiment.challenger, experiment.units_b)
        )
    ]  # fmt: skip


def traffic_chart(experiment: Experiment, taken: list[Look]) -> list[dict[str, Any]]:
    """B's share of the traffic, and how probable it is that B is the better one, over the hours since the start."""
    assert not taken or experiment.started_at is not None
    told = [((one.until - experiment.started_at).total_seconds() / 3600, one.results["bandit"]) for one in taken]  # type: ignore[operator]
    if not told:
        return []
    series = [
        {"name": name, "color": color, "points": [[round(hours, 4), 100 * one[key]["b"]] for hours, one in told]}
        for name, color, key in (("B's share of the traffic", 0, "shares"), ("B is the better one", 2, "best"))
    ]
    return [{"kind": "line", "title": "Percent", "x": "hours since the start", "series": series}]


def interval_chart(experiment: Experiment, taken: list[Look]) -> list[dict[str, Any]]:
    """The difference and its interval over the share of the plan, as `static/js/figures.js` draws it."""
    told = [one.results["verdict"] for one in taken]
    drawn = [one for one in told if one["low"] is not None]
    if not drawn:
        return []
    scale = 100 if experiment.metric in SHARES else 1
    difference = {
        "name": "B better by, with its interval", "color": 0,
        "points": [[100 * one["fraction"], scale * one["gain"]] for one in drawn],
        "band": [[100 * one["fraction"], scale * one["low"], scale * one["high"]] for one in drawn],
    }  # fmt: skip
    ends = [0.0, max(100.0, 100 * drawn[-1]["fraction"])]
    least = scale * experiment.minimum_effect
    lines = [
        {"name": name, "color": color, "points": [[end, height] for end in ends]}
        for name, color, height in (
            ("no difference", 9, 0.0),
            ("minimum effect", 2, least),
            ("the same, worse", 6, -least),
        )
    ]
    unit = "points" if scale == 100 else "the metric's unit"
    return [
        {
            "kind": "line",
            "title": f"Difference in {unit}",
            "x": "% of the plan",
            "whole": True,
            "series": [difference, *lines],
        }
    ]


# --- acting -------------------------------------------------------------------------------------------


def _acted(
    request: HttpRequest, deployment: UUID, number: int, verb: Any, told: str, *, undo: bool = True
) -> HttpResponse:
    found = experiment_or_404(request, deployment, number)
    require(request.user, "deploy", found.deployment)
    with refusals_as_messages(request):
        reason = submitted(ChangeForm(request.POST))["reason"]
        verb(actor=request.user, experiment=found, reason=reason)
        said(request, told, reverse("deployment-undo", args=[found.deployment_id]) if undo else "")
    return redirect("deployment-experiment", found.deployment_id, number)


@require_POST
def experiment_start(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(request, deployment, number, services.start_experiment, "The traffic is split.", undo=False)


@require_POST
def experiment_stop(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(request, deployment, number, services.stop_experiment, "It is stopped.", undo=False)


@require_POST
def experiment_promote(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(request, deployment, number, services.promote, "B answers alone from now on.")


@require_POST
def experiment_keep(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(request, deployment, number, services.keep, "A answers alone from now on.")


@require_POST
def experiment_look(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    found = experiment_or_404(request, deployment, number)
    require(request.user, "deploy", found.deployment)
    with refusals_as_messages(request):
        looks.look_now(actor=request.user, experiment=found)  # type: ignore[arg-type]
    return redirect("deployment-experiment", found.deployment_id, number)
