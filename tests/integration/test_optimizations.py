"""Optimizations of a real version: made, measured, committed, deployed; cancelled, resumed; what is refused."""

import json

import pytest
from django.urls import reverse

from dlplatform.api import Conflict
from dlplatform.cron import reconcile_optimizations
from dlplatform.engine.errors import PackageError
from dlplatform.engine.optimizing import measuring
from registry import graphs, optimizations, services
from registry.jobs import optimize as work
from registry.models import ModelVersion, Optimization, OptimizedVariant, Ref
from registry.serving import cache
from registry.serving import services as deployments
from registry.serving.services import Wanted
from registry.views.optimization import pareto
from tests import factories
from tests.integration.conftest import QUICK
from training.jobs import train

pytestmark = pytest.mark.django_db(transaction=True)
SLOW = {"code": "slower", "sentence": "Slower: it takes 2.00 times as long for one row."}


@pytest.fixture
def version(queue_run, monkeypatch):
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    train(str(queue_run(QUICK).pk))
    return ModelVersion.objects.select_related("model", "dataset_version__dataset").get()


def done(asked):
    work(str(asked.pk))
    asked.refresh_from_db()
    return asked


def variant_of(version, actor, problems=()):
    """A version that an optimization is said to have made, without the work."""
    asked = factories.OptimizationFactory(version=version, dataset_version=version.dataset_version, created_by=actor)
    child = services.commit_version(
        actor=actor, model=version.model, tree=version.tree, task=version.task, signature=version.signature, metrics={},
        lineage={}, message="onnx of v1", dataset_version=version.dataset_version, parents=[version], branch="optimised-v1",
    )  # fmt: skip
    OptimizedVariant.objects.create(
        optimization=asked,
        position=0,
        plan={"passes": ["onnx"]},
        output_version=child,
        report={"problems": list(problems)},
    )
    return child


def test_variants_become_versions_with_reports_and_answer(version, trainer, viewer, api, client):
    address = f"/api/v1/model-versions/{version.pk}/optimizations"
    wanted = {"variants": [{"passes": ["onnx"]}, {"passes": ["structured", "int8"], "keep": 0.5, "epochs": 2}]}
    answer = api(trainer).post(address, wanted, format="json")
    assert answer.status_code == 202, answer.content
    found = done(Optimization.objects.get())
    assert found.state == "succeeded", found.error
    first, second = found.variants.all()
    assert first.error is None and second.error is None
    child = first.output_version
    assert list(child.parents.all()) == [version] and child.message == "onnx of v1"
    assert Ref.objects.get(model=version.model, name="optimised-v1").version == second.output_version
    assert Ref.objects.get(model=version.model, name="main").version == version  # it stays where it was
    assert first.graph == child.tree["model.onnx"]["sha256"]
    assert first.report["agreement"] == 1.0 and first.report["difference"] < 1e-4
    told = api(viewer).get(f"/api/v1/optimizations/{found.pk}").json()
    assert [one["name"] for one in told["variants"]] == ["onnx", "structured 50% + int8"]
    assert api(viewer).get(address).json()["results"][0]["id"] == str(found.pk)
    row = {"length": 5.1, "width": 3.0, "colour": "red"}
    before, after = (cache.loaded(one).predict([row])[0] for one in (version, child))
    assert before["label"] == after["label"]
    client.force_login(viewer)
    page = client.get(reverse("optimization", args=[found.pk])).content.decode()
    assert "onnx, v2" in page and "Pareto front" in page and "64 rows at once" in page
    assert "how it was measured" in client.get(reverse("model-version", args=[child.pk])).content.decode()


def test_a_worker_that_takes_it_up_again_makes_only_what_is_missing(version, trainer):
    asked = optimizations.request_optimization(
        actor=trainer, version=version, plans=[{"passes": ["int8"]}, {"passes": ["bfloat16"]}]
    )
    made = variant_of(version, trainer)
    OptimizedVariant.objects.filter(output_version=made).delete()
    asked.variants.filter(position=0).update(output_version=made, report={"problems": []})
    Optimization.objects.filter(pk=asked.pk).update(
        state="running", lease_expires_at="2026-01-01T00:00Z", lease_epoch=3
    )
    assert reconcile_optimizations()["taken_back"] == 1
    assert done(asked).state == "succeeded"
    first, second = asked.variants.all()
    assert first.output_version == made and second.output_version.number == made.number + 1
    assert second.output_version.size < version.size


