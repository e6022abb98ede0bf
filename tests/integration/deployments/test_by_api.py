"""Deployments by API: who may, what is refused, the log, undo, and what is protected."""

import threading

import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection

from dlplatform.accounts.models import AuditEntry
from dlplatform.api import Conflict
from registry import deletion
from registry.serving import services
from registry.serving.assignment import assign
from registry.serving.models import Deployment, DeploymentChange, Variant
from registry.serving.services import Wanted
from tests import factories
from tests.integration.answering import TREE, code_of

pytestmark = pytest.mark.django_db
ROOT = "/api/v1/deployments"


@pytest.fixture
def model(versions):
    return versions[0].model


def body_of(versions, *weights, **more):
    return {
        "variants": [
            {"version": str(one.pk), "weight": weight} for one, weight in zip(versions, weights, strict=False)
        ],
        **more,
    }


# --- making and changing ------------------------------------------------------------------------------


def test_a_maintainer_deploys_and_everybody_of_the_organization_sees_it(api, maintainer, viewer, stranger, versions):
    made = api(maintainer).post(ROOT, {"name": "screening", **body_of(versions, 1)}, format="json")
    assert made.status_code == 201, made.content
    answer = made.json()
    assert answer["state"] == "active" and answer["revision"] == 1 and answer["created_by"] == "maintainer"
    assert [(one["number"], one["share"]) for one in answer["variants"]] == [(1, 1.0)]
    assert api(viewer).get(f"{ROOT}/{answer['id']}").json() == answer
    assert api(viewer).get(f"{ROOT}?search=scree").json()["results"] == [answer]
    assert api(stranger).get(ROOT).json()["results"] == []
    assert AuditEntry.objects.filter(action="deployment.create", actor=maintainer).count() == 1


def test_a_trainer_does_not_deploy(api, trainer, organization, versions, deployment):
    body = {"name": "x", **body_of(versions, 1)}
    assert api(trainer).post(ROOT, body, format="json").status_code == 403
    assert api(trainer).patch(f"{ROOT}/{deployment.pk}", body_of(versions, 1, 1), format="json").status_code == 403
    assert api(trainer).post(f"{ROOT}/{deployment.pk}/undo", {}, format="json").status_code == 403
    with pytest.raises(PermissionDenied):
        services.create_deployment(
            actor=trainer, organization=organization, name="x", variants=[Wanted(versions[0].pk)]
        )


