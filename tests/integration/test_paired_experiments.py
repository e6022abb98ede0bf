"""Experiments in pairs: A answers, B shadows it, one label judges both; planned, judged, promoted, computed again."""

import uuid
from datetime import timedelta

import pytest
from django.urls import reverse
from django.utils import timezone

from registry.models import ModelVersion
from registry.serving import feedback
from registry.serving.experiments import looks, ticking
from registry.serving.experiments import services as experiments
from registry.serving.models import DeploymentChange, Experiment, Feedback, Look, PredictionRecord, SupersededLabel
from tests.integration.experimenting import deployment, shares_of, started, versions  # noqa: F401

pytestmark = pytest.mark.django_db


@pytest.fixture
def url(deployment):  # noqa: F811
    return f"/api/v1/deployments/{deployment.pk}/experiments"


@pytest.fixture
def paired(maintainer, deployment, versions):  # noqa: F811
    """``paired(**design)``: started two hours ago, with an empty log."""

    def start(**design):
        wanted = {"mode": "paired", "metric": "accuracy", "challenger": versions[1].pk, "minimum_effect": 0.05}
        made = experiments.create_experiment(
            actor=maintainer, deployment=deployment, **(wanted | {"baseline": 0.1} | design)
        )
        return started(experiments.start_experiment(actor=maintainer, experiment=made), 7200.0)

    return start


def answer_both(live, shadow, outcomes, *, ago=600, label="a", error="", key="", milliseconds=5.0):
    """Requests that both answered, and a label: of each pair who was right (numbers: what each predicted)."""
    at = timezone.now() - timedelta(seconds=ago)
    records, labels = [], []

    def record(variant, request, outcome, role, failed=""):
        told = {"label": "a" if outcome else "b"} if isinstance(outcome, bool) else {"value": outcome}
        return PredictionRecord(
            request_id=request, deployment_id=live.deployment_id, variant=variant, role=role, instances=[], at=at,
            predictions=None if failed else [told], error=failed, milliseconds=milliseconds,
            key=key if role == "live" else "",
        )  # fmt: skip

    for a, b in outcomes:
        request = uuid.uuid4()
        records.append(record(live, request, a, "live"))
        if b is not None or error:
            records.append(record(shadow, request, b, "shadow", error))
        if label is not None:
            labels.append(Feedback(deployment_id=live.deployment_id, request_id=request, label=label, at=at))
    PredictionRecord.objects.bulk_create(records, batch_size=1000)
    Feedback.objects.bulk_create(labels, batch_size=1000)
    return [row for row in records if row.role == "live"]


def of_each(both, only_a, only_b, neither):
    rows = [(True, True)] * both + [(True, False)] * only_a + [(False, True)] * only_b + [(False, False)] * neither
    return [rows[position * 7919 % len(rows)] for position in range(len(rows))]


def arms(experiment):
    return experiment.variant_a, experiment.variant_b


def tick(experiment):
    Experiment.objects.filter(pk=experiment.pk).update(watch_after=None)
    return ticking.tick()["looks"]


