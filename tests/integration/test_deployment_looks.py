"""Looks at running experiments: what they say, what they do, how they are computed again, and what watches meanwhile."""

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from dlplatform.api import Conflict
from registry.models import ModelVersion
from registry.serving import feedback
from registry.serving.experiments import looks, ticking
from registry.serving.experiments import services as experiments
from registry.serving.models import Deployment, DeploymentChange, Experiment, Look, PredictionRecord
from tests.integration.experimenting import deployment, right, shares_of, started, versions, write  # noqa: F401

pytestmark = pytest.mark.django_db


@pytest.fixture
def running(maintainer, deployment, versions):  # noqa: F811
    """``running(**design)``: an experiment that was started an hour ago and has an empty log."""

    def start(ago=3600.0, **design):
        wanted = {"metric": "accuracy", "minimum_effect": 0.1, "baseline": 0.8, "challenger": versions[1].pk} | design
        made = experiments.create_experiment(actor=maintainer, deployment=deployment, **wanted)
        return started(experiments.start_experiment(actor=maintainer, experiment=made), ago)

    return start


def after(experiment):
    return Experiment.objects.get(pk=experiment.pk)


def look_again(experiment):
    """A tick, as if the pause before it were over."""
    Experiment.objects.filter(pk=experiment.pk).update(watch_after=None)
    return ticking.tick()["looks"]


# --- verdicts -----------------------------------------------------------------------------------------


def test_looks_are_taken_when_due_until_the_verdict_and_agree_when_computed_again(
    api, maintainer, viewer, running, deployment  # noqa: F811
):  # fmt: skip
    experiment = running(looks=4, minimum_effect=0.06, ago=7200.0)
    size = experiment.units_a
    assert look_again(experiment) == 0, "nothing was seen"
    for part, ago in ((0.1, 3000), (0.2, 2000)):
        count = round(size * part)
        write(experiment.variant_a, right(round(count * 0.8), count), ago=ago)
        write(experiment.variant_b, right(round(count * 0.82), count), ago=ago)
        look_again(experiment)
    assert Look.objects.count() == 1, "a quarter of the plan makes the first look due"
    first = Look.objects.get()
    assert first.kind == "due" and first.results["verdict"]["outcome"] == "not_enough"
    assert first.results["verdict"]["low"] < 0.02 < first.results["verdict"]["high"]
    assert (
        "days more at most" in first.results["verdict"]["sentence"]
        or "1 day more" in first.results["verdict"]["sentence"]
    )
    assert after(experiment).watched["fraction"] == pytest.approx(0.3, abs=0.01)
    write(experiment.variant_a, right(round(size * 0.8 * 0.6), round(size * 0.6)), ago=1000)
    write(experiment.variant_b, right(round(size * 0.95 * 0.6), round(size * 0.6)), ago=1000)
    assert look_again(experiment) == 1
    ended = after(experiment)
    assert (ended.state, ended.outcome) == ("decided", "b_better")
    assert ended.conclusion.startswith("B is better by") and ended.conclusion.endswith("promote.")
    assert shares_of(deployment) == {"1": 0.5, "2": 0.5}, "the traffic waits for a person"
    assert look_again(experiment) == 0
    url = f"/api/v1/deployments/{deployment.pk}/experiments/{experiment.number}"
    listed = api(viewer).get(f"{url}/looks").json()["results"]
    assert [one["number"] for one in listed] == [2, 1] and listed[0]["verdict"]["ended"] is True
    told = api(viewer).get(f"{url}/replay").json()
    assert told == {
        "agrees": True,
        "looks": [{"number": n, "results_agree": True, "sums_agree": True} for n in (1, 2)],
    }
    assert api(maintainer).post(f"{url}/promote", {}, format="json").json()["conclusion"] == ended.conclusion
    assert shares_of(deployment) == {"2": 1.0} and Deployment.objects.get().sample_rate == 1.0


@pytest.mark.parametrize(
    ("better", "promotes", "state", "answers"),
    [(0.95, True, "promoted", "2"), (0.6, True, "kept", "1"), (0.8, True, "decided", None)],
)
def test_it_acts_on_a_clear_verdict_where_it_may(running, deployment, better, promotes, state, answers):  # noqa: F811
    experiment = running(promotes=promotes)
    count = experiment.units_a + 1
    write(experiment.variant_a, right(round(count * 0.8), count))
    write(experiment.variant_b, right(round(count * better), count))
    assert look_again(experiment) == 1
    assert after(experiment).state == state
    assert shares_of(deployment) == ({answers: 1.0} if answers else {"1": 0.5, "2": 0.5})
    if answers:
        assert (
            "by its verdict" in DeploymentChange.objects.first().reason
            and DeploymentChange.objects.first().actor is None
        )


