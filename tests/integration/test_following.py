"""Variants that follow an alias: as it moves the deployment is changed, logged, held, undone; what stands against it is told."""

import pytest
from django.urls import reverse

from registry import services as models
from registry.serving import following, services
from registry.serving.experiments import services as experiments
from registry.serving.models import Deployment, DeploymentChange, Variant
from registry.serving.services import Wanted
from tests import factories
from tests.integration.experimenting import deployment, shares_of, versions  # noqa: F401

pytestmark = pytest.mark.django_db


@pytest.fixture
def url(deployment):  # noqa: F811
    return f"/api/v1/deployments/{deployment.pk}"


def name(actor, version, alias="production"):
    models.move_ref(actor=actor, model=version.model, kind="alias", name=alias, version=version)


@pytest.fixture
def following_v1(api, maintainer, url, deployment, versions):  # noqa: F811
    name(maintainer, versions[0])
    body = {"variants": [{"model": str(versions[0].model_id), "alias": "production", "weight": 3}]}
    answer = api(maintainer).patch(url, body, format="json")
    assert answer.status_code == 200, answer.content
    assert answer.json()["variants"][0]["alias"] == "production"
    return deployment


def test_the_deployment_changes_as_the_alias_moves_and_an_undo_stays(api, maintainer, url, following_v1, versions):  # noqa: F811
    before = Deployment.objects.get()
    assert following.tick() == 0, "it is there already"
    name(maintainer, versions[1])
    assert following.tick() == 1 and following.tick() == 0
    after = Deployment.objects.get()
    told = api(maintainer).get(url).json()["variants"]
    assert [(one["number"], one["weight"], one["alias"], one["waiting"]) for one in told] == [
        (2, 3.0, "production", "")
    ]
    assert after.revision == before.revision + 1 and after.allocation != before.allocation
    change = DeploymentChange.objects.first()
    assert (change.actor, change.reason) == (None, "alias production moved to v2 by maintainer")
    assert change.after["variants"][0]["alias"] == "production"
    undone = api(maintainer).post(f"{url}/undo", {}, format="json").json()
    assert [(one["number"], one["alias"]) for one in undone["variants"]] == [(1, "")]
    assert following.tick() == 0, "it stays, for somebody wanted it to"
    api(maintainer).post(f"{url}/undo", {}, format="json")
    assert Variant.objects.get(removed_at=None).alias == "production", "the undo of the undo follows again"
    services.set_archived(actor=maintainer, deployment=after, archived=True)
    name(maintainer, versions[2])
    assert following.tick() == 0
    services.set_archived(actor=maintainer, deployment=after, archived=False)
    assert following.tick() == 1 and shares_of(after) == {"3": 3.0}


def test_it_waits_for_an_experiment_and_says_so(maintainer, following_v1, versions):  # noqa: F811
    made = experiments.create_experiment(
        actor=maintainer, deployment=following_v1, challenger=versions[2].pk, metric="errors", minimum_effect=0.1,
        baseline=0.1,
    )  # fmt: skip
    begun = experiments.start_experiment(actor=maintainer, experiment=made)
    name(maintainer, versions[1])
    assert following.tick() == 0 and following.tick() == 0
    waiting = Variant.objects.get(pk=begun.variant_a_id)
    assert waiting.alias == "production" and "Experiment 1 is running here" in waiting.waiting
    assert shares_of(following_v1) == {"1": 0.5, "3": 0.5}
    experiments.stop_experiment(actor=maintainer, experiment=begun)
    assert following.tick() == 1 and shares_of(following_v1) == {"2": 1.0}
    assert Variant.objects.get(removed_at=None).waiting == ""


