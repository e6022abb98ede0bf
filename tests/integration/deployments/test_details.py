"""Description and sample rate of a deployment: rows of its log, in words, that can be taken back."""

import pytest
from django.urls import reverse

from dlplatform.accounts.models import AuditEntry
from dlplatform.api import Conflict
from registry.serving import services
from registry.serving.changes import details_of
from registry.serving.experiments import services as experiments
from registry.serving.experiments.holding import holder_of
from registry.serving.models import Deployment, DeploymentChange
from registry.serving.services import Wanted
from tests.integration.answering import code_of

pytestmark = pytest.mark.django_db
ROOT = "/api/v1/deployments"


def details(deployment):
    found = Deployment.objects.get(pk=deployment.pk)
    return found.description, found.sample_rate


def test_details_are_rows_of_the_log_with_before_and_after(api, maintainer, deployment):
    client, address = api(maintainer), f"{ROOT}/{deployment.pk}"
    wanted = {"description": "who is ill", "sample_rate": 0.1, "reason": "too many"}
    assert client.patch(address, wanted, format="json").json()["revision"] == 2
    newest = client.get(f"{address}/changes").json()["results"][0]
    assert (newest["revision"], newest["reason"], newest["actor"]) == (2, "too many", "maintainer")
    assert (newest["before"]["description"], newest["before"]["sample_rate"]) == ("", 1.0)
    assert (newest["after"]["description"], newest["after"]["sample_rate"]) == ("who is ill", 0.1)
    assert newest["before"]["variants"] == newest["after"]["variants"]
    assert AuditEntry.objects.get(action="deployment.details").detail["sample_rate"] == 0.1
    assert client.patch(address, wanted, format="json").json()["revision"] == 2, "the same again is no change"


def test_a_change_of_details_tells_who_listens(maintainer, deployment, monkeypatch, django_capture_on_commit_callbacks):
    told = []
    monkeypatch.setattr(services.events, "publish_state", lambda *state: told.append(state))
    with django_capture_on_commit_callbacks(execute=True):
        services.set_details(actor=maintainer, deployment=deployment, description="new")
    assert [(kind, key) for _, kind, key, *_ in told] == [("deployment", deployment.pk)]


def test_undo_takes_the_newest_details_back_and_can_be_undone(api, maintainer, deployment):
    client, address = api(maintainer), f"{ROOT}/{deployment.pk}"
    client.patch(address, {"description": "first"}, format="json")
    client.patch(address, {"description": "second", "sample_rate": 0.25}, format="json")
    undone = client.post(f"{address}/undo", {}, format="json").json()
    assert (undone["description"], undone["sample_rate"], undone["revision"]) == ("first", 1.0, 4)
    again = client.post(f"{address}/undo", {}, format="json").json()
    assert (again["description"], again["sample_rate"]) == ("second", 0.25)
    far = client.post(f"{address}/undo", {"change": 2}, format="json").json()
    assert (far["description"], far["sample_rate"]) == ("", 1.0)


def test_going_back_before_a_change_of_variants_restores_the_details_of_then(maintainer, deployment, versions):
    services.set_details(actor=maintainer, deployment=deployment, sample_rate=0.5)
    services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(versions[1].pk)])
    services.set_details(actor=maintainer, deployment=deployment, description="of the second", sample_rate=0.2)
    change = services.change_of(deployment=deployment, revision=3)
    services.undo_change(actor=maintainer, deployment=deployment, change=change)
    assert details(deployment) == ("", 0.5)
    assert deployment.variants.get(removed_at=None).version == versions[0]


def test_rows_of_earlier_releases_leave_the_details_as_they_are(api, web, maintainer, deployment, versions):
    services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(versions[1].pk)])
    for row in DeploymentChange.objects.all():
        for state in (row.before, row.after):
            state.pop("description", None)
            state.pop("sample_rate", None)
        row.save()
    services.set_details(actor=maintainer, deployment=deployment, description="kept", sample_rate=0.5)
    listed = api(maintainer).get(f"{ROOT}/{deployment.pk}/changes").json()["results"]
    assert "description" not in listed[1]["before"] and listed[0]["before"]["description"] == ""
    assert web(maintainer).get(reverse("deployment", args=[deployment.pk])).status_code == 200
    change = services.change_of(deployment=deployment, revision=2)
    services.undo_change(actor=maintainer, deployment=deployment, change=change)
    assert details(deployment) == ("kept", 0.5)
    assert deployment.variants.get(removed_at=None).version == versions[0]