@pytest.mark.parametrize(
    ("metric", "a", "b", "design"),
    [
        ("absolute_error", [1.0, 2.0] * 50, [0.5, 1.0] * 50, {"minimum_effect": 0.5, "baseline": 0.5}),
        ("number", [10.0, 20.0] * 50, [20.0, 45.0] * 50, {"minimum_effect": 5, "baseline": 10, "cap": 40.0}),
        ("latency", [5.0, 6.0] * 50, [3.0, 4.0] * 50, {"minimum_effect": 0.5, "baseline": 0.5}),
        ("errors", ["x", "", ""] * 100, ["x"] * 10 + [""] * 290, {"minimum_effect": 0.2, "baseline": 0.3}),
    ],
)  # fmt: skip
def test_every_metric_is_read_from_the_log(running, versions, metric, a, b, design):  # noqa: F811
    if metric == "absolute_error":
        ModelVersion.objects.update(task="regression")
    experiment = running(metric=metric, **design)
    for variant, values in ((experiment.variant_a, a), (experiment.variant_b, b)):
        if metric == "latency":
            write(variant, [None] * len(values), milliseconds=values)
        elif metric == "errors":
            write(variant, [None] * len(values), errors=values)
        else:
            write(variant, values, metric=metric)
    assert look_again(experiment) == 1
    look = Look.objects.get()
    assert look.results["verdict"]["outcome"] == "b_better", look.results
    sums = look.sums["outcomes"]
    if metric == "number":
        assert sums["b"] == [100, 20.0 * 50 + 40 * 50, 400.0 * 50 + 1600 * 50], "each unit counts at most the cap"
    if metric == "errors":
        assert sums["a"] == [300, 100.0, 100.0] and sums["b"] == [300, 10.0, 10.0]
    assert all(one.results_agree and one.sums_agree for one in looks.replay(experiment))


def test_a_unit_is_a_key_and_a_label_that_makes_no_sense_is_none(running):
    experiment = running(metric="number", minimum_effect=1, baseline=1, missing_as_zero=True)
    write(experiment.variant_a, [1, 2, None, True, "text", None], metric="number", keys=["k", "k", "k", "m", "n", ""])
    write(experiment.variant_b, [None, None])
    window = looks.window_of(experiment)
    sums = looks.read_sums(experiment, window)
    assert sums["units"] == {"a": [4, 6], "b": [2, 2]}
    assert sums["outcomes"] == {"a": [4, 4.0, 10.0], "b": [2, 0.0, 0.0]}, "3, 1, and two without feedback"
    experiment.missing_as_zero = False
    assert looks.read_sums(experiment, window)["outcomes"] == {"a": [2, 4.0, 10.0], "b": [0, 0.0, 0.0]}
    write(experiment.variant_b, [1e299, -1e299], metric="number")
    assert looks.read_sums(experiment, looks.window_of(experiment))["outcomes"]["b"][0] == 2, "no number is too large"


def test_what_keys_did_before_takes_the_noise_out(running, deployment):  # noqa: F811
    habits = [float(10 * (number % 10)) for number in range(200)]
    keys = [f"k{number}" for number in range(200)]
    write(deployment.variants.get(), habits, metric="number", keys=keys, ago=7200)
    experiment = running(metric="number", minimum_effect=1, baseline=28, covariate=True)
    noise = [0.1 * (number % 3) for number in range(200)]
    after_a = [habit + extra for habit, extra in zip(habits, noise, strict=True)]
    write(experiment.variant_a, after_a[:100], metric="number", keys=keys[:100])
    write(experiment.variant_b, [value + 1 for value in after_a[100:]], metric="number", keys=keys[100:])
    window = looks.window_of(experiment)
    look = looks.record_look(experiment, window, looks.read_sums(experiment, window), "asked")
    assert look.results["variance_left"] < 0.01
    assert look.results["verdict"]["observed"] == pytest.approx(1.0, abs=0.05)
    assert [one.sums_agree for one in looks.replay(experiment)] == [True]