def test_what_cannot_answer_is_told_and_tried_again(maintainer, following_v1, versions, caplog):  # noqa: F811
    broken = factories.ModelVersionFactory(model=versions[0].model, number=9, tree={})
    name(maintainer, broken)
    assert following.tick() == 0 and following.tick() == 0
    assert "v9 has no model.json" in Variant.objects.get(removed_at=None).waiting
    assert caplog.text.count("does not follow") == 1, "once, not at every tick"
    name(maintainer, versions[0])
    assert following.tick() == 0 and Variant.objects.get(removed_at=None).waiting == "", "the alias came back"
    services.change_variants(
        actor=maintainer, deployment=following_v1,
        variants=[Wanted(versions[0].pk, 1.0, alias="production"), Wanted(versions[1].pk, 0.0)],
    )  # fmt: skip
    name(maintainer, versions[1])
    assert following.tick() == 0 and "Name each version once" in Variant.objects.get(alias="production").waiting
    models.delete_ref(actor=maintainer, model=versions[0].model, kind="alias", name="production")
    Variant.objects.update(waiting="")
    assert following.tick() == 0 and "The alias production is gone" in Variant.objects.get(alias="production").waiting


def test_a_variant_is_a_version_or_an_alias_that_one_sees(api, maintainer, stranger, url, deployment, versions):  # noqa: F811
    model = str(versions[0].model_id)
    other = factories.ModelVersionFactory()
    factories.RefFactory(version=other)
    for one, attr in (
        ({"model": model, "alias": "gone"}, "variants.0.alias"), ({"alias": "production"}, "variants.0.version"),
        ({"model": model}, "variants.0.version"), ({}, "variants.0.version"),
        ({"version": str(versions[0].pk), "model": model, "alias": "production"}, "variants.0.version"),
        ({"model": str(other.model_id), "alias": "production"}, "variants.0.alias"),
        ({"model": model, "alias": "a\0b"}, "variants.0.alias"),
    ):  # fmt: skip
        answer = api(maintainer).patch(url, {"variants": [one]}, format="json")
        assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == attr, (one, answer.content)
    name(maintainer, versions[1])
    made = api(maintainer).post(
        "/api/v1/deployments", {"name": "latest", "variants": [{"model": model, "alias": "production"}]}, format="json"
    )
    assert made.status_code == 201 and made.json()["variants"][0]["number"] == 2
    pinned = api(maintainer).patch(
        f"/api/v1/deployments/{made.json()['id']}", {"variants": [{"version": str(versions[1].pk)}]}, format="json"
    )
    assert pinned.json()["variants"][0]["alias"] == "", "a version that is named stays"


def test_the_page_offers_aliases_and_tells_what_waits(web, maintainer, viewer, following_v1, versions):  # noqa: F811
    page, post = reverse("deployment", args=[following_v1.pk]), reverse("deployment-variants", args=[following_v1.pk])
    name(maintainer, versions[2], "staging")
    shown = web(maintainer).get(page).content.decode()
    assert "follows production" in shown and "flowers, whatever staging is (now v3)" in shown
    model = versions[0].model_id
    rows = {"version": [f"{model}@production", f"{model}@staging"], "weight": ["1", "1"], "role": ["live", "shadow"]}
    web(maintainer).post(post, rows)
    assert set(Variant.objects.filter(removed_at=None).values_list("alias", "role")) == {
        ("production", "live"), ("staging", "shadow"),
    }  # fmt: skip
    bad = web(maintainer).post(post, rows | {"version": [f"{model}@production", f"{model}@nothing"]}, follow=True)
    assert "The model has no alias" in bad.content.decode()
    worse = web(maintainer).post(post, rows | {"version": ["x@production", "y@"]}, follow=True)
    assert worse.status_code == 200
    Variant.objects.filter(alias="production").update(waiting="v9 has no model.json")
    assert "Waits to follow production: v9 has no model.json" in web(viewer).get(page).content.decode()
    keep = {"version": [str(versions[0].pk)], "weight": ["1"], "role": ["live"]}
    web(maintainer).post(post, keep)
    assert Variant.objects.get(removed_at=None).alias == ""
