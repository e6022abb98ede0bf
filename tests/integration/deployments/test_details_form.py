"""The form of description and sample rate on a deployment's page, and which undos stay while somebody holds it."""

import html
import re

import pytest
from django.urls import reverse

from registry.serving import services
from registry.serving.experiments import rollouts
from registry.serving.models import Deployment, DeploymentChange
from registry.serving.services import Wanted

pytestmark = pytest.mark.django_db
HTMX = {"HX-Request": "true"}


def form_of(deployment):
    return reverse("deployment-details", args=[deployment.pk])


def page_of(client, deployment):
    return html.unescape(client.get(reverse("deployment", args=[deployment.pk])).content.decode())


def details():
    found = Deployment.objects.get()
    return found.description, found.sample_rate


def body(description="", sample_rate="1", revision="1", **more):
    return {"description": description, "sample_rate": sample_rate, "revision": revision, **more}


@pytest.fixture
def canary(maintainer, deployment, versions):
    services.set_details(actor=maintainer, deployment=deployment, sample_rate=0.25)
    return rollouts.start_rollout(actor=maintainer, deployment=deployment, candidate=versions[1].pk)


def test_both_are_saved_as_one_change_that_the_message_takes_back(web, maintainer, deployment):
    client = web(maintainer)
    assert 'id="details-sample_rate"' in page_of(client, deployment)
    answer = client.post(form_of(deployment), body("who is ill", "0.25", reason="too many"), headers=HTMX)
    assert answer["HX-Redirect"] == reverse("deployment", args=[deployment.pk]) and details() == ("who is ill", 0.25)
    change = DeploymentChange.objects.first()
    assert (change.revision, change.reason) == (2, "too many")
    shown = page_of(client, deployment)
    undo = reverse("deployment-undo", args=[deployment.pk]) + "?revision=2"
    assert "“screening” is changed." in shown and undo in shown and 'value="0.25"' in shown
    client.post(undo)
    assert details() == ("", 1.0)


def test_without_htmx_the_page_comes_again(web, maintainer, deployment):
    client = web(maintainer)
    answer = client.post(form_of(deployment), body("plain"), follow=True)
    assert answer.redirect_chain and "is changed." in answer.content.decode() and details() == ("plain", 1.0)
    refused = client.post(form_of(deployment), body("again", "7", "2"))
    shown = refused.content.decode()
    assert "<!doctype html>" in shown and 'id="details-sample_rate_error"' in shown and "again</textarea>" in shown
    assert client.get(form_of(deployment)).url == reverse("deployment", args=[deployment.pk])


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"sample_rate": "2"}, "sample_rate"), ({"sample_rate": ""}, "sample_rate"),
        ({"sample_rate": "nan"}, "sample_rate"), ({"sample_rate": "x"}, "sample_rate"),
        ({"description": "x" * 10_001}, "description"), ({"description": "a\0b"}, "description"),
        ({"reason": "x" * 2001}, "reason"),
    ],
)  # fmt: skip
def test_errors_stand_at_their_field_and_nothing_is_changed(web, maintainer, deployment, sent, field):
    answer = web(maintainer).post(form_of(deployment), body() | sent, headers=HTMX)
    shown = answer.content.decode()
    assert answer.status_code == 200 and shown.startswith('<section id="details"')
    assert re.findall(r'id="details-(\w+)_error"', shown) == [field]
    assert details() == ("", 1.0) and Deployment.objects.get().revision == 1


def test_what_is_as_it_was_is_no_change_whatever_line_ends_a_browser_sends(web, maintainer, deployment):
    services.set_details(actor=maintainer, deployment=deployment, description="one\ntwo ")
    client = web(maintainer)
    client.post(form_of(deployment), body("one\r\ntwo ", "1.0", "2"))
    assert "nothing was changed" in page_of(client, deployment) and Deployment.objects.get().revision == 2


def test_a_form_from_an_old_page_is_refused_with_what_was_written(web, maintainer, deployment):
    services.set_details(actor=maintainer, deployment=deployment, description="mine")
    shown = web(maintainer).post(form_of(deployment), body("late"), headers=HTMX).content.decode()
    assert "It was changed meanwhile" in shown and "late</textarea>" in shown and details()[0] == "mine"


@pytest.mark.parametrize(("who", "status"), [("trainer", 403), ("viewer", 403), ("stranger", 404)])
def test_who_does_not_deploy_sees_no_form_and_is_refused(web, request, deployment, who, status):
    client = web(request.getfixturevalue(who))
    if status == 403:
        assert form_of(deployment) not in page_of(client, deployment)
    assert client.post(form_of(deployment), body("mine")).status_code == status and details() == ("", 1.0)