def test_what_was_assigned_before_the_split_was_known_does_not_count(running):
    """An inference process goes on with what it has until it has loaded B; that is no wrong split."""
    experiment = running()
    assert experiment.revision == 2
    write(experiment.variant_a, right(700, 1000), revision=1)
    write(experiment.variant_a, right(7, 10), revision=2)
    write(experiment.variant_b, right(7, 10), revision=2)
    sums = looks.read_sums(experiment, looks.window_of(experiment))
    assert sums["units"] == {"a": [10, 10], "b": [10, 10]} and sums["outcomes"]["a"] == [10, 7.0, 7.0]


# --- asking -------------------------------------------------------------------------------------------


def test_a_look_is_asked_for_by_a_maintainer_while_it_runs(api, maintainer, trainer, running, deployment):  # noqa: F811
    experiment = running()
    url = f"/api/v1/deployments/{deployment.pk}/experiments/{experiment.number}/looks"
    write(experiment.variant_a, right(8, 10))
    assert api(trainer).post(url).status_code == 403
    answer = api(maintainer).post(url)
    assert answer.status_code == 201, answer.content
    assert answer.json()["taken_by"] == "maintainer" and answer.json()["verdict"]["outcome"] == "not_enough"
    with pytest.raises(ValueError, match="never changed"):
        Look.objects.get().save()
    window = looks.window_of(experiment)
    old = looks.Window(window.deployment, window.since, Look.objects.get().until, window.last_record)
    with pytest.raises(Conflict) as again:
        looks.record_look(experiment, old, looks.read_sums(experiment, old), "asked")
    assert again.value.get_codes() == "nothing_new"
    PredictionRecord.objects.all().delete()
    window = looks.window_of(experiment)
    experiments.stop_experiment(actor=maintainer, experiment=experiment)
    assert api(maintainer).post(url).json()["errors"][0]["code"] == "is_stopped"
    with pytest.raises(Conflict):
        looks.record_look(experiment, window, looks.read_sums(experiment, window), "due")
    assert [(one.results_agree, one.sums_agree) for one in looks.replay(experiment)] == [(True, False)]


def test_looks_run_out_but_for_the_last(running, monkeypatch):
    experiment = running()
    monkeypatch.setattr(looks, "MOST_LOOKS", 2)
    write(experiment.variant_a, right(8, 10))

    def take():
        window = looks.window_of(experiment)
        return looks.record_look(experiment, window, looks.read_sums(experiment, window), "asked")

    take()
    with pytest.raises(Conflict) as refused:
        take()
    assert refused.value.get_codes() == "looks_used_up"
    for variant in (experiment.variant_a, experiment.variant_b):
        write(variant, right(900, 1000))
    assert take().results["verdict"]["ended"]


def test_a_label_that_came_later_changes_no_look_that_was_taken(running, viewer, deployment):  # noqa: F811
    experiment = running()
    records = write(experiment.variant_a, right(30, 40))
    write(experiment.variant_b, right(30, 40))
    window = looks.window_of(experiment)
    looks.record_look(experiment, window, looks.read_sums(experiment, window), "asked")
    turned = [feedback.Label(record.request_id, "b") for record in records]
    feedback.give_feedback(actor=viewer, deployment=deployment, labels=turned)
    feedback.give_feedback(actor=viewer, deployment=deployment, labels=turned[:3])
    write(experiment.variant_a, [1], ago=7)
    assert [(one.results_agree, one.sums_agree) for one in looks.replay(experiment)] == [(True, True)]


# --- what watches -------------------------------------------------------------------------------------


def test_a_guardrail_takes_b_back_at_once_and_says_why(running, deployment):  # noqa: F811
    experiment = running(guardrails_wanted=[{"kind": "errors", "limit": 0.02}, {"kind": "accuracy", "tolerance": 0.02}])
    Deployment.objects.update(sample_rate=1.0)
    write(experiment.variant_a, right(8, 10))
    write(experiment.variant_b, [None] * 4)
    assert look_again(experiment) == 0 and after(experiment).watched["guardrails"][0]["alarm"] is False
    write(experiment.variant_b, [None] * 6, errors=["failed"] * 6)
    assert look_again(experiment) == 1
    ended = after(experiment)
    assert (ended.state, ended.outcome) == ("stopped", "harm")
    assert "Failed requests: 60 % at B of 10 requests, limit 2 %" in ended.conclusion
    assert shares_of(deployment) == {"1": 1.0}
    change = DeploymentChange.objects.first()
    assert change.actor is None and "Failed requests: 60 %" in change.reason
    look = Look.objects.get()
    assert look.kind == "harm" and look.results["guardrails"][0]["alarm"]
    assert all(one.results_agree and one.sums_agree for one in looks.replay(experiment))


