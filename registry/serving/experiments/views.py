"""Pages of experiments on deployments."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from dlplatform.accounts.access import may, require
from dlplatform.accounts.pages import made_or_none, refusals_as_messages, said, submitted
from dlplatform.web import page
from registry.models import ModelVersion
from registry.serving.forms import ChangeForm, VariantsForm, candidate_named, candidates
from registry.serving.views import deployment_or_404, undo_of

from . import looks, returns, services
from .arms import LETTERS, arms_of, first_shares
from .bandits import out_of
from .design import SHARES, make_plan, traffic_of, version_answering_most
from .design_checks import check_design
from .forms import METRICS, DesignForm, ExperimentForm, PromoteForm, PutBackForm
from .models import MOST_ARMS, Experiment, Look
from .sums import Measure

A_A_EFFECT = 0.02
LOOKS_SHOWN = 120
UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
MOST_SHORT = 3  # of a unit, below which a time is counted in the next shorter one


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
        roles=dict(found.variants.filter(removed_at=None).values_list("version_id", "role")),
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
    context = {"section": "deployments", "deployment": found, "form": form, "control": control, "most_arms": MOST_ARMS}
    return render(request, "serving/experiment_new.html", context)


@require_POST
def experiment_plan(request: HttpRequest, deployment: UUID) -> HttpResponse:
    """What the form as it stands would take, as a part of its page."""
    found = deployment_or_404(request, deployment)
    form, context = DesignForm(request.POST), {}
    if form.is_valid():
        try:
            check_design(**form.design())
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
    out = out_of(taken[-1].results) if taken and found.mode == Experiment.Mode.BANDIT else []
    arms, may_act = _arms(found, out), may(request.user, "deploy", found.deployment)
    context = {
        "section": "deployments",
        "deployment": found.deployment,
        "experiment": found,
        "metric": METRICS[found.metric],
        "many": len(arms) > 2,
        "settles": may_act and _ends_by_hand(found),
        "returnable": out if may_act and found.state == Experiment.State.RUNNING else [],
        "returning": request.GET.get("arm", ""),
        "moving": found.mode == Experiment.Mode.BANDIT,
        "paired": found.mode == Experiment.Mode.PAIRED,
        "arms": arms,
        "in_points": found.metric in SHARES,
        "looks": taken[::-1],
        "last": taken[-1] if taken else None,
        "charts": traffic_charts(found, taken)
        if found.mode == Experiment.Mode.BANDIT
        else interval_chart(found, taken),
        "guardrails": _guardrails(found, taken),
        "may_act": may_act,
        "problems": services.problems_of_arms(found) if found.state == Experiment.State.DRAFT else [],
    }
    return page(request, "serving/experiment.html", context, partial="serving/_experiment.html")


def _ends_by_hand(experiment: Experiment) -> bool:
    """Whether somebody may promote a version, or keep A: a bandit's at any time."""
    if experiment.state == Experiment.State.RUNNING:
        return experiment.mode == Experiment.Mode.BANDIT
    stopped = experiment.state == Experiment.State.STOPPED and experiment.started_at is not None
    return stopped or experiment.state == Experiment.State.DECIDED


def _guardrails(experiment: Experiment, taken: list[Look]) -> list[dict[str, Any]]:
    """What was seen last of each: by a tick, or by the look that ended it, or that put an arm back since the last tick."""
    last = taken[-1] if taken else None
    ended = last is not None and last.kind == Look.Kind.HARM and not experiment.holds
    if last and (ended or (last.arm and (experiment.watched_at or last.taken_at) <= last.taken_at)):
        return list(last.results["guardrails"])
    return list(experiment.watched.get("guardrails", []))


TOLD = ("shares", "best", "requests", "means", "values", "expected_regret")


def _arms(experiment: Experiment, out: list[str]) -> list[dict[str, Any]]:
    """What the last tick saw of each arm, and which are ``out`` by the last look."""
    arms = arms_of(experiment)
    versions = ModelVersion.objects.select_related("model").in_bulk([one.version for one in arms])
    told = experiment.watched.get("bandit")
    seen = experiment.watched.get("units", {})
    planned = {"a": experiment.units_a, "b": experiment.units_b}
    return [
        {
            "letter": one.letter, "name": one.letter.upper(), "version": versions[one.version], "planned": planned.get(one.letter),
            "units": seen.get(one.letter), "mean": experiment.watched.get("means", {}).get(one.letter),
            "out": one.letter in out,
            "bandit": {name: told.get(name, {}).get(one.letter) for name in TOLD} if told else None,
        }
        for one in arms
    ]  # fmt: skip


