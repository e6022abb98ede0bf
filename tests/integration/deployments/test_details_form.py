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


def test_a_text_is_as_long_as_its_lines_are_stored(web, maintainer, deployment):
    lines = "\n".join(["1234"] * 1999 + ["12345"])
    assert len(lines) == 10_000
    services.set_details(actor=maintainer, deployment=deployment, description=lines)
    web(maintainer).post(form_of(deployment), body(lines.replace("\n", "\r\n"), "0.5", "2"))
    assert details() == (lines, 0.5)


def test_line_ends_that_a_program_has_sent_are_no_change_and_new_ones_are_stored_as_lines(web, maintainer, deployment):
    services.set_details(actor=maintainer, deployment=deployment, description="one\r\ntwo\rthree")
    client = web(maintainer)
    client.post(form_of(deployment), body("one\r\ntwo\r\nthree", revision="2"))
    assert details()[0] == "one\r\ntwo\rthree"
    client.post(form_of(deployment), body("one\r\n\r\ntwo", revision="2"))
    assert details()[0] == "one\n\ntwo"


def test_who_answers_may_have_moved_since_the_form_was_filled(web, maintainer, deployment, versions):
    services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(versions[1].pk)])
    web(maintainer).post(form_of(deployment), body("mine"))
    assert details() == ("mine", 1.0) and Deployment.objects.get().revision == 3


def test_a_form_from_before_another_description_is_refused_once_and_says_what_it_would_replace(
    web, maintainer, deployment
):
    services.set_details(actor=maintainer, deployment=deployment, description="<mine>", sample_rate=0.5)
    client = web(maintainer)
    shown = client.post(form_of(deployment), body("late"), headers=HTMX).content.decode()
    assert "It was changed meanwhile. The description is “&lt;mine&gt;” now, and the log keeps 50 % of the" in shown
    assert "Save again to replace that." in shown and "late</textarea>" in shown and details() == ("<mine>", 0.5)
    revision = re.search(r'name="revision" value="(\d+)"', shown).group(1)
    client.post(form_of(deployment), body("late", "0.5", revision))
    assert details() == ("late", 0.5)


def test_details_that_are_again_what_they_were_stand_against_nothing(web, maintainer, deployment):
    for text in ("other", ""):
        services.set_details(actor=maintainer, deployment=deployment, description=text)
    web(maintainer).post(form_of(deployment), body("mine"))
    assert details()[0] == "mine"


def test_a_revision_that_is_not_there_yet_is_refused(web, maintainer, deployment):
    shown = web(maintainer).post(form_of(deployment), body("early", revision="9"), headers=HTMX).content.decode()
    assert "It was changed meanwhile. There is no description now" in shown and details()[0] == ""


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


def test_traffic_that_a_canary_has_moved_stands_against_no_description(web, maintainer, deployment, canary):
    assert Deployment.objects.get().revision == 3
    web(maintainer).post(form_of(deployment), {"description": "from before the canary", "revision": "2"})
    assert details() == ("from before the canary", 1.0)


def test_a_rate_sent_nevertheless_is_refused_at_its_field(web, maintainer, deployment, canary):
    shown = web(maintainer).post(form_of(deployment), body("new", "0.5", "3"), headers=HTMX).content.decode()
    told = re.search(r'id="details-sample_rate_error"[^>]*>(.*?)</ul>', shown).group(1)
    assert "Canary 1 is running here" in told and details() == ("", 1.0)


def test_a_held_rate_is_shown_also_beside_the_error_of_another_field(web, maintainer, deployment, canary):
    posted = {"description": "x" * 10_001, "revision": "3"}
    shown = web(maintainer).post(form_of(deployment), posted, headers=HTMX).content.decode()
    rate = re.search(r'<input[^>]*id="details-sample_rate"[^>]*>', shown).group()
    assert re.findall(r'id="details-(\w+)_error"', shown) == ["description"]
    assert "disabled" in rate and 'value="0.25"' in rate


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


def test_while_it_is_held_no_undo_is_offered_that_changes_nothing(web, maintainer, deployment, canary):
    for text in ("first", ""):
        services.set_details(actor=maintainer, deployment=deployment, description=text)
    assert undos_of(web(maintainer), deployment) == [5]


def test_an_undo_that_changes_nothing_offers_none_of_anothers_change(web, maintainer, deployment):
    for text in ("first", ""):
        services.set_details(actor=maintainer, deployment=deployment, description=text)
    client, address = web(maintainer), reverse("deployment-undo", args=[deployment.pk])
    shown = client.post(address, {"change": "2", "revision": "3"}, follow=True).content.decode()
    assert "is as it was before." in shown and f"{address}?revision" not in shown
    shown = client.post(address, {"change": "3", "revision": "3"}, follow=True).content.decode()
    assert f"{address}?revision=4" in shown


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