# --- while somebody holds it --------------------------------------------------------------------------


def test_a_held_rate_is_disabled_with_its_reason_and_the_description_is_not(web, maintainer, deployment, canary):
    client = web(maintainer)
    shown = page_of(client, deployment)
    rate = re.search(r'<input[^>]*id="details-sample_rate"[^>]*>', shown).group()
    assert "disabled" in rate and 'value="0.25"' in rate and "Canary 1 needs the whole log: end it first." in shown
    client.post(form_of(deployment), {"description": "new", "revision": "3"})
    assert details() == ("new", 1.0)


def test_a_rate_sent_nevertheless_is_refused_at_its_field(web, maintainer, deployment, canary):
    shown = web(maintainer).post(form_of(deployment), body("new", "0.5", "3"), headers=HTMX).content.decode()
    told = re.search(r'id="details-sample_rate_error"[^>]*>(.*?)</ul>', shown).group(1)
    assert "Canary 1 is running here" in told and details() == ("", 1.0)


def undos_of(client, deployment):
    shown = page_of(client, deployment)
    return [int(number) for number in re.findall(r'name="change" value="(\d+)"', shown)]


def test_only_undos_of_a_description_stay_while_it_is_held(web, maintainer, viewer, deployment, versions, canary):
    services.set_details(actor=maintainer, deployment=deployment, description="first")
    services.set_details(actor=maintainer, deployment=deployment, description="second")
    client = web(maintainer)
    assert undos_of(client, deployment) == [5, 4] and undos_of(web(viewer), deployment) == []
    client.post(reverse("deployment-undo", args=[deployment.pk]), {"change": "4", "revision": "5"})
    assert details() == ("", 1.0) and canary.state == "running"
    refused = client.post(reverse("deployment-undo", args=[deployment.pk]), {"change": "3"}, follow=True)
    assert "Canary 1 is running here" in refused.content.decode()
    rollouts.abort_rollout(actor=maintainer, rollout=canary)
    assert undos_of(client, deployment) == [7, 6, 5, 4, 3, 2]


# --- one change of several parts ----------------------------------------------------------------------


def test_variants_and_details_together_are_one_row_which_one_undo_takes_back(
    api, web, maintainer, deployment, versions
):
    client, address = api(maintainer), f"/api/v1/deployments/{deployment.pk}"
    wanted = {
        "variants": [{"version": str(versions[1].pk)}], "description": "of the second", "sample_rate": 0.5,
        "reason": "v2", "revision": 1,
    }  # fmt: skip
    assert client.patch(address, wanted, format="json").json()["revision"] == 2
    change = DeploymentChange.objects.first()
    assert (change.before["variants"][0]["number"], change.before["description"]) == (1, "")
    assert (change.after["variants"][0]["number"], change.after["description"]) == (2, "of the second")
    row = page_of(web(maintainer), deployment).partition("Log of changes")[2].partition("</li>")[0]
    assert "Description added" in row and "The log keeps 50 %" in row and "flowers v2 1" in row and ": v2" in row
    undone = client.post(f"{address}/undo", {}, format="json").json()
    assert [one["number"] for one in undone["variants"]] == [1]
    assert (undone["description"], undone["sample_rate"], undone["revision"]) == ("", 1.0, 3)


def test_a_part_that_is_refused_refuses_all(api, maintainer, deployment, versions):
    services.set_archived(actor=maintainer, deployment=deployment, archived=True)
    wanted = {"archived": False, "variants": [{"version": str(versions[1].pk), "weight": 0}], "description": "x"}
    refused = api(maintainer).patch(f"/api/v1/deployments/{deployment.pk}", wanted, format="json")
    assert refused.status_code == 400 and Deployment.objects.get().state == "archived" and details() == ("", 1.0)
    wanted["variants"][0]["weight"] = 1
    assert api(maintainer).patch(f"/api/v1/deployments/{deployment.pk}", wanted, format="json").json()["revision"] == 3
    assert deployment.variants.get(removed_at=None).version == versions[1]


def test_a_held_deployment_takes_no_variants_beside_a_description(maintainer, deployment, versions, canary):
    with pytest.raises(services.Conflict) as refused:
        services.change_deployment(
            actor=maintainer, deployment=deployment, variants=[Wanted(versions[2].pk)], details={"description": "x"}
        )
    assert refused.value.get_codes() == "held" and details() == ("", 1.0)
