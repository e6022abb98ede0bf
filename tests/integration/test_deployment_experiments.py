"""Experiments on deployments: planned, started, held against other changes, ended, acted upon; and who may."""

from datetime import timedelta

import pytest
from django.core.exceptions import PermissionDenied
from django.urls import reverse
from django.utils import timezone

from dlplatform.accounts.models import AuditEntry
from dlplatform.api import Conflict
from registry.models import ModelVersion, OptimizedVariant
from registry.serving import feedback, prediction_log, services
from registry.serving.experiments import services as experiments
from registry.serving.models import (
    Deployment,
    DeploymentChange,
    Experiment,
    Feedback,
    PredictionRecord,
    Rollout,
    SupersededLabel,
)
from registry.serving.services import Wanted
from tests import factories
from tests.integration.experimenting import deployment, right, shares_of, started, versions, write  # noqa: F401

pytestmark = pytest.mark.django_db


@pytest.fixture
def url(deployment):  # noqa: F811
    return f"/api/v1/deployments/{deployment.pk}"


def body(versions, **more):  # noqa: F811
    wanted = {"challenger": str(versions[1].pk), "metric": "accuracy", "minimum_effect": 0.05, "baseline": 0.8}
    return wanted | more


@pytest.fixture
def draft(api, maintainer, url, versions):  # noqa: F811
    made = api(maintainer).post(f"{url}/experiments", body(versions), format="json")
    assert made.status_code == 201, made.content
    return Experiment.objects.get()


def error_of(answer, status):
    assert answer.status_code == status, answer.content
    return answer.json()["errors"][0]


# --- planning -----------------------------------------------------------------------------------------