def test_a_verdict_does_not_end_the_watch_as_long_as_the_traffic_is_split(running, deployment):  # noqa: F811
    experiment = running(guardrails_wanted=[{"kind": "slow", "milliseconds": 100, "limit": 0.05}])
    count = experiment.units_a + 1
    write(experiment.variant_a, right(round(count * 0.8), count))
    write(experiment.variant_b, right(round(count * 0.8), count))
    look_again(experiment)
    assert after(experiment).state == "decided"
    write(experiment.variant_b, [None] * 200, milliseconds=[500.0] * 200)
    assert look_again(experiment) == 1
    assert after(experiment).outcome == "harm" and shares_of(deployment) == {"1": 1.0}
    first, second = Look.objects.all()
    assert second.results["verdict"] == first.results["verdict"], "the verdict stands"


def test_a_wrong_split_blocks_every_verdict_from_then_on(running):
    experiment = running(promotes=True)
    write(experiment.variant_a, right(700, 1000))
    write(experiment.variant_b, right(595, 600))
    assert look_again(experiment) == 1
    result = Look.objects.get().results
    assert result["balance"]["alarm"] and "find out what loses or adds units" in result["balance"]["sentence"]
    assert result["verdict"]["outcome"] == "unbalanced" and after(experiment).state == "running"
    write(experiment.variant_b, right(395, 400), ago=30)
    assert look_again(experiment) == 0, "no further look is due"
    window = looks.window_of(experiment)
    asked = looks.record_look(experiment, window, looks.read_sums(experiment, window), "asked")
    assert asked.results["verdict"]["outcome"] == "unbalanced", "later units do not heal it"
    assert all(one.results_agree and one.sums_agree for one in looks.replay(experiment))


def test_an_a_a_test_finds_nothing_in_what_does_not_differ(running, versions):  # noqa: F811
    experiment = running(challenger=versions[0].pk)
    count = experiment.units_a + 1
    for variant in (experiment.variant_a, experiment.variant_b):
        write(variant, right(round(count * 0.8), count))
    assert look_again(experiment) == 1
    result = Look.objects.get().results
    assert result["verdict"]["outcome"] == "no_difference" and not result["balance"]["alarm"]


def test_one_that_cannot_be_watched_does_not_keep_the_others_unwatched(
    maintainer, organization, running, versions, monkeypatch, caplog  # noqa: F811
):  # fmt: skip
    from registry.serving import services
    from registry.serving.services import Wanted

    broken, real = running(), ticking.carried_sums
    other = services.create_deployment(
        actor=maintainer, organization=organization, name="other", variants=[Wanted(versions[0].pk)]
    )
    sound = experiments.create_experiment(
        actor=maintainer, deployment=other, challenger=versions[1].pk, metric="errors", minimum_effect=0.1, baseline=0.1,
    )  # fmt: skip
    sound = started(experiments.start_experiment(actor=maintainer, experiment=sound))

    def read(experiment, window):
        if experiment.pk == broken.pk:
            raise RuntimeError("no")
        return real(experiment, window)

    monkeypatch.setattr(ticking, "carried_sums", read)
    ticking.tick()
    assert "could not be watched" in caplog.text
    assert after(sound).watched_at is not None and after(sound).watch_after > timezone.now() - timedelta(seconds=1)
    assert ticking.tick()["looks"] == 0


@pytest.mark.django_db(transaction=True)
def test_of_two_who_look_at_once_one_look_ends_it(running):
    experiment = running()
    count = experiment.units_a + 1
    write(experiment.variant_a, right(round(count * 0.8), count))
    write(experiment.variant_b, right(round(count * 0.95), count))
    window = looks.window_of(experiment)
    sums, results = looks.read_sums(experiment, window), []

    def look():
        try:
            results.append(looks.record_look(experiment, window, sums, "due").number)
        except Conflict as conflict:
            results.append(conflict.get_codes())
        finally:
            connection.close()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == ["1", "is_decided"]
    assert after(experiment).outcome == "b_better"