def test_what_cannot_be_made_says_why_and_the_rest_is_made(version, trainer):
    plans = [{"passes": ["structured"], "keep": 0.05, "epochs": 0}, {"passes": ["int8"]}]
    found = done(optimizations.request_optimization(actor=trainer, version=version, plans=plans))
    first, second = found.variants.all()
    assert found.state == "succeeded" and second.output_version is not None
    assert first.output_version is None or first.report["problems"]


def test_it_is_cancelled_at_once_while_it_waits(version, trainer, viewer, api):
    asked = optimizations.request_optimization(actor=trainer, version=version, plans=[{"passes": ["onnx"]}])
    address = f"/api/v1/optimizations/{asked.pk}/cancel"
    assert api(viewer).post(address).status_code == 403
    assert api(trainer).post(address).json()["state"] == "cancelled"
    work(str(asked.pk))
    assert not asked.variants.exclude(output_version=None).exists()
    with pytest.raises(Conflict):
        optimizations.cancel_optimization(actor=trainer, optimization=asked)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"variants": []}, "variants"), ({"variants": [{"passes": ["quicker"]}]}, "variants"),
        ({"variants": [{"passes": ["onnx"]}] * 2}, "variants.1"),
        ({"variants": [{"passes": ["onnx"], "keep": 0.5}]}, "variants.0.keep"),
        ({"variants": [{"passes": ["onnx", "int8"]}]}, "variants.0.passes"),
        ({"variants": [{"passes": ["onnx"]}], "tolerance": -1}, "tolerance"),
        ({"variants": [{"passes": ["onnx"]}], "dataset_version": "9a6ac3a0-0000-4000-8000-000000000000"}, "dataset_version"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_field(organization, trainer, api, wanted, field):
    data = factories.DatasetVersionFactory(dataset__organization=organization, state="ready")
    version = factories.ModelVersionFactory(
        model__organization=organization, dataset_version=data, task="classification",
        tree={"model.json": {"sha256": "a" * 64, "size": 1}}, signature={},
    )  # fmt: skip
    answer = api(trainer).post(f"/api/v1/model-versions/{version.pk}/optimizations", wanted, format="json")
    assert answer.status_code == 400
    assert any(str(each["attr"]).startswith(field) for each in answer.json()["errors"]), answer.content


def test_of_a_language_model_it_says_that_it_is_not_optimised_whatever_the_data(organization, trainer, api):
    data = factories.DatasetVersionFactory(dataset__organization=organization, state="ready")
    version = factories.ModelVersionFactory(
        model__organization=organization, dataset_version=data, task="language-model",
        tree={"model.json": {"sha256": "a" * 64, "size": 1}}, signature={"inputs": [{"name": "prompt", "type": "text"}]},
    )  # fmt: skip
    wanted = {"variants": [{"passes": ["onnx"]}]}
    answer = api(trainer).post(f"/api/v1/model-versions/{version.pk}/optimizations", wanted, format="json")
    assert answer.status_code == 400 and "Language models are not optimised" in answer.json()["errors"][0]["detail"]


def test_strangers_see_nothing_and_viewers_start_nothing(organization, viewer, stranger, api, client):
    asked = factories.OptimizationFactory(version__model__organization=organization)
    for person, status in ((viewer, 200), (stranger, 404)):
        assert api(person).get(f"/api/v1/optimizations/{asked.pk}").status_code == status
    client.force_login(viewer)
    assert client.get(reverse("version-optimize", args=[asked.version_id])).status_code == 403
    client.force_login(stranger)
    assert client.get(reverse("optimization", args=[asked.pk])).status_code == 404


def test_the_form_asks_for_several_variants_at_once(version, trainer, client):
    client.force_login(trainer)
    address = reverse("version-optimize", args=[version.pk])
    assert "Fewer units and channels" in client.get(address).content.decode()
    refused = client.post(address, {"variants": [], "tolerance": 0.5})
    assert "Choose at least one variant." in refused.content.decode()
    given = {"variants": ["onnx", "structured+onnx-int8-dynamic"], "keep": 0.25, "epochs": 3, "tolerance": 1}
    answer = client.post(address, given)
    asked = Optimization.objects.get()
    assert answer.url == reverse("optimization", args=[asked.pk]) and asked.tolerance == 1
    plans = [one.plan for one in asked.variants.all()]
    assert plans == [{"passes": ["onnx"]}, {"passes": ["structured", "onnx-int8-dynamic"], "keep": 0.25, "epochs": 3}]
    assert "waiting for a worker" in client.get(answer.url).content.decode()


def test_what_is_ticked_at_first_suits_what_the_version_looks_at(version, trainer, client):
    client.force_login(trainer)
    address = reverse("version-optimize", args=[version.pk])
    assert ticked(client.get(address)) == {
        "onnx",
        "onnx-int8-dynamic",
        "onnx-int8-static",
        "structured+onnx-int8-dynamic",
    }
    signature = version.signature | {"inputs": [{"name": "photo", "type": "image"}]}
    ModelVersion.objects.filter(pk=version.pk).update(signature=signature)
    assert ticked(client.get(address)) == {"onnx", "onnx-int8-static", "distil+onnx"}


def ticked(page):
    return {
        choice["value"] for group in page.context["form"].groups() for choice in group["choices"] if choice["checked"]
    }


def test_what_is_slower_is_deployed_only_by_who_says_so(version, trainer, maintainer, api, client):
    child = variant_of(version, trainer, [SLOW])
    body = {"name": "flowers", "variants": [{"version": str(child.pk)}]}
    refused = api(maintainer).post("/api/v1/deployments", body, format="json")
    assert refused.status_code == 400 and refused.json()["errors"][0]["code"] == "has_problems"
    assert "2.00 times as long" in refused.json()["errors"][0]["detail"]
    silent = api(maintainer).post("/api/v1/deployments", body | {"despite_problems": True}, format="json")
    assert silent.json()["errors"][0]["attr"] == "reason"
    said = body | {"despite_problems": True, "reason": "it needs a quarter of the memory"}
    made = api(maintainer).post("/api/v1/deployments", said, format="json")
    assert made.status_code == 201, made.content
    again = {"variants": [{"version": str(child.pk), "weight": 3}]}  # what was let in stays in
    assert api(maintainer).patch(f"/api/v1/deployments/{made.json()['id']}", again, format="json").status_code == 200
    client.force_login(maintainer)
    other = deployments.create_deployment(
        actor=maintainer, organization=version.model.organization, name="other", variants=[Wanted(version.pk)]
    )
    rows = {"version": [version.pk, child.pk], "weight": [1, 1], "role": ["live", "live"]}
    address = reverse("deployment-variants", args=[other.pk])
    assert "Say that you want it" in client.post(address, rows, follow=True).content.decode()
    client.post(address, rows | {"despite_problems": "on", "reason": "a trial"})
    assert other.variants.count() == 2
    assert "Slower" in client.get(reverse("model-version", args=[child.pk])).content.decode()


def test_only_graphs_that_were_made_here_are_run(version, trainer):
    tree = version.tree | {"model.onnx": {"sha256": "b" * 64, "size": 10}}
    foreign = services.commit_version(
        actor=trainer, model=version.model, tree=tree, task=version.task, signature=version.signature, metrics={},
        lineage={}, message="Uploaded", branch="main",
    )  # fmt: skip
    with pytest.raises(PackageError, match="not made by an optimization here"):
        cache.loaded(foreign)
    graphs.require_ours(version)
    with pytest.raises(Exception, match="graph already"):
        optimizations.request_optimization(
            actor=trainer, version=foreign, plans=[{"passes": ["onnx"]}], dataset_version=version.dataset_version
        )


def test_the_front_holds_what_no_other_beats():
    assert pareto([(1.0, 0.9), (0.5, 0.9), (0.4, 0.8), (0.6, 0.85), (0.4, 0.8)]) == {1, 2, 4}
    assert json.dumps(sorted(pareto([(1.0, 0.9)]))) == "[0]"