def traffic_charts(experiment: Experiment, taken: list[Look]) -> list[dict[str, Any]]:
    """Each arm's share of the traffic, and how probable it is that it is the best one, over the time since the start.

    Of two, A's are what B's leave.
    """
    assert not taken or experiment.started_at is not None
    told = [((one.until - experiment.started_at).total_seconds(), one.results["bandit"]) for one in taken]  # type: ignore[operator]
    if not told:
        return []
    arms = [one.letter for one in arms_of(experiment)]
    if taken[0].number == 1:
        nothing_known = {"shares": first_shares(arms, experiment.share), "best": dict.fromkeys(arms, 1 / len(arms))}
        told = [(0.0, nothing_known), *told]
    if len(arms) == 2:
        lines = [("B's share of the traffic", 0, "shares", "b"), ("B is the better one", 2, "best", "b")]
        return [_percents("Percent", told, lines)]
    return [
        _percents(title, told, [(arm.upper(), LETTERS.index(arm), key, arm) for arm in arms])
        for title, key in (("Traffic, percent", "shares"), ("Probability of being the best one, percent", "best"))
    ]


def _percents(
    title: str, told: list[tuple[float, dict[str, Any]]], lines: list[tuple[str, int, str, str]]
) -> dict[str, Any]:
    """A chart with these lines: name, color, which figure, of which arm. ``told``: by seconds since the start."""
    unit, length = time_unit(told[-1][0])
    series = [
        {"name": name, "color": color, "points": [[round(at / length, 4), 100 * one[key][arm]] for at, one in told]}
        for name, color, key, arm in lines
    ]
    return {"kind": "line", "title": title, "x": f"{unit} since the start", "series": series}


def time_unit(seconds: float) -> tuple[str, int]:
    """In what a time so long is best counted, and how many seconds that has."""
    return next(one for one in UNITS if seconds >= MOST_SHORT * one[1] or one is UNITS[-1])


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
    request: HttpRequest, deployment: UUID, number: int, verb: Any, told: str, *, undo: bool = True,
    form: type[ChangeForm] = ChangeForm,
) -> HttpResponse:  # fmt: skip
    found = experiment_or_404(request, deployment, number)
    require(request.user, "deploy", found.deployment)
    with refusals_as_messages(request):
        given = submitted(form(request.POST))
        given.pop("revision")
        changed = verb(actor=request.user, experiment=found, **given)
        found.deployment.refresh_from_db(fields=["revision"])
        said(request, told.format(arm=changed.promoted.upper()), undo_of(found.deployment) if undo else "")
    return redirect("deployment-experiment", found.deployment_id, number)


@require_POST
def experiment_start(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    verb, told = services.start_experiment, "The traffic is split."
    return _acted(request, deployment, number, verb, told, undo=False, form=VariantsForm)


@require_POST
def experiment_stop(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(request, deployment, number, services.stop_experiment, "It is stopped.", undo=False)


@require_POST
def experiment_promote(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(request, deployment, number, services.promote, "{arm} answers alone from now on.", form=PromoteForm)


@require_POST
def experiment_keep(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    return _acted(request, deployment, number, services.keep, "A answers alone from now on.")


@require_POST
def experiment_put_back(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    found = experiment_or_404(request, deployment, number)
    require(request.user, "deploy", found.deployment)
    with refusals_as_messages(request):
        given = submitted(PutBackForm(request.POST))
        look = returns.put_back(actor=request.user, experiment=found, **given)  # type: ignore[arg-type]
        said(request, f"{look.arm.upper()} answers again, and its guardrails begin anew.")
    return redirect("deployment-experiment", found.deployment_id, number)


@require_POST
def experiment_look(request: HttpRequest, deployment: UUID, number: int) -> HttpResponse:
    found = experiment_or_404(request, deployment, number)
    require(request.user, "deploy", found.deployment)
    with refusals_as_messages(request):
        looks.look_now(actor=request.user, experiment=found)  # type: ignore[arg-type]
    return redirect("deployment-experiment", found.deployment_id, number)
