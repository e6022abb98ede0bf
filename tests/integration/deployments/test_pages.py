"""Deployments by their pages: live in a click, changed, undone, archived, tried."""

import pytest
from django.urls import reverse

from dlplatform.engine.errors import PredictionInputError
from registry.serving import services
from registry.serving.models import Variant

pytestmark = pytest.mark.django_db


def test_a_version_is_deployed_under_a_name_of_its_own(web, maintainer, trainer, versions):
    client = web(maintainer)
    address = f"{reverse('deployment-new')}?version={versions[1].pk}"
    assert address in client.get(reverse("model-version", args=[versions[1].pk])).content.decode()
    assert address not in web(trainer).get(reverse("model-version", args=[versions[1].pk])).content.decode()
    assert f'value="{versions[1].pk}" selected' in client.get(address).content.decode()
    shown = client.post(address, {"name": "live", "version": str(versions[1].pk)}, follow=True).content.decode()
    assert "answers from now on" in shown and "flowers v2" in shown
    again = client.post(address, {"name": "live", "version": str(versions[1].pk)}).content.decode()
    assert "There is a deployment “live” already." in again
    assert web(trainer).get(address).status_code == 403
    assert "live" in client.get(reverse("deployments")).content.decode()
    assert "Nothing matches" in client.get(reverse("deployments") + "?q=nothing").content.decode()


def test_the_page_changes_weights_takes_out_adds_and_undoes(web, maintainer, deployment, versions):
    client = web(maintainer)
    change = reverse("deployment-variants", args=[deployment.pk])
    one, two, three = (str(version.pk) for version in versions)
    body = {"version": [one, two], "weight": ["3", "1"], "role": ["live", "live"], "revision": "1", "reason": "try"}
    shown = client.post(change, body, follow=True).content.decode()
    assert "75.0" in shown or "75" in shown
    assert client.post(change, body, follow=True).content.decode().count("changed meanwhile") == 1
    body = {"version": [one, two, three], "weight": ["3", "1", "1"], "role": ["removed", "live", "shadow"]}
    client.post(change, body)
    rows = Variant.objects.filter(removed_at=None).values_list("version__number", "role")
    assert set(rows) == {(2, "live"), (3, "shadow")}
    client.post(reverse("deployment-undo", args=[deployment.pk]))
    assert set(Variant.objects.filter(removed_at=None).values_list("version__number", flat=True)) == {1, 2}
    client.post(reverse("deployment-undo", args=[deployment.pk]), {"change": "2"})
    assert set(Variant.objects.filter(removed_at=None).values_list("version__number", flat=True)) == {1}
    for wrong in (
        {"version": ["x"], "weight": ["1"], "role": ["live"]},
        {"version": [one], "weight": [], "role": ["live"]},
    ):
        assert "flash error" in client.post(change, wrong, follow=True).content.decode()
    odd = client.post(reverse("deployment-undo", args=[deployment.pk]), {"change": "x"}, follow=True)
    assert "There is no such change" in odd.content.decode()


def test_the_page_archives_and_restores(web, maintainer, deployment):
    client = web(maintainer)
    shown = client.post(reverse("deployment-archive", args=[deployment.pk]), follow=True).content.decode()
    assert "does not answer" in shown and "Restore" in shown
    assert "screening" in client.get(reverse("deployments") + "?archived=on").content.decode()
    assert (
        "answers again"
        in client.post(reverse("deployment-restore", args=[deployment.pk]), follow=True).content.decode()
    )


def test_the_page_tries_it_and_names_who_answered(web, viewer, deployment, versions, told):
    client = web(viewer)
    page = client.get(reverse("deployment", args=[deployment.pk])).content.decode()
    assert "Try it" in page and "/api/v1/deployments/screening/predict" in page and "Archive" not in page
    address = reverse("deployment-try", args=[deployment.pk])
    shown = client.post(address, {"key": "a", "input-0": "1.5"}).content.decode()
    assert "Answered by" in shown and "flowers v1" in shown and told[-1][1] == [{"x": 1.5}]
    part = client.post(address, {"input-0": "1.5"}, headers={"HX-Request": "true"}).content.decode()
    assert part.lstrip().startswith("<section")
    assert client.get(address).status_code == 302


def test_what_the_model_refuses_is_said_beside_the_field(web, viewer, maintainer, deployment, versions, stubs, told):
    def refuse(rows):
        raise PredictionInputError(0, "x", "invalid", "not a number")

    stubs.answers[versions[0].pk] = refuse
    address = reverse("deployment-try", args=[deployment.pk])
    assert "not a number" in web(viewer).post(address, {"input-0": "z"}).content.decode()
    services.set_archived(actor=maintainer, deployment=deployment, archived=True)
    assert "is archived" in web(viewer).post(address, {"input-0": "1"}).content.decode()