def test_a_plan_is_made_of_the_deployment_s_own_traffic(api, viewer, maintainer, url, deployment, versions):  # noqa: F811
    design = {"metric": "accuracy", "minimum_effect": 0.05}
    unknown = error_of(api(viewer).post(f"{url}/experiments/plan", design, format="json"), 400)
    assert unknown["attr"] == "baseline" and "Only 0 units" in unknown["detail"]
    write(deployment.variants.get(), right(1120, 1400), ago=86400)
    plan = api(viewer).post(f"{url}/experiments/plan", design, format="json").json()
    assert plan["baseline"] == pytest.approx(0.8, abs=0.001) and plan["units_a_day"] == pytest.approx(100, rel=0.01)
    assert (
        plan["days"] == -(-(plan["units_a"] + plan["units_b"]) // plan["units_a_day"])
        and plan["usual_days"] < plan["days"]
    )
    assert f"{plan['units_a']:,} units of A" in plan["sentence"]
    finer = api(viewer).post(f"{url}/experiments/plan", design | {"minimum_effect": 0.025}, format="json").json()
    assert 3.5 < finer["units_a"] / plan["units_a"] < 4.5
    slower = {"metric": "latency", "minimum_effect": 1, "baseline": 10, "share": 0.2}
    unequal = api(viewer).post(f"{url}/experiments/plan", slower, format="json").json()
    assert unequal["units_a"] == pytest.approx(4 * unequal["units_b"], rel=0.01)
    made = api(maintainer).post(f"{url}/experiments", body(versions, baseline=None), format="json").json()
    assert (made["state"], made["number"], made["units_a"]) == ("draft", 1, plan["units_a"])
    assert made["control"] == str(versions[0].pk) and shares_of(deployment) == {"1": 1.0}


@pytest.mark.parametrize(
    ("wrong", "attr"),
    [
        ({"minimum_effect": 0}, "minimum_effect"), ({"minimum_effect": 0.9}, "minimum_effect"),
        ({"minimum_effect": 1e-9}, "minimum_effect"), ({"baseline": 1.5}, "baseline"), ({"share": 1}, "share"),
        ({"looks": 100}, "looks"), ({"alpha": 0.4, "power": 0.3}, "power"), ({"cap": 0}, "cap"),
        ({"metric": "luck"}, "metric"), ({"higher_is_better": False}, "higher_is_better"),
        ({"missing_as_zero": True}, "missing_as_zero"), ({"challenger": "0" * 32}, "challenger"),
        ({"control": "0" * 32}, "control"),
        ({"metric": "absolute_error", "baseline": 1.0}, "metric"),
        ({"mode": "bandit", "metric": "absolute_error", "cap": 1}, "metric"),
        ({"guardrails": [{"kind": "errors", "limit": 0.1}, {"kind": "absolute_error", "tolerance": 1}]}, "guardrails.1.kind"),
        ({"guardrails": [{"kind": "errors"}]}, "guardrails.0.tolerance"),
        ({"guardrails": [{"kind": "accuracy", "limit": 0.1}]}, "guardrails.0.limit"),
        ({"guardrails": [{"kind": "errors", "limit": 1}]}, "guardrails.0.limit"),
        ({"guardrails": [{"kind": "errors", "limit": 0.1}, {"kind": "slow", "limit": 0.1}]}, "guardrails.1.milliseconds"),
        ({"guardrails": [{"kind": "errors", "limit": 0.1, "size": 3}]}, "guardrails.0.size"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_by_its_field(api, maintainer, url, versions, wrong, attr):  # noqa: F811
    answer = api(maintainer).post(f"{url}/experiments", body(versions, **wrong), format="json")
    assert error_of(answer, 400)["attr"] == attr, answer.content
    assert not Experiment.objects.exists()


@pytest.mark.parametrize(
    ("task", "output", "metric", "accepted"),
    [
        ("classification", {}, "accuracy", True), ("classification", {}, "absolute_error", False),
        ("regression", {}, "absolute_error", True), ("regression", {}, "accuracy", False),
        ("regression", {"kind": "numbers"}, "absolute_error", False), ("multilabel", {}, "accuracy", False),
        ("language-model", {}, "accuracy", False), ("language-model", {}, "number", True),
        ("multilabel", {}, "errors", True),
    ],
)  # fmt: skip
def test_only_what_the_answers_can_be_measured_by_decides_or_guards(
    api, maintainer, url, versions, task, output, metric, accepted  # noqa: F811
):  # fmt: skip
    ModelVersion.objects.update(task=task, signature={"output": output})
    client, design = api(maintainer), {"metric": metric, "minimum_effect": 0.05, "baseline": 0.5}
    planned = client.post(f"{url}/experiments/plan", design, format="json")
    decided = client.post(f"{url}/experiments", body(versions, **design), format="json")
    guarded = client.post(
        f"{url}/canaries",
        {"candidate": str(versions[1].pk), "guardrails": [{"kind": metric, "tolerance": 0.1}]},
        format="json",
    )
    statuses = [planned.status_code, decided.status_code, guarded.status_code]
    assert statuses == ([200, 201, 201] if accepted else [400] * 3), (planned.content, decided.content, guarded.content)
    if not accepted:
        fields = [answer.json()["errors"][0]["attr"] for answer in (planned, decided, guarded)]
        assert fields == ["metric", "metric", "guardrails.0.kind"]
        assert error_of(planned, 400)["code"] == "unmeasured"


def test_a_plan_and_a_draft_are_of_versions_that_there_are_and_of_one_task(
    api, maintainer, viewer, stranger, url, versions  # noqa: F811
):  # fmt: skip
    design = {"metric": "accuracy", "minimum_effect": 0.05, "baseline": 0.8}
    foreign = factories.ModelVersionFactory(
        model__organization=stranger.memberships.get().organization, tree=versions[0].tree
    )
    for field in ("control", "challenger"):
        for version in (foreign.pk, "0" * 32):
            refused = api(viewer).post(f"{url}/experiments/plan", design | {field: str(version)}, format="json")
            assert error_of(refused, 400)["attr"] == field
    ModelVersion.objects.filter(pk=versions[1].pk).update(task="regression")
    refused = error_of(api(maintainer).post(f"{url}/experiments", body(versions), format="json"), 400)
    assert (refused["attr"], refused["code"]) == ("challenger", "task_mismatch")
    wanted = {"mode": "bandit", "challenger": str(versions[2].pk), "further": [str(versions[1].pk)]}
    refused = error_of(api(maintainer).post(f"{url}/experiments", body(versions) | wanted, format="json"), 400)
    assert refused["attr"] == "further.0"
    assert not Experiment.objects.exists()


@pytest.fixture
def slower(versions, maintainer):  # noqa: F811
    """The second version was made of the first, and measured to be slower."""
    problem = {"code": "slower", "sentence": "Slower: it takes 2.00 times as long for one row."}
    asked = factories.OptimizationFactory(version=versions[0], created_by=maintainer)
    OptimizedVariant.objects.create(
        optimization=asked, position=0, plan={"passes": ["onnx"]}, output_version=versions[1], report={"problems": [problem]}
    )  # fmt: skip
    return versions[1]


@pytest.mark.parametrize("what", ["experiment", "canary"])
def test_a_slower_version_takes_part_only_for_who_says_so_and_why(api, maintainer, url, versions, slower, what):  # noqa: F811
    client, begun, field = api(maintainer), {}, "challenger"
    if what == "experiment":
        path = f"{url}/experiments/1/start"
        assert client.post(f"{url}/experiments", body(versions), format="json").status_code == 201
    else:
        path, begun, field = f"{url}/canaries", {"candidate": str(slower.pk)}, "candidate"
    for more, attr, code in (
        ({}, field, "has_problems"),
        ({"reason": "it is small"}, field, "has_problems"),
        ({"despite_problems": True}, "reason", "required"),
        ({"despite_problems": True, "reason": "  "}, "reason", "required"),
    ):
        refused = error_of(client.post(path, begun | more, format="json"), 400)
        assert (refused["attr"], refused["code"]) == (attr, code)
    assert DeploymentChange.objects.count() == 1
    answer = client.post(path, begun | {"despite_problems": True, "reason": "it is small"}, format="json")
    assert answer.status_code in (200, 201), answer.content
    assert DeploymentChange.objects.first().reason == "it is small"


def test_the_pages_say_what_was_measured_before_an_experiment_or_a_canary_begins(
    web, maintainer, deployment, draft, slower  # noqa: F811
):  # fmt: skip
    page = web(maintainer).get(reverse("deployment-experiment", args=[deployment.pk, 1])).content.decode()
    assert "Slower: it takes 2.00 times as long" in page and "despite_problems" in page
    start = reverse("deployment-experiment-start", args=[deployment.pk, 1])
    web(maintainer).post(start, {"reason": "it is small"})
    assert Experiment.objects.get().state == "draft"
    canaries = reverse("canary-new", args=[deployment.pk])
    form = {"candidate": str(slower.pk), "steps": "100 1 0", "reason": "it is small"}
    refused = web(maintainer).post(canaries, form)
    assert "Slower: it takes 2.00 times as long" in refused.content.decode() and not Rollout.objects.exists()
    web(maintainer).post(start, {"reason": "it is small", "despite_problems": "on"})
    assert Experiment.objects.get().state == "running"
    experiments.stop_experiment(actor=maintainer, experiment=Experiment.objects.get())
    begun = web(maintainer).post(canaries, form | {"despite_problems": "on"})
    assert begun.status_code == 302 and Rollout.objects.get().state == "running"


def test_on_an_archived_deployment_nothing_is_planned_or_started(
    api, web, maintainer, url, draft, deployment, versions  # noqa: F811
):  # fmt: skip
    services.set_archived(actor=maintainer, deployment=deployment, archived=True)
    client = api(maintainer)
    for refused in (
        client.post(f"{url}/experiments", body(versions), format="json"),
        client.post(f"{url}/experiments/1/start", {}, format="json"),
        client.post(f"{url}/canaries", {"candidate": str(versions[1].pk)}, format="json"),
    ):
        error = error_of(refused, 409)
        assert error["code"] == "archived" and "“screening” is archived; restore it first." in error["detail"]
    page = reverse("deployment-experiment-new", args=[deployment.pk])
    form = {"challenger": str(versions[1].pk), "metric": "accuracy", "minimum_effect": "0.05", "baseline": "0.8"}
    form |= {"mode": "split", "share": "0.5", "alpha": "0.05", "power": "0.8", "looks": "5"}
    assert "is archived; restore it first." in web(maintainer).post(page, form).content.decode()
    assert Experiment.objects.get().state == "draft" and not Rollout.objects.exists()
    services.set_archived(actor=maintainer, deployment=deployment, archived=False)
    assert client.post(f"{url}/experiments/1/start", {}, format="json").status_code == 200


# --- its life -----------------------------------------------------------------------------------------


def test_a_running_experiment_splits_the_traffic_and_holds_the_deployment(
    api, maintainer, url, draft, deployment, versions  # noqa: F811
):  # fmt: skip
    services.set_details(actor=maintainer, deployment=deployment, sample_rate=0.25)
    client = api(maintainer)
    moved = client.post(f"{url}/experiments/1/start", {"revision": 7}, format="json")
    assert error_of(moved, 409)["code"] == "moved" and Experiment.objects.get().state == "draft"
    answer = client.post(f"{url}/experiments/1/start", {"revision": 2}, format="json")
    assert answer.status_code == 200, answer.content
    assert answer.json()["state"] == "running" and answer.json()["started_by"] == "maintainer"
    assert shares_of(deployment) == {"1": 0.5, "2": 0.5}
    now = Deployment.objects.get()
    assert now.sample_rate == 1.0 and now.revision == 3
    assert DeploymentChange.objects.first().reason == "Experiment 1 starts"
    changes = [
        client.patch(url, {"variants": [{"version": str(versions[2].pk)}]}, format="json"),
        client.patch(url, {"archived": True}, format="json"),
        client.patch(url, {"sample_rate": 0.5}, format="json"),
        client.post(f"{url}/undo", {}, format="json"),
    ]
    for refused in changes:
        error = error_of(refused, 409)
        assert error["code"] == "held" and "Experiment 1 is running here" in error["detail"]
    assert client.patch(url, {"description": "still"}, format="json").status_code == 200
    again = client.post(f"{url}/experiments", body(versions), format="json").json()
    assert again["number"] == 2
    assert error_of(client.post(f"{url}/experiments/2/start", {}, format="json"), 409)["code"] == "held"
    assert client.get(f"{url}/experiment").json()["number"] == 1
    stopped = client.post(f"{url}/experiments/1/stop", {"reason": "the wrong version"}, format="json").json()
    assert (stopped["state"], stopped["conclusion"]) == ("stopped", "the wrong version")
    assert shares_of(deployment) == {"1": 1.0}
    assert Deployment.objects.get().sample_rate == 0.25
    assert "the wrong version" in DeploymentChange.objects.first().reason
    assert AuditEntry.objects.filter(action__startswith="ab_test.").count() == 4


def test_a_stopped_one_is_acted_upon_once(api, maintainer, url, draft, deployment, versions):  # noqa: F811
    client = api(maintainer)
    early = error_of(client.post(f"{url}/experiments/1/promote", {}, format="json"), 409)
    assert early["code"] == "is_draft"
    client.post(f"{url}/experiments/1/start", {}, format="json")
    assert error_of(client.post(f"{url}/experiments/1/keep", {}, format="json"), 409)["code"] == "is_running"
    client.post(f"{url}/experiments/1/stop", {}, format="json")
    services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(versions[2].pk)])
    changed = error_of(client.post(f"{url}/experiments/1/promote", {}, format="json"), 409)
    assert changed["code"] == "others_answer" and "v3" in changed["detail"]
    services.undo_change(actor=maintainer, deployment=deployment)
    done = client.post(f"{url}/experiments/1/promote", {"reason": "good enough"}, format="json").json()
    assert done["state"] == "promoted" and shares_of(deployment) == {"2": 1.0}
    assert error_of(client.post(f"{url}/experiments/1/keep", {}, format="json"), 409)["code"] == "is_promoted"
    services.undo_change(actor=maintainer, deployment=deployment)
    assert shares_of(deployment) == {"1": 1.0}, "a promotion is a change like others"


def test_a_draft_is_thrown_away_and_never_acted_upon(api, maintainer, url, draft, deployment):  # noqa: F811
    client = api(maintainer)
    assert error_of(client.get(f"{url}/experiment"), 404)
    assert client.post(f"{url}/experiments/1/stop", {}, format="json").json()["state"] == "stopped"
    assert error_of(client.post(f"{url}/experiments/1/keep", {}, format="json"), 409)["code"] == "not_started"
    assert DeploymentChange.objects.count() == 1


def test_it_does_not_start_where_others_answer_or_nobody_does(api, maintainer, url, draft, deployment, versions):  # noqa: F811
    services.change_variants(
        actor=maintainer, deployment=deployment,
        variants=[Wanted(versions[0].pk), Wanted(versions[2].pk), Wanted(versions[1].pk, role="shadow")],
    )  # fmt: skip
    client = api(maintainer)
    assert error_of(client.post(f"{url}/experiments/1/start", {}, format="json"), 409)["code"] == "others_answer"
    services.change_variants(
        actor=maintainer, deployment=deployment,
        variants=[Wanted(versions[0].pk), Wanted(versions[2].pk, role="shadow")],
    )  # fmt: skip
    services.set_archived(actor=maintainer, deployment=deployment, archived=True)
    assert error_of(client.post(f"{url}/experiments/1/start", {}, format="json"), 409)["code"] == "archived"
    services.set_archived(actor=maintainer, deployment=deployment, archived=False)
    assert client.post(f"{url}/experiments/1/start", {}, format="json").status_code == 200
    shadows = deployment.variants.filter(removed_at=None, role="shadow")
    assert [row.version_id for row in shadows] == [versions[2].pk], "shadows stay as they are"


def test_an_a_a_test_has_one_version_twice(api, maintainer, url, deployment, versions):  # noqa: F811
    client = api(maintainer)
    same = body(versions, challenger=str(versions[0].pk))
    assert client.post(f"{url}/experiments", same, format="json").status_code == 201
    begun = client.post(f"{url}/experiments/1/start", {}, format="json").json()
    assert begun["variant_a"] != begun["variant_b"] and begun["control"] == begun["challenger"]
    assert shares_of(deployment) == {"1": 0.5, "1B": 0.5}
    arms = {one["arm"]: one["share"] for one in client.get(url).json()["variants"]}
    assert arms == {"": 0.5, "B": 0.5}
    client.post(f"{url}/experiments/1/stop", {}, format="json")
    assert shares_of(deployment) == {"1": 1.0}
    services.undo_change(actor=maintainer, deployment=deployment)
    assert shares_of(deployment) == {"1": 0.5, "1B": 0.5}, "an undo restores the arms too"


# --- the log meanwhile --------------------------------------------------------------------------------


def test_the_log_of_an_experiment_is_kept_while_it_needs_it(maintainer, draft, deployment, settings):  # noqa: F811
    settings.PREDICTION_LOG_DAYS = 30
    begun = started(experiments.start_experiment(actor=maintainer, experiment=draft), ago=40 * 86400)
    day = 86400
    write(begun.variant_a, [1, 0], ago=35 * day)
    write(begun.variant_a, [1, 0], ago=50 * day)
    write(begun.variant_a, [1], ago=60 * day)
    assert prediction_log.forget_old() == 2, "what came more than two weeks before the start"
    assert PredictionRecord.objects.count() == 4
    experiments.stop_experiment(actor=maintainer, experiment=begun)
    assert prediction_log.forget_old() == 0, "as long after its end as the policy says"
    Experiment.objects.update(ended_at=timezone.now() - timedelta(days=31))
    assert prediction_log.forget_old() == 8 and not Feedback.objects.exists()


def test_labels_that_feedback_replaces_are_kept_where_an_experiment_is(maintainer, viewer, draft, deployment):  # noqa: F811
    record = write(deployment.variants.get(), [1])[0]
    given = feedback.Label(record.request_id, "b")
    feedback.give_feedback(actor=viewer, deployment=deployment, labels=[given])
    kept = SupersededLabel.objects.get()
    assert (kept.label, Feedback.objects.get().label) == ("a", "b") and kept.replaced_at == Feedback.objects.get().at


# --- who may ------------------------------------------------------------------------------------------


def test_only_maintainers_experiment_and_strangers_see_nothing(api, trainer, viewer, stranger, url, draft, versions):  # noqa: F811
    for verb in ("start", "stop", "promote", "keep"):
        assert api(trainer).post(f"{url}/experiments/1/{verb}", {}, format="json").status_code == 403
        assert api(stranger).post(f"{url}/experiments/1/{verb}", {}, format="json").status_code == 404
    assert api(trainer).post(f"{url}/experiments", body(versions), format="json").status_code == 403
    assert api(viewer).get(f"{url}/experiments").json()["results"][0] == api(viewer).get(f"{url}/experiments/1").json()
    assert api(stranger).get(f"{url}/experiments").status_code == 404
    assert api(viewer).get(f"{url}/experiments/9").status_code == 404
    with pytest.raises(PermissionDenied):
        experiments.start_experiment(actor=trainer, experiment=draft)


def test_a_start_that_fails_half_way_leaves_nothing(maintainer, draft, deployment, versions, monkeypatch):  # noqa: F811
    def dies(*_, **__):
        raise RuntimeError("the process is gone")

    monkeypatch.setattr(experiments, "change_variants", dies)
    with pytest.raises(RuntimeError):
        experiments.start_experiment(actor=maintainer, experiment=draft)
    assert Experiment.objects.get().state == "draft" and Deployment.objects.get().revision == 1
    with pytest.raises(Conflict):
        experiments.promote(actor=maintainer, experiment=draft)