@pytest.mark.parametrize(
    "name", ["", "with space", "a/b", ".hidden", "x" * 81, "0d3f6f1e-5a0c-4b07-9a51-2f6d7a1b1c11", "screening"]
)
def test_a_name_that_is_no_address_or_taken_is_refused(api, maintainer, versions, deployment, name):
    answer = api(maintainer).post(ROOT, {"name": name, **body_of(versions, 1)}, format="json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "name", answer.content


def test_what_cannot_be_served_is_refused_by_its_place(api, maintainer, stranger, versions, model, deployment):
    other = factories.ModelVersionFactory(model__organization=stranger.memberships.get().organization, tree=TREE)
    bare = factories.ModelVersionFactory(model=model, number=8)
    text = factories.ModelVersionFactory(model=model, number=9, tree=TREE, task="regression")
    client = api(maintainer)
    for wrong, code, attr in (
        ([other], "does_not_exist", "variants.0.version"),
        ([versions[0], bare], "model_unusable", "variants.1.version"),
        ([versions[0], text], "task_mismatch", "variants"),
        ([versions[0], versions[0]], "unique", "variants"),
        ([], "min_length", "variants"),
    ):
        answer = client.patch(f"{ROOT}/{deployment.pk}", body_of(wrong, 1, 1), format="json")
        assert answer.status_code == 400, answer.content
        error = answer.json()["errors"][0]
        assert error["attr"].startswith(attr), error
        assert error["code"] == code or code == "min_length", error
    nobody = client.patch(f"{ROOT}/{deployment.pk}", body_of(versions, 0, 0), format="json")
    assert code_of(nobody) == "nobody_answers"
    shadows = {"variants": [{"version": str(versions[0].pk), "role": "shadow"}]}
    assert code_of(client.patch(f"{ROOT}/{deployment.pk}", shadows, format="json")) == "nobody_answers"
    negative = client.patch(f"{ROOT}/{deployment.pk}", body_of(versions, -1), format="json")
    assert negative.status_code == 400 and negative.json()["errors"][0]["attr"] == "variants.0.weight"
    assert Deployment.objects.get().revision == 1


@pytest.mark.parametrize(("weight", "role"), [(float("nan"), "live"), (1e7, "live"), (1, "boss")])
def test_the_service_itself_refuses_what_is_no_weight_and_no_role(maintainer, deployment, versions, weight, role):
    with pytest.raises(ValidationError):
        services.change_variants(
            actor=maintainer, deployment=deployment, variants=[Wanted(versions[0].pk, weight, role)]
        )


def test_a_change_is_logged_and_moves_only_what_must_move(api, maintainer, deployment, versions):
    client = api(maintainer)
    keys = [f"user-{number}" for number in range(4000)]
    before = Deployment.objects.get()
    first = [assign(before.allocation, before.salt, key) for key in keys]
    body = body_of(versions, 90, 10, reason="canary", revision=1)
    answer = client.patch(f"{ROOT}/{deployment.pk}", body, format="json")
    assert answer.status_code == 200, answer.content
    assert {one["number"]: one["share"] for one in answer.json()["variants"]} == {1: 0.9, 2: 0.1}
    after = Deployment.objects.get()
    second = [assign(after.allocation, after.salt, key) for key in keys]
    moved = sum(one != other for one, other in zip(first, second, strict=True))
    assert 300 < moved < 500
    log = client.get(f"{ROOT}/{deployment.pk}/changes").json()["results"]
    assert [(one["revision"], one["reason"], one["actor"]) for one in log] == [
        (2, "canary", "maintainer"),
        (1, "", "maintainer"),
    ]
    assert [one["weight"] for one in log[0]["before"]["variants"]] == [1.0]
    assert {one["number"]: one["weight"] for one in log[0]["after"]["variants"]} == {1: 90.0, 2: 10.0}


def test_a_change_from_an_old_sight_is_refused_and_the_same_again_logs_nothing(api, maintainer, deployment, versions):
    client = api(maintainer)
    assert (
        client.patch(f"{ROOT}/{deployment.pk}", body_of(versions, 1, 1, revision=1), format="json").status_code == 200
    )
    late = client.patch(f"{ROOT}/{deployment.pk}", body_of(versions, 1, revision=1), format="json")
    assert late.status_code == 409 and code_of(late) == "moved"
    client.patch(f"{ROOT}/{deployment.pk}", body_of(versions, 1, 1), format="json")
    assert DeploymentChange.objects.count() == 2
    assert client.patch(f"{ROOT}/{deployment.pk}", {"description": "what for"}, format="json").json()["revision"] == 3
    assert Deployment.objects.get().description == "what for"
    for details in ({"description": "late"}, {"sample_rate": 0.5}):
        late = client.patch(f"{ROOT}/{deployment.pk}", details | {"revision": 2}, format="json")
        assert late.status_code == 409 and code_of(late) == "moved"
    both = body_of(versions, 3, revision=3) | {"sample_rate": 0.5}
    answer = client.patch(f"{ROOT}/{deployment.pk}", both, format="json").json()
    assert (answer["revision"], answer["sample_rate"], answer["description"]) == (4, 0.5, "what for"), "one change"


def test_undo_goes_back_to_the_same_keys_and_can_be_undone(api, maintainer, deployment, versions):
    client = api(maintainer)
    client.patch(f"{ROOT}/{deployment.pk}", body_of(versions, 50, 50), format="json")
    halves = Deployment.objects.get().allocation
    client.patch(f"{ROOT}/{deployment.pk}", body_of(versions[1:], 1, 1), format="json")
    undone = client.post(f"{ROOT}/{deployment.pk}/undo", {"reason": "errors", "revision": 3}, format="json")
    assert undone.status_code == 200, undone.content
    assert {one["number"] for one in undone.json()["variants"]} == {1, 2} and undone.json()["revision"] == 4
    assert Deployment.objects.get().allocation == halves
    again = client.post(f"{ROOT}/{deployment.pk}/undo", {}, format="json").json()
    assert {one["number"] for one in again["variants"]} == {2, 3}
    far = client.post(f"{ROOT}/{deployment.pk}/undo", {"change": 2}, format="json").json()
    assert [one["number"] for one in far["variants"]] == [1]
    assert client.get(f"{ROOT}/{deployment.pk}/changes").json()["results"][0]["undoes"] == 2
    assert Variant.objects.filter(deployment=deployment).count() == 3, "rows stay for the log"


def test_what_cannot_be_undone_says_so(api, maintainer, deployment):
    client = api(maintainer)
    first = client.post(f"{ROOT}/{deployment.pk}/undo", {}, format="json")
    assert first.status_code == 409 and code_of(first) == "nothing_before"
    none = client.post(f"{ROOT}/{deployment.pk}/undo", {"change": 9}, format="json")
    assert none.status_code == 400 and code_of(none) == "does_not_exist"


def test_an_archived_deployment_frees_its_name_and_comes_back(
    api, maintainer, deployment, versions, organization, told
):
    client = api(maintainer)
    assert client.patch(f"{ROOT}/{deployment.pk}", {"archived": True}, format="json").json()["state"] == "archived"
    assert client.patch(f"{ROOT}/{deployment.pk}", {"archived": True}, format="json").json()["revision"] == 2
    refused = client.post(f"{ROOT}/{deployment.pk}/predict", {"instances": [{"x": 1}]}, format="json")
    assert refused.status_code == 409 and code_of(refused) == "archived"
    assert client.post(f"{ROOT}/screening/predict", {"instances": [{"x": 1}]}, format="json").status_code == 404
    assert code_of(client.patch(f"{ROOT}/{deployment.pk}", body_of(versions, 1, 1), format="json")) == "archived"
    assert client.get(ROOT).json()["results"] == []
    assert len(client.get(f"{ROOT}?archived=true").json()["results"]) == 1
    wanted = [Wanted(versions[1].pk)]
    other = services.create_deployment(actor=maintainer, organization=organization, name="screening", variants=wanted)
    taken = client.patch(f"{ROOT}/{deployment.pk}", {"archived": False}, format="json")
    assert taken.status_code == 409 and code_of(taken) == "name_taken"
    assert client.post(f"{ROOT}/{deployment.pk}/undo", {}, format="json").status_code == 409
    services.set_archived(actor=maintainer, deployment=other, archived=True)
    back = client.post(f"{ROOT}/{deployment.pk}/undo", {}, format="json").json()
    assert back["state"] == "active" and [one["number"] for one in back["variants"]] == [1]
    assert client.post(f"{ROOT}/screening/predict", {"instances": [{"x": 1}]}, format="json").status_code == 200


# --- protection ---------------------------------------------------------------------------------------


def test_of_a_change_whose_second_part_is_refused_nothing_stays(api, maintainer, deployment, versions):
    both = {"archived": True, "description": "gone", **body_of(versions, 1, 1)}
    refused = api(maintainer).patch(f"{ROOT}/{deployment.pk}", both, format="json")
    assert refused.status_code == 409 and code_of(refused) == "archived"
    found = api(maintainer).get(f"{ROOT}/{deployment.pk}").json()
    assert (found["state"], found["revision"], found["description"]) == ("active", 1, "")


def test_a_version_that_answers_is_not_deleted_and_one_that_was_deleted_does_not_answer(
    maintainer, organization, deployment, versions, model
):
    assert "the deployment “screening” uses v1" in deletion.preview_of_version(versions[0]).obstacles
    assert deletion.preview_of_model(model).obstacles == ["the deployment “screening” uses v1"]
    for delete in (
        lambda: deletion.delete_version(actor=maintainer, version=versions[0]),
        lambda: deletion.delete_model(actor=maintainer, model=model),
    ):
        with pytest.raises(Conflict, match="uses v1") as caught:
            delete()
        assert caught.value.get_codes() == "in_use"
    services.change_variants(
        actor=maintainer,
        deployment=deployment,
        variants=[Wanted(versions[1].pk), Wanted(versions[2].pk, role="shadow")],
    )
    deletion.delete_version(actor=maintainer, version=versions[0])
    with pytest.raises(Conflict, match="uses v3"):
        deletion.delete_version(actor=maintainer, version=versions[2])
    with pytest.raises(Conflict) as gone:
        services.undo_change(actor=maintainer, deployment=deployment)
    assert gone.value.get_codes() == "files_deleted"
    services.set_archived(actor=maintainer, deployment=deployment, archived=True)
    deletion.delete_version(actor=maintainer, version=versions[1])
    with pytest.raises(Conflict) as gone:
        services.set_archived(actor=maintainer, deployment=deployment, archived=False)
    assert gone.value.get_codes() == "files_deleted"


@pytest.mark.django_db(transaction=True)
def test_of_two_who_change_from_the_same_sight_one_is_refused(maintainer, deployment, versions):
    results = []

    def change(version):
        try:
            services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(version.pk)], revision=1)
            results.append("done")
        except Conflict as conflict:
            results.append(conflict.get_codes())
        finally:
            connection.close()

    threads = [threading.Thread(target=change, args=[version]) for version in versions[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["done", "moved"]
