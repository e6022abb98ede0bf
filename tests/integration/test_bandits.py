"""Bandits on deployments: the traffic follows what is earned, every move is logged and computed again, guardrails end it."""

from datetime import timedelta

import pytest
from django.utils import timezone

from registry.models import ModelVersion
from registry.serving.experiments import looks, ticking
from registry.serving.experiments import services as experiments
from registry.serving.models import Deployment, DeploymentChange, Experiment, Look, PredictionRecord
from tests.integration.experimenting import deployment, right, shares_of, started, versions, write  # noqa: F401

pytestmark = pytest.mark.django_db


@pytest.fixture
def url(deployment):  # noqa: F811
    return f"/api/v1/deployments/{deployment.pk}/experiments"


@pytest.fixture
def moving(maintainer, deployment, versions):  # noqa: F811
    """``moving(**design)``: a bandit that was started two hours ago and has an empty log."""

    def start(**design):
        wanted = {"mode": "bandit", "metric": "accuracy", "challenger": versions[1].pk} | design
        made = experiments.create_experiment(actor=maintainer, deployment=deployment, **wanted)
        return started(experiments.start_experiment(actor=maintainer, experiment=made), 7200.0)

    return start


def after(experiment):
    return Experiment.objects.get(pk=experiment.pk)


def tick(experiment, later=0):
    """A tick, as if the pause before it were over and the last move had been ``later`` seconds ago."""
    Experiment.objects.filter(pk=experiment.pk).update(watch_after=None)
    if later:
        Look.objects.filter(experiment=experiment).update(until=timezone.now() - timedelta(seconds=later))
    return ticking.tick()["looks"]


def test_the_traffic_follows_what_is_earned_and_every_move_is_computed_again(
    api, viewer, maintainer, moving, deployment, url  # noqa: F811
):  # fmt: skip
    experiment = moving()
    assert shares_of(deployment) == {"1": 0.5, "2": 0.5} and (experiment.units_a, experiment.minimum_effect) == (0, 0)
    assert tick(experiment) == 0, "nothing was seen"
    write(experiment.variant_a, right(60, 100), ago=600, propensity=0.5)
    write(experiment.variant_b, right(70, 100), ago=600, propensity=0.5)
    assert tick(experiment) == 1
    first = Look.objects.get()
    told = first.results["bandit"]
    assert first.kind == "move" and 0.85 < told["shares"]["b"] < 0.95 and told["requests"] == {"a": 100, "b": 100}
    assert told["values"] == {"a": 0.6, "b": 0.7} and told["regret"] == pytest.approx(told["regret_of_even"])
    assert shares_of(deployment) == {"1": told["shares"]["a"], "2": told["shares"]["b"]}
    change = DeploymentChange.objects.first()
    assert change.actor is None and change.revision == first.revision == 3
    assert "B is the better one with a probability of" in change.reason
    write(experiment.variant_a, right(30, 50), ago=400, propensity=told["shares"]["a"])
    write(experiment.variant_b, right(630, 900), ago=400, propensity=told["shares"]["b"])
    assert tick(experiment, later=30) == 0, "not within a minute"
    assert after(experiment).watched["bandit"]["shares"]["b"] == pytest.approx(0.95, abs=0.01)
    assert tick(experiment, later=90) == 1
    second = Look.objects.last()
    assert 0.05 <= second.results["bandit"]["shares"]["a"] < 0.06, "the floor"
    assert second.results["bandit"]["regret"] < second.results["bandit"]["regret_of_even"] / 2
    assert tick(experiment, later=90) == 0, "nothing is to be moved"
    listed = api(viewer).get(f"{url}/1/looks").json()["results"]
    assert listed[0]["bandit"] == second.results["bandit"] and listed[0]["revision"] == 4
    assert listed[0]["verdict"]["ended"] is False
    replayed = [{"number": n, "results_agree": True, "sums_agree": True} for n in (1, 2)]
    # the test set the clock of the first look back: its log then is another
    assert api(viewer).get(f"{url}/1/replay").json()["looks"][1:] == replayed[1:]
    DeploymentChange.objects.filter(revision=4).update(after={"variants": []})
    assert api(viewer).get(f"{url}/1/replay").json()["looks"][1]["results_agree"] is False, (
        "what was done is checked too"
    )
    done = api(maintainer).post(f"{url}/1/promote", {}, format="json").json()
    assert done["state"] == "promoted" and "B is the better one" in done["conclusion"]
    assert shares_of(deployment) == {"2": 1.0}