def test_a_label_judges_both_until_there_is_a_verdict_and_promotion_makes_b_answer(
    api, viewer, maintainer, paired, deployment, url  # noqa: F811
):  # fmt: skip
    experiment = paired(looks=4)
    assert shares_of(deployment) == {"1": 1.0}, "nobody gets an answer of B"
    assert deployment.variants.get(role="shadow").pk == experiment.variant_b_id
    assert experiment.units_a == experiment.units_b == pytest.approx(314, abs=20)
    answer_both(*arms(experiment), of_each(60, 10, 20, 10))
    assert tick(experiment) == 1, "a quarter of the plan"
    first = Look.objects.get()
    assert first.sums["differences"] == [100, 10.0, 30.0] and first.sums["means"] == {"a": 0.7, "b": 0.8}
    assert first.results["verdict"]["outcome"] == "not_enough" and first.results["verdict"]["gain"] == 0.1
    assert first.results["copies"]["sentence"] == "All 100 requests with a label have an answer of both."
    answer_both(*arms(experiment), of_each(130, 5, 55, 10), ago=300)
    answer_both(*arms(experiment), [(True, None)] * 6, ago=300)
    answer_both(*arms(experiment), [(True, None)] * 3, ago=300, error="dropped")
    answer_both(*arms(experiment), [(True, None)] * 2, ago=300, error="model_failed")
    answer_both(*arms(experiment), [(True, True)] * 50, ago=300, label=None)
    assert tick(experiment) == 1
    told = api(viewer).get(f"{url}/1").json()
    assert (told["state"], told["outcome"], told["mode"]) == ("decided", "b_better", "paired")
    second = api(viewer).get(f"{url}/1/looks").json()["results"][0]
    assert second["sums"]["differences"] == [300, 60.0, 90.0]
    assert second["copies"]["sentence"].startswith("11 of 311 requests with a label (3.54 %) have no answer of B")
    assert "3 copies were dropped" in second["copies"]["sentence"] and "2 failed at B" in second["copies"]["sentence"]
    assert "6 copies are not written down" in second["copies"]["sentence"]
    assert api(viewer).get(f"{url}/1/replay").json()["agrees"]
    assert shares_of(deployment) == {"1": 1.0}
    assert api(maintainer).post(f"{url}/1/promote", {}, format="json").status_code == 200
    assert shares_of(deployment) == {"2": 1.0} and not deployment.variants.filter(role="shadow", removed_at=None)


def test_late_labels_count_later_and_the_last_one_wins(paired, viewer, deployment):  # noqa: F811
    experiment = paired()
    records = answer_both(*arms(experiment), of_each(10, 5, 15, 0))
    late = answer_both(*arms(experiment), of_each(0, 0, 10, 0), label=None)
    window = looks.window_of(experiment)
    looks.record_look(experiment, window, looks.read_sums(experiment, window), "asked")
    assert Look.objects.get().sums["differences"] == [30, 10.0, 20.0]
    turned = [feedback.Label(one.request_id, "b") for one in records] + [feedback.Label(late[0].request_id, "a")]
    feedback.give_feedback(actor=viewer, deployment=deployment, labels=turned)
    past = timezone.now() - timedelta(seconds=6)
    Feedback.objects.update(at=past)
    SupersededLabel.objects.update(replaced_at=past)
    assert looks.read_sums(experiment, looks.window_of(experiment))["differences"] == [31, -9.0, 21.0]


def test_a_unit_is_a_key_and_numbers_are_compared_too(paired, versions):  # noqa: F811
    ModelVersion.objects.update(task="regression")
    experiment = paired(metric="absolute_error", baseline=2.0, minimum_effect=0.5)
    answer_both(*arms(experiment), [(4.0, 2.0), (4.0, 0.0)], label=1.0, key="one")
    answer_both(*arms(experiment), [(3.0, 1.5)] * 40, label=1.0)
    sums = looks.read_sums(experiment, looks.window_of(experiment))
    assert sums["differences"] == [41, -62.0, 94.0], "the key's mean is -2, each of the others -1.5"
    assert sums["units"] == {"a": [41, 42], "b": [42, 42]}
    assert tick(experiment) == 1
    told = Look.objects.get().results["verdict"]
    assert told["gain"] == pytest.approx(62 / 41) and "B" in told["sentence"]


def test_guardrails_watch_the_shadow_and_dropped_copies_are_no_failures(paired, deployment):  # noqa: F811
    experiment = paired(
        looks=4, guardrails_wanted=[
            {"kind": "errors", "limit": 0.05}, {"kind": "slow", "milliseconds": 100, "limit": 0.5},
            {"kind": "accuracy", "tolerance": 0.1},
        ]
    )  # fmt: skip
    answer_both(*arms(experiment), [(True, None)] * 60, error="dropped")
    answer_both(*arms(experiment), [(True, True)] * 20)
    assert tick(experiment) == 0
    watched = Experiment.objects.get().watched
    assert [one["alarm"] for one in watched["guardrails"]] == [False, False, False]
    assert "0 % at B of 20 requests" in watched["guardrails"][0]["sentence"]
    answer_both(*arms(experiment), [(True, None)] * 12, error="model_failed")
    assert tick(experiment) == 1
    ended = Experiment.objects.get()
    assert (ended.state, ended.outcome) == ("stopped", "harm") and shares_of(deployment) == {"1": 1.0}
    assert not deployment.variants.filter(role="shadow", removed_at=None), "B gets no copies any more"
    assert "Failed requests" in DeploymentChange.objects.first().reason
    assert all(one.results_agree and one.sums_agree for one in looks.replay(experiment))


