"""Canaries and blue/green: the ladder, pauses, what goes back by itself, restarts, and who may."""

from datetime import timedelta

import pytest
from django.utils import timezone

from dlplatform.accounts.models import AuditEntry
from registry.serving import prediction_log, services
from registry.serving.experiments import rollouts
from registry.serving.experiments import services as experiments
from registry.serving.forms import candidates
from registry.serving.models import Deployment, DeploymentChange, Rollout
from registry.serving.services import Wanted
from tests import factories
from tests.integration.experimenting import deployment, later, right, shares_of, versions, write  # noqa: F401

pytestmark = pytest.mark.django_db
ERRORS = [{"kind": "errors", "limit": 0.02}]
STEPS = [{"share": 0.05, "minutes": 10, "requests": 20}, {"share": 0.25, "minutes": 5}, {"share": 1, "minutes": 30}]


@pytest.fixture
def canary(maintainer, deployment, versions):  # noqa: F811
    def start(**more):
        wanted = {"steps": STEPS, "guardrails_wanted": ERRORS} | more
        made = rollouts.start_rollout(actor=maintainer, deployment=deployment, candidate=versions[1].pk, **wanted)
        earlier = timezone.now() - timedelta(seconds=20)
        Rollout.objects.update(started_at=earlier, step_began_at=earlier)
        return made

    return start


def error_of(answer, status):
    assert answer.status_code == status, answer.content
    return answer.json()["errors"][0]


def test_it_takes_over_step_by_step_and_every_step_is_in_the_log(canary, deployment):  # noqa: F811
    services_before = Deployment.objects.get().sample_rate
    made = canary()
    assert shares_of(deployment) == {"1": 0.95, "2": 0.05}
    assert later(9) == 0 and later(2) == 0, "minutes alone are not enough: it has answered nothing"
    write(made.variant_candidate, [None] * 20, ago=8)
    assert later(0) == 1
    assert shares_of(deployment) == {"1": 0.75, "2": 0.25}
    assert later(1) == 0 and later(5) == 1
    assert shares_of(deployment) == {"1": 0.0, "2": 1.0}, "the stable version is still at hand"
    assert later(20) == 0 and Rollout.objects.get().state == "running"
    assert later(11) == 1
    ended = Rollout.objects.get()
    assert ended.state == "finished" and ended.conclusion.startswith("It has taken over")
    assert shares_of(deployment) == {"2": 1.0} and Deployment.objects.get().sample_rate == services_before
    reasons = DeploymentChange.objects.order_by("revision").values_list("reason", flat=True)[1:]
    assert list(reasons) == [
        "Canary 1 begins with 5 %", "Canary 1 goes on to 25 %", "Canary 1 goes on to 100 %", "Canary 1 has taken over",
    ]  # fmt: skip
    assert later(60) == 0


@pytest.mark.parametrize("step", [0, 1, 2])
def test_an_alarm_goes_back_at_any_step_with_its_reason(canary, deployment, step):  # noqa: F811
    made = canary(guardrails_wanted=[*ERRORS, {"kind": "slow", "milliseconds": 100, "limit": 0.05}])
    write(made.variant_candidate, [None] * 20, ago=8)
    for _ in range(step):
        assert later(11) == 1
    write(made.variant_candidate, [None] * 100, milliseconds=[900.0] * 100, ago=6)
    assert later(0) == 1
    ended = Rollout.objects.get()
    assert ended.state == "rolled_back" and "Requests slower than 100 ms: 83.3 % at B" in ended.conclusion
    assert shares_of(deployment) == {"1": 1.0}
    change = DeploymentChange.objects.first()
    assert change.actor is None and change.reason.startswith("Canary 1 goes back: Requests slower than")
    assert AuditEntry.objects.filter(action="canary.rolled_back").count() == 1


def test_a_chosen_metric_of_the_feedback_is_compared_with_the_version_before(canary, deployment):  # noqa: F811
    made = canary(guardrails_wanted=[{"kind": "accuracy", "tolerance": 0.02}])
    write(made.variant_stable, right(900, 1000), ago=8)
    write(made.variant_candidate, right(270, 300), ago=8)
    assert later(1) == 0, "as good as before"
    assert "90 % at B, 90 % at A" in Rollout.objects.get().watched["guardrails"][0]["sentence"]
    write(made.variant_candidate, right(300, 700), ago=8)
    assert later(0) == 1 and Rollout.objects.get().state == "rolled_back"