def test_the_page_tells_changes_of_details_in_words(web, viewer, maintainer, deployment):
    services.set_details(actor=maintainer, deployment=deployment, description="<b>who</b>", sample_rate=0.1)
    services.set_details(actor=maintainer, deployment=deployment, sample_rate=0.0)
    shown = web(viewer).get(reverse("deployment", args=[deployment.pk])).content.decode()
    assert "The log keeps 10 % of the requests instead of all" in shown and "Description added" in shown
    assert "The log keeps none of the requests instead of 10 %" in shown and "<b>who" not in shown


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"description": "a"}, {"description": "b"}, ["description changed"]),
        ({"description": "a"}, {"description": ""}, ["description removed"]),
        ({"sample_rate": 0.125}, {"sample_rate": 1.0}, ["the log keeps all requests instead of 12.5 %"]),
        ({"sample_rate": 0.5}, {"sample_rate": 0.5}, []),
        ({}, {"description": "", "sample_rate": 1.0}, []),
    ],
)
def test_details_in_words(before, after, told):
    assert details_of(before, after) == told


# --- while an experiment holds it ---------------------------------------------------------------------


@pytest.fixture
def held(maintainer, deployment, versions):
    services.set_details(actor=maintainer, deployment=deployment, sample_rate=0.25)
    draft = experiments.create_experiment(
        actor=maintainer, deployment=deployment, challenger=versions[1].pk, metric="errors", minimum_effect=0.1,
        baseline=0.2,
    )  # fmt: skip
    return experiments.start_experiment(actor=maintainer, experiment=draft)


def test_a_held_deployment_has_its_description_changed_and_taken_back_alone(maintainer, deployment, held):
    services.set_details(actor=maintainer, deployment=deployment, description="new")
    services.undo_change(actor=maintainer, deployment=deployment)
    assert details(deployment) == ("", 1.0)
    for wanted in ({"sample_rate": 0.5}, {"description": "x", "sample_rate": 0.5}):
        with pytest.raises(Conflict) as refused:
            services.set_details(actor=maintainer, deployment=deployment, **wanted)
        assert refused.value.get_codes() == "held"
    for revision in (2, 3):  # the sample rate, and the start
        change = services.change_of(deployment=deployment, revision=revision)
        with pytest.raises(Conflict) as refused:
            services.undo_change(actor=maintainer, deployment=deployment, change=change)
        assert refused.value.get_codes() == "held"
    assert held.state == "running" and details(deployment) == ("", 1.0)


def test_who_holds_it_is_found_by_one_question_where_an_experiment_does(deployment, held, django_assert_num_queries):
    with django_assert_num_queries(1):
        assert holder_of(deployment) == held
    held.delete()
    with django_assert_num_queries(2):
        assert holder_of(deployment) is None


def test_requests_of_a_changed_description_count_for_the_experiment(maintainer, deployment, held):
    services.set_details(actor=maintainer, deployment=deployment, description="new")
    held.refresh_from_db()
    assert Deployment.objects.get().revision > held.revision, "sums take this revision and later ones"


def test_the_rate_of_an_experiment_is_not_taken_for_the_deployments_own(maintainer, deployment, held):
    """Going back to a row that was written while an experiment kept every request gives the deployment's own rate."""
    experiments.stop_experiment(actor=maintainer, experiment=held)
    rates = [(row.before.get("sample_rate"), row.after["sample_rate"]) for row in DeploymentChange.objects.all()]
    assert rates == [(0.25, 0.25), (0.25, 0.25), (1.0, 0.25), (None, 1.0)]
    services.undo_change(actor=maintainer, deployment=deployment)
    assert details(deployment)[1] == 0.25


@pytest.mark.parametrize(("who", "status"), [("trainer", 403), ("viewer", 403), ("stranger", 404)])
def test_who_does_not_deploy_changes_no_details(api, request, deployment, who, status):
    client = api(request.getfixturevalue(who))
    answer = client.patch(f"{ROOT}/{deployment.pk}", {"description": "mine"}, format="json")
    assert answer.status_code == status and details(deployment) == ("", 1.0)


def test_details_from_an_old_sight_are_refused(api, maintainer, deployment):
    client = api(maintainer)
    client.patch(f"{ROOT}/{deployment.pk}", {"description": "mine"}, format="json")
    late = client.patch(f"{ROOT}/{deployment.pk}", {"description": "late", "revision": 1}, format="json")
    assert late.status_code == 409 and code_of(late) == "moved" and details(deployment)[0] == "mine"
