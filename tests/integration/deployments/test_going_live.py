"""A version goes live in one click: from its page, by whoever may deploy, and back by an undo."""

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from guardian.shortcuts import assign_perm

from registry.models import OptimizedVariant, RegisteredModel
from registry.serving import going_live, services
from registry.serving.experiments import rollouts
from registry.serving.models import Deployment, DeploymentChange, Variant
from registry.serving.naming import free_name
from registry.serving.services import Wanted
from tests import factories
from tests.integration.answering import TREE, deployed, who_answers

pytestmark = pytest.mark.django_db


def page_of(client, version):
    return client.get(reverse("model-version", args=[version.pk])).content.decode()


def deploy_address(version):
    return reverse("version-deploy", args=[version.pk])


def live_address(deployment):
    return reverse("deployment-go-live", args=[deployment.pk])


# --- a new deployment ---------------------------------------------------------------------------------


def test_one_click_deploys_a_version_under_the_name_of_its_model(web, maintainer, versions):
    client = web(maintainer)
    shown = page_of(client, versions[1])
    assert f'action="{deploy_address(versions[1])}"' in shown and "No deployment serves this model yet" in shown
    answer = client.post(deploy_address(versions[1]), follow=True)
    made = Deployment.objects.get()
    assert answer.redirect_chain[-1][0] == reverse("deployment", args=[made.pk])
    assert made.name == "flowers" and who_answers(made) == [(2, 1.0)]
    assert DeploymentChange.objects.get().reason == "flowers v2 goes live"
    page = answer.content.decode()
    assert "“flowers” answers with flowers v2 from now on." in page
    assert f'<form method="post" action="{reverse("deployment-archive", args=[made.pk])}">' in page
    client.post(reverse("deployment-archive", args=[made.pk]))
    assert Deployment.objects.get().state == "archived"


def test_a_second_click_makes_no_second_deployment(web, maintainer, versions):
    client = web(maintainer)
    client.post(deploy_address(versions[0]))
    again = client.post(deploy_address(versions[0]), follow=True).content.decode()
    assert "serves this model already" in again and Deployment.objects.count() == 1


def test_a_name_that_is_in_use_gets_a_number(organization, maintainer, versions):
    other = factories.ModelVersionFactory(model__organization=organization, number=1, tree=TREE)
    deployed(maintainer, organization, other, name="flowers")
    deployed(maintainer, organization, other, name="flowers-2")
    made, new = going_live.deploy(actor=maintainer, version=versions[0])
    assert new and made.name == "flowers-3"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Größe & Gewicht", "Groe-Gewicht"),
        ("../x", "x"),
        ("流", "model"),
        ("0d3f6f1e-5a0c-4b07-9a51-2f6d7a1b1c11", "model-0d3f6f1e-5a0c-4b07-9a51-2f6d7a1b1c11"),
        ("y" * 120, "y" * 60),
    ],
)
def test_every_name_of_a_model_becomes_an_address(organization, model, name):
    assert free_name(organization, model) == name


# --- in a deployment that is there --------------------------------------------------------------------


def test_one_click_goes_live_in_the_deployment_and_an_undo_takes_it_back(web, maintainer, deployment, versions):
    three = [Wanted(versions[0].pk, 3), Wanted(versions[1].pk, 1), Wanted(versions[2].pk, role="shadow")]
    services.change_variants(actor=maintainer, deployment=deployment, variants=three)
    client = web(maintainer)
    shown = page_of(client, versions[1])
    assert "Go live in screening" in shown and "flowers v1 (75 %), flowers v2 (25 %)" in shown
    assert deploy_address(versions[1]) not in shown
    body = {"version": str(versions[1].pk), "revision": "2"}
    answer = client.post(live_address(deployment), body, follow=True)
    assert "flowers v2 answers all requests of “screening” from now on." in answer.content.decode()
    undo = reverse("deployment-undo", args=[deployment.pk]) + "?revision=3"
    assert undo in answer.content.decode()
    assert who_answers(deployment) == [(2, 1.0)]
    assert Variant.objects.get(removed_at=None, role="shadow").version == versions[2], "shadows stay"
    assert "This version answers all its requests" in page_of(client, versions[1])
    client.post(undo)
    assert who_answers(deployment) == [(1, 3.0), (2, 1.0)]
    late = client.post(undo, follow=True).content.decode()  # of a page that was left open
    assert "It was changed meanwhile" in late and who_answers(deployment) == [(1, 3.0), (2, 1.0)]


def test_who_answers_alone_already_changes_nothing(web, maintainer, deployment, versions):
    body = {"version": str(versions[0].pk)}
    again = web(maintainer).post(live_address(deployment), body, follow=True).content.decode()
    assert "already" in again and Deployment.objects.get().revision == 1


def test_a_click_from_an_old_page_is_refused(web, maintainer, deployment, versions):
    services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(versions[2].pk)])
    body = {"version": str(versions[1].pk), "revision": "1"}
    assert "changed meanwhile" in web(maintainer).post(live_address(deployment), body, follow=True).content.decode()
    assert who_answers(deployment) == [(3, 1.0)]