def test_a_pause_stops_the_clock_and_not_the_watch(api, maintainer, canary, deployment):  # noqa: F811
    made, url = canary(), f"/api/v1/deployments/{deployment.pk}/canaries/1"
    write(made.variant_candidate, [None] * 20, ago=8)
    client = api(maintainer)
    assert later(6) == 0
    assert client.post(f"{url}/pause").json()["state"] == "paused"
    assert error_of(client.post(f"{url}/pause"), 409)["code"] == "is_paused"
    assert later(60) == 0 and shares_of(deployment) == {"1": 0.95, "2": 0.05}
    assert client.post(f"{url}/continue").json()["state"] == "running"
    assert later(0) == 0, "six of its ten minutes have passed"
    assert later(5) == 1
    client.post(f"{url}/pause")
    write(made.variant_candidate, [None] * 50, errors=["failed"] * 50, ago=8)
    assert later(0) == 1
    assert Rollout.objects.get().state == "rolled_back" and shares_of(deployment) == {"1": 1.0}
    assert error_of(client.post(f"{url}/continue"), 409)["code"] == "is_rolled_back"


def test_blue_and_green_change_places_at_once_and_back(api, maintainer, deployment, versions):  # noqa: F811
    url, client = f"/api/v1/deployments/{deployment.pk}", api(maintainer)
    body = {"candidate": str(versions[1].pk), "steps": [{"share": 1, "minutes": 10}], "guardrails": ERRORS}
    made = client.post(f"{url}/canaries", body, format="json")
    assert made.status_code == 201, made.content
    assert made.json()["share"] == 1 and shares_of(deployment) == {"1": 0.0, "2": 1.0}
    back = client.post(f"{url}/canaries/1/abort", {"reason": "looks odd"}, format="json").json()
    assert (back["state"], back["conclusion"]) == ("aborted", "looks odd") and shares_of(deployment) == {"1": 1.0}
    client.post(f"{url}/canaries", body, format="json")
    assert later(11) == 1 and shares_of(deployment) == {"2": 1.0}
    assert client.post(f"{url}/undo", {}, format="json").status_code == 200
    assert shares_of(deployment) == {"1": 0.0, "2": 1.0}
    assert client.get(f"{url}/canary").json()["number"] == 2
    assert [one["number"] for one in client.get(f"{url}/canaries").json()["results"]] == [2, 1]


def test_it_holds_the_deployment_and_nothing_else_starts(api, maintainer, canary, deployment, versions):  # noqa: F811
    canary()
    url, client = f"/api/v1/deployments/{deployment.pk}", api(maintainer)
    for refused in (
        client.patch(url, {"variants": [{"version": str(versions[2].pk)}]}, format="json"),
        client.post(f"{url}/undo", {}, format="json"),
        client.patch(url, {"archived": True}, format="json"),
        client.post(f"{url}/canaries", {"candidate": str(versions[2].pk)}, format="json"),
    ):
        error = error_of(refused, 409)
        assert error["code"] == "held" and "Canary 1 is running here" in error["detail"]
    draft = experiments.create_experiment(
        actor=maintainer,
        deployment=deployment,
        challenger=versions[1].pk,
        metric="errors",
        minimum_effect=0.1,
        baseline=0.1,
    )
    assert error_of(client.post(f"{url}/experiments/{draft.number}/start", {}, format="json"), 409)["code"] == "held"
    Rollout.objects.update(started_at=timezone.now() - timedelta(days=40))
    write(Rollout.objects.get().variant_candidate, [1], ago=35 * 86400)
    assert prediction_log.forget_old() == 0, "its log is kept"