def test_the_plan_tells_what_a_split_would_take(api, viewer, maintainer, paired, deployment, versions, url):  # noqa: F811
    design = {"mode": "paired", "metric": "accuracy", "minimum_effect": 0.05, "challenger": str(versions[1].pk)}
    unknown = api(viewer).post(f"{url}/plan", design, format="json").json()["errors"][0]
    assert unknown["attr"] == "baseline" and "one version alone gets right" in unknown["detail"]
    told = api(viewer).post(f"{url}/plan", design | {"baseline": 0.1}, format="json").json()
    assert told["labels_split"] is None and "requests with a label at most" in told["sentence"]
    experiment = paired()
    answer_both(*arms(experiment), of_each(150, 5, 15, 30), ago=3600)
    plan = api(viewer).post(f"{url}/plan", design, format="json").json()
    assert plan["baseline"] == pytest.approx(21 / 202) and plan["units_a_day"] > 0
    variance = 4 * plan["units_b"] * 0.05**2  # a split takes 4 · p(1 - p) / (share of differing answers) times as many
    assert plan["labels_split"] > 6 * plan["units_b"] and variance > 0
    assert "times as many)" in plan["sentence"] and plan["usual_days"] <= plan["days"]
    ModelVersion.objects.update(task="regression")  # of classes no label says how far off an answer was
    errors = api(viewer).post(f"{url}/plan", design | {"metric": "absolute_error"}, format="json").json()["errors"][0]
    assert errors["attr"] == "baseline" and "the deviation of the difference" in errors["detail"]
    ModelVersion.objects.update(task="classification")
    body = design | {"baseline": 0.1}
    for wrong, attr in (
        ({"metric": "latency"}, "metric"), ({"metric": "number"}, "metric"), ({"minimum_effect": 0}, "minimum_effect"),
        ({"challenger": str(versions[0].pk)}, "challenger"), ({"covariate": True}, "covariate"),
        ({"minimum_effect": 1e-9}, "minimum_effect"),
    ):  # fmt: skip
        answer = api(maintainer).post(url, body | wrong, format="json")
        assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == attr, (wrong, answer.content)


def test_its_page_tells_how_many_pairs_are_missing(web, maintainer, viewer, deployment, versions):  # noqa: F811
    form = {
        "mode": "paired", "metric": "accuracy", "share": "0.5", "looks": "4", "alpha": "0.05", "power": "0.8",
        "minimum_effect": "0.05", "baseline": "0.1", "challenger": str(versions[1].pk),
    }  # fmt: skip
    plan = reverse("deployment-experiment-plan", args=[deployment.pk])
    assert "requests with a label at most" in web(maintainer).post(plan, form).content.decode()
    made = web(maintainer).post(reverse("deployment-experiment-new", args=[deployment.pk]), form)
    assert made.status_code == 302, made.content.decode()
    assert "nobody gets an answer of B" in web(viewer).get(made.url).content.decode()
    web(maintainer).post(reverse("deployment-experiment-start", args=[deployment.pk, 1]))
    experiment = started(Experiment.objects.get())
    answer_both(*arms(experiment), of_each(60, 10, 20, 10))
    answer_both(*arms(experiment), [(True, None)] * 4, error="dropped")
    tick(experiment)
    page = web(maintainer).get(made.url).content.decode()
    assert "4 of 104 requests with a label" in page and "Pairs" in page and "80.0 %" in page and "Look now" in page