def test_an_alias_that_would_not_be_followed_any_more_is_named(web, maintainer, deployment, versions):
    factories.RefFactory(version=versions[0], model=versions[0].model, kind="alias", name="champion")
    followed = [Wanted(versions[0].pk, alias="champion")]
    services.change_variants(actor=maintainer, deployment=deployment, variants=followed)
    assert "The alias champion is followed no more then" in page_of(web(maintainer), versions[1])
    web(maintainer).post(live_address(deployment), {"version": str(versions[1].pk)})
    assert Variant.objects.get(removed_at=None).alias == ""


def test_a_held_deployment_says_by_whom(web, maintainer, deployment, versions):
    rollouts.start_rollout(actor=maintainer, deployment=deployment, candidate=versions[1].pk)
    shown = page_of(web(maintainer), versions[2])
    assert "Canary 1 is running here: end it first." in shown and live_address(deployment) not in shown
    body = {"version": str(versions[2].pk)}
    refused = web(maintainer).post(live_address(deployment), body, follow=True).content.decode()
    assert "Canary 1 is running here" in refused and len(who_answers(deployment)) == 2


@pytest.mark.parametrize("version", ["", "x", "0d3f6f1e-5a0c-4b07-9a51-2f6d7a1b1c11"])
def test_what_is_no_version_is_refused(web, maintainer, deployment, version):
    shown = web(maintainer).post(live_address(deployment), {"version": version}, follow=True).content.decode()
    assert "flash error" in shown and Deployment.objects.get().revision == 1


def slower_version(version):
    """What an optimization made of a version, and measured to be slower."""
    made = factories.ModelVersionFactory(model=version.model, number=8, tree=TREE)
    OptimizedVariant.objects.create(
        optimization=factories.OptimizationFactory(version=version), position=0, plan={"passes": ["onnx"]},
        output_version=made, report={"problems": [{"code": "slower", "sentence": "It is slower."}]},
    )  # fmt: skip
    return made


# --- what cannot go live in a click -------------------------------------------------------------------


def test_a_version_with_measured_problems_needs_a_reason_not_a_click(
    web, maintainer, organization, versions, deployment
):
    worse = slower_version(versions[0])
    client = web(maintainer)
    shown = page_of(client, worse)
    assert "It is slower." in shown and live_address(deployment) not in shown
    form = f"{reverse('deployment', args=[deployment.pk])}?add={worse.pk}#add-version"
    assert form in shown and f'value="{worse.pk}" selected' in client.get(form).content.decode()
    refused = client.post(live_address(deployment), {"version": str(worse.pk)}, follow=True).content.decode()
    assert "It is slower." in refused and Deployment.objects.get().revision == 1
    services.set_archived(actor=maintainer, deployment=deployment, archived=True)
    shown = page_of(client, worse)
    assert "Give a reason and deploy" in shown and deploy_address(worse) not in shown
    assert "It is slower." in client.post(deploy_address(worse), follow=True).content.decode()
    assert Deployment.objects.count() == 1


@pytest.mark.parametrize("kind", ["archived", "deleted", "external"])
def test_what_cannot_answer_has_a_disabled_button_with_the_reason(web, maintainer, versions, kind):
    version = versions[0]
    told = {"archived": "is archived; restore it first", "deleted": "were deleted on", "external": "has no model.json"}
    if kind == "archived":
        RegisteredModel.objects.update(archived_at=timezone.now())
    elif kind == "deleted":
        type(version).objects.filter(pk=version.pk).update(deleted_at=timezone.now())
    else:
        version = factories.ModelVersionFactory(model=version.model, number=9, tree={})
    shown = page_of(web(maintainer), version)
    assert told[kind] in shown and deploy_address(version) not in shown
    assert re.search(r"<button[^>]* disabled aria-describedby=\"live-obstacle\">Deploy", shown)
    refused = web(maintainer).post(deploy_address(version), follow=True).content.decode()
    assert "flash error" in refused and told[kind] in refused and not Deployment.objects.exists()


# --- who ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("who", "status"), [("trainer", 403), ("viewer", 403), ("stranger", 404)])
def test_who_does_not_deploy_gets_no_button_and_is_refused(web, request, versions, deployment, who, status):
    client = web(request.getfixturevalue(who))
    if status == 403:
        shown = page_of(client, versions[1])
        assert "Go live" not in shown and live_address(deployment) not in shown
    assert client.post(deploy_address(versions[1])).status_code == status
    assert client.post(live_address(deployment), {"version": str(versions[1].pk)}).status_code == status
    assert Deployment.objects.get().revision == 1


def test_a_click_is_a_post(web, maintainer, versions, deployment):
    assert web(maintainer).get(deploy_address(versions[0])).status_code == 405
    assert web(maintainer).get(live_address(deployment)).status_code == 405