@pytest.mark.parametrize(
    ("wrong", "attr"),
    [
        ({"steps": [{"share": 0.5}]}, "steps.0.share"), ({"steps": [{"share": 0.5}, {"share": 0.5}]}, "steps.1.share"),
        ({"steps": [{"share": 1, "minutes": -1}]}, "steps.0.minutes"), ({"steps": []}, "steps"),
        ({"steps": [{"minutes": 3}]}, "steps.0.share"), ({"guardrails": [{"kind": "slow"}]}, "guardrails.0.tolerance"),
        ({"candidate": "0" * 32}, "candidate"), ({"canditate": 1}, "canditate"),
    ],
)  # fmt: skip
def test_what_is_no_ladder_is_refused_by_its_place(api, maintainer, deployment, versions, wrong, attr):  # noqa: F811
    body = {"candidate": str(versions[1].pk)} | wrong
    error = error_of(api(maintainer).post(f"/api/v1/deployments/{deployment.pk}/canaries", body, format="json"), 400)
    assert error["attr"].startswith(attr), error
    assert not Rollout.objects.exists() and Deployment.objects.get().revision == 1


def test_what_answers_already_is_no_candidate_and_a_third_version_stands_in_the_way(
    api, maintainer, deployment, versions  # noqa: F811
):  # fmt: skip
    url = f"/api/v1/deployments/{deployment.pk}/canaries"
    assert (
        error_of(api(maintainer).post(url, {"candidate": str(versions[0].pk)}, format="json"), 400)["attr"]
        == "candidate"
    )
    services.change_variants(
        actor=maintainer, deployment=deployment, variants=[Wanted(versions[0].pk), Wanted(versions[2].pk, 0.5)]
    )
    error = error_of(api(maintainer).post(url, {"candidate": str(versions[1].pk)}, format="json"), 409)
    assert error["code"] == "others_answer" and "v3" in error["detail"]
    moved = api(maintainer).post(url, {"candidate": str(versions[2].pk), "revision": 1}, format="json")
    assert error_of(moved, 409)["code"] == "moved" and not Rollout.objects.exists()


def test_a_step_that_dies_half_way_is_done_again_and_only_once(canary, deployment, monkeypatch):  # noqa: F811
    made, real = canary(), rollouts.change_variants
    write(made.variant_candidate, [None] * 20, ago=8)

    def dies(**_):
        raise RuntimeError("the process is gone")

    monkeypatch.setattr(rollouts, "change_variants", dies)
    assert later(11) == 0
    assert Rollout.objects.get().step == 0 and shares_of(deployment) == {"1": 0.95, "2": 0.05}
    monkeypatch.setattr(rollouts, "change_variants", real)
    assert later(0) == 1 and Rollout.objects.get().step == 1
    assert rollouts.advance(rollout=made, requests=20) is False, "who still sees the step before does nothing"
    assert shares_of(deployment) == {"1": 0.75, "2": 0.25}


def test_whoever_started_it_may_have_left(canary, maintainer, deployment):  # noqa: F811
    made = canary()
    maintainer.memberships.all().delete()
    write(made.variant_candidate, [None] * 50, errors=["failed"] * 50, ago=8)
    assert later(0) == 1 and shares_of(deployment) == {"1": 1.0}


def test_only_maintainers_roll_out_and_strangers_see_nothing(
    api, trainer, viewer, stranger, canary, deployment, versions  # noqa: F811
):  # fmt: skip
    canary()
    url = f"/api/v1/deployments/{deployment.pk}"
    for verb in ("pause", "continue", "abort"):
        assert api(trainer).post(f"{url}/canaries/1/{verb}", {}, format="json").status_code == 403
        assert api(stranger).post(f"{url}/canaries/1/{verb}", {}, format="json").status_code == 404
    assert api(trainer).post(f"{url}/canaries", {"candidate": str(versions[1].pk)}, format="json").status_code == 403
    assert api(viewer).get(f"{url}/canary").json() == api(viewer).get(f"{url}/canaries/1").json()
    assert (
        api(stranger).get(f"{url}/canary").status_code == 404
        and api(viewer).get(f"{url}/canaries/7").status_code == 404
    )


def test_versions_of_the_model_that_answers_are_offered_first(maintainer, organization, deployment):  # noqa: F811
    newer = factories.ModelVersionFactory(
        model=factories.RegisteredModelFactory(organization=organization, name="another"), number=1,
        tree=deployment.variants.get().version.tree,
    )  # fmt: skip
    offered = candidates(maintainer, deployment)
    assert offered[-1] == newer and offered[0].model_id == deployment.variants.get().version.model_id