def test_what_a_version_is_worth_is_estimated_without_the_bias_of_the_moves(moving):
    """B was asked a lot while everything went well: its plain mean flatters it, and the estimate does not."""
    experiment = moving()
    for good, of_b in ((True, 0.2), (False, 0.8)):
        for variant, share in ((experiment.variant_a, 1 - of_b), (experiment.variant_b, of_b)):
            count = round(1000 * share)
            write(variant, right(round(count * (0.9 if good else 0.5)), count), propensity=share)
    told = looks.judge(experiment, looks.read_sums(experiment, looks.window_of(experiment)), timezone.now(), ())[
        "bandit"
    ]
    assert told["means"]["a"] - told["means"]["b"] > 0.2, "the plain means differ by when they were asked"
    assert told["values"]["a"] == pytest.approx(0.7) and told["values"]["b"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("metric", "a", "b", "design", "means"),
    [
        ("number", [2.0, -5.0, 40.0], [8.0, 9.0, 10.0], {"cap": 10.0}, (4.0, 9.0)),
        ("absolute_error", [4.0, 6.0, 99.0], [1.0, 2.0, 3.0], {"cap": 10.0}, (20 / 3, 2.0)),
        ("errors", ["x", "", ""], ["", "", ""], {}, (1 / 3, 0.0)),
        ("latency", [50.0, 70.0, 900.0], [5.0, 10.0, 15.0], {"cap": 100.0}, (220 / 3, 10.0)),
    ],
)  # fmt: skip
def test_every_bounded_metric_is_a_reward(moving, metric, a, b, design, means):
    ModelVersion.objects.update(task="regression")
    experiment = moving(metric=metric, **design)
    for variant, values in ((experiment.variant_a, a * 20), (experiment.variant_b, b * 20)):
        more = {"latency": {"milliseconds": values}, "errors": {"errors": values}}.get(metric, {})
        outcomes = [None] * len(values) if more else values
        write(variant, outcomes, metric=metric, propensity=0.5, **more)
    assert tick(experiment) == 1
    told = Look.objects.get().results["bandit"]
    assert (told["values"]["a"], told["values"]["b"]) == pytest.approx(means)
    assert told["best"]["b"] > 0.95 and told["shares"]["b"] > 0.9
    assert all(one.results_agree and one.sums_agree for one in looks.replay(experiment))


@pytest.mark.parametrize(
    ("wrong", "attr"),
    [
        ({"metric": "number"}, "cap"), ({"covariate": True}, "covariate"), ({"promotes": True}, "promotes"),
        ({"mode": "luck"}, "mode"), ({"guardrails": [{"kind": "errors", "tolerance": 0.1}]}, "guardrails.0.tolerance"),
    ],
)  # fmt: skip
def test_what_a_bandit_cannot_be_is_refused_by_its_field(api, maintainer, versions, url, wrong, attr):  # noqa: F811
    body = {"mode": "bandit", "metric": "accuracy", "challenger": str(versions[1].pk)} | wrong
    answer = api(maintainer).post(url, body, format="json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == attr, answer.content
    same = api(maintainer).post(url, body | {"challenger": str(versions[0].pk)}, format="json")
    assert same.status_code == 400 and not Experiment.objects.exists()
    plan = api(maintainer).post(f"{url}/plan", {"mode": "bandit", "metric": "accuracy"}, format="json")
    assert plan.json()["errors"][0]["attr"] == "mode"


def test_a_guardrail_ends_it_and_a_person_may_at_any_time(api, maintainer, trainer, moving, deployment, url):  # noqa: F811
    experiment = moving(guardrails_wanted=[{"kind": "errors", "limit": 0.02}])
    Deployment.objects.update(sample_rate=1.0)
    write(experiment.variant_a, right(5, 10), propensity=0.5)
    write(experiment.variant_b, right(10, 10), propensity=0.5)
    write(experiment.variant_b, [None] * 6, errors=["failed"] * 6, propensity=0.5)
    assert tick(experiment) == 1
    look, ended = Look.objects.get(), after(experiment)
    assert (look.kind, look.revision) == ("harm", None) and (ended.state, ended.outcome) == ("stopped", "harm")
    assert shares_of(deployment) == {"1": 1.0} and "Failed requests" in DeploymentChange.objects.first().reason
    assert all(one.results_agree and one.sums_agree for one in looks.replay(experiment))
    PredictionRecord.objects.all().delete()
    moving()
    assert api(trainer).post(f"{url}/2/keep", {}, format="json").status_code == 403
    asked = api(maintainer).post(f"{url}/2/looks", {}, format="json")
    assert asked.status_code == 201 and asked.json()["bandit"]["shares"] == {"a": 0.5, "b": 0.5}
    assert api(maintainer).post(f"{url}/2/keep", {}, format="json").json()["state"] == "kept"
    assert shares_of(deployment) == {"1": 1.0}


def test_its_page_shows_who_earns_what(web, maintainer, viewer, deployment, versions):  # noqa: F811
    from django.urls import reverse

    new = reverse("deployment-experiment-new", args=[deployment.pk])
    form = {"mode": "bandit", "metric": "accuracy", "share": "0.5", "looks": "4", "alpha": "0.05", "power": "0.8"}
    made = web(maintainer).post(new, form | {"challenger": str(versions[1].pk)})
    assert made.status_code == 302, made.content.decode()
    assert "5.0 % at least" in web(viewer).get(made.url).content.decode()
    web(maintainer).post(reverse("deployment-experiment-start", args=[deployment.pk, 1]))
    experiment = started(Experiment.objects.get())
    empty = web(maintainer).get(made.url).content.decode()
    assert "nothing was seen yet" in empty and "Promote B" in empty and "of the plan" not in empty
    write(experiment.variant_a, right(60, 100), propensity=0.5)
    write(experiment.variant_b, right(70, 100), propensity=0.5)
    tick(experiment)
    page = web(maintainer).get(made.url).content.decode()
    assert "B is the better one with a probability of" in page and "If always asked" in page and "70.0 %" in page
    assert (
        "B&#x27;s share of the traffic" in page or "B's share of the traffic" in page or "share of the traffic" in page
    )
    kept = web(maintainer).post(reverse("deployment-experiment-keep", args=[deployment.pk, 1]), follow=True)
    assert "A answers alone" in kept.content.decode() and shares_of(deployment) == {"1": 1.0}