# --- where the model is served already ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "weight", "told"),
    [
        ("live", 1.0, "answers a part of its requests."),
        ("live", 0.0, "has the weight 0 in it and answers nobody: give it a weight."),
        ("shadow", 1.0, "is only a shadow in it and answers nobody: choose “live, answers” as its role."),
        ("", 0.0, "is not in it: add it to who answers."),
    ],
)
def test_what_the_version_is_where_its_model_is_served_already(
    web, maintainer, deployment, versions, role, weight, told
):
    added = [Wanted(versions[1].pk, weight, role)] if role else []
    services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(versions[0].pk), *added])
    shown = web(maintainer).post(deploy_address(versions[1]), follow=True).content.decode()
    assert f"“screening” serves this model already. flowers v2 {told}" in shown
    assert Deployment.objects.count() == 1


def test_the_deployment_that_has_the_version_is_the_one_that_is_told(maintainer, organization, deployment, versions):
    theirs = deployed(maintainer, organization, versions[1], name="the-second")
    assert going_live.deploy(actor=maintainer, version=versions[1]) == (theirs, False)


def test_it_is_found_behind_more_deployments_than_a_page_shows(
    maintainer, organization, deployment, versions, monkeypatch
):
    monkeypatch.setattr(going_live, "MOST_PLACES", 1)
    theirs = deployed(maintainer, organization, versions[1], name="the-second")
    assert len(going_live.serving_deployments(maintainer, versions[1])) == 1
    assert going_live.deploy(actor=maintainer, version=versions[1]) == (theirs, False)
    assert going_live.deploy(actor=maintainer, version=versions[2]) == (deployment, False), "else the first by name"


def test_a_version_that_was_taken_out_is_not_in_it(maintainer, organization, deployment, versions):
    theirs = deployed(maintainer, organization, versions[1], name="the-second")
    services.change_variants(actor=maintainer, deployment=theirs, variants=[Wanted(versions[0].pk)])
    assert going_live.deploy(actor=maintainer, version=versions[1]) == (deployment, False)


def test_nothing_impossible_is_advised_where_a_canary_holds_it(web, maintainer, deployment, versions):
    rollouts.start_rollout(actor=maintainer, deployment=deployment, candidate=versions[1].pk)
    shown = web(maintainer).post(deploy_address(versions[2]), follow=True).content.decode()
    assert "flowers v3 is not in it. Canary 1 is running here: end it first." in shown
    assert "add it to who answers" not in shown


def test_a_name_that_is_taken_at_the_same_moment_gives_the_next_one(maintainer, organization, versions, monkeypatch):
    """`free_name` had looked before the other was there."""
    other = factories.ModelVersionFactory(model__organization=organization, number=1, tree=TREE)
    deployed(maintainer, organization, other, name="flowers")
    looks = iter(["flowers", "flowers", "flowers-2"])
    monkeypatch.setattr(going_live, "free_name", lambda *_: next(looks))
    made, new = going_live.deploy(actor=maintainer, version=versions[0])
    assert new and made.name == "flowers-2" and DeploymentChange.objects.filter(deployment=made).count() == 1


def test_a_name_that_is_always_taken_is_told_in_the_end(web, maintainer, organization, versions, monkeypatch):
    other = factories.ModelVersionFactory(model__organization=organization, number=1, tree=TREE)
    deployed(maintainer, organization, other, name="flowers")
    monkeypatch.setattr(going_live, "free_name", lambda *_: "flowers")
    shown = web(maintainer).post(deploy_address(versions[0]), follow=True).content.decode()
    assert "There is a deployment “flowers” already." in shown and Deployment.objects.count() == 1


# --- what the page costs ------------------------------------------------------------------------------


@pytest.fixture
def queries_of(web, versions):
    def count(user):
        client = web(user)
        client.get(reverse("model-version", args=[versions[0].pk]))
        with CaptureQueriesContext(connection) as asked:
            shown = client.get(reverse("model-version", args=[versions[0].pk])).content.decode()
        return len(asked), shown.count("Go live in") + shown.count('<span class="tag">live</span>')

    return count


def test_the_page_asks_as_much_of_five_deployments_as_of_one(queries_of, maintainer, organization, versions):
    first = deployed(maintainer, organization, versions[0])
    alone, places = queries_of(maintainer)
    assert places == 1
    others = [deployed(maintainer, organization, versions[1], name=f"other-{number}") for number in range(4)]
    rollouts.start_rollout(actor=maintainer, deployment=others[0], candidate=versions[2].pk)
    assert queries_of(maintainer) == (alone, 5) and first.name == "screening"


def test_what_is_shared_for_changing_is_found_in_as_many_queries(
    queries_of, viewer, maintainer, organization, versions
):
    made = [deployed(maintainer, organization, versions[1], name=f"other-{number}") for number in range(5)]
    assert queries_of(viewer)[1] == 0
    assign_perm("serving.change_deployment", viewer, made[0])
    one, places = queries_of(viewer)
    assert places == 1
    for deployment in made[1:4]:
        assign_perm("serving.change_deployment", viewer, deployment)
    assert queries_of(viewer) == (one, 4)
