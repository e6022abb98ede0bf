"""Comparisons of two real versions: the job, its answers, its refusals, its page."""

import pytest

from dlplatform.cron import reconcile_comparisons
from registry import comparisons
from registry.jobs import compare
from registry.models import Comparison, ModelVersion
from tests import factories
from tests.integration.conftest import QUICK
from tests.integration.test_registry import commit
from training.jobs import train

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pair(queue_run):
    """Two versions of one model, trained on the flowers with different seeds."""
    for seed in (1, 2):
        train(str(queue_run(QUICK | {"seed": seed}).pk))
    return list(ModelVersion.objects.select_related("model", "dataset_version__dataset").order_by("number"))


def done(comparison):
    compare(str(comparison.pk))
    comparison.refresh_from_db()
    return comparison


def test_weights_and_behaviour_of_two_trained_versions(pair, trainer, viewer, web, api, flowers):
    address = f"/api/v1/models/{pair[0].model_id}/comparisons"
    wanted = {"base": str(pair[0].pk), "head": str(pair[1].pk), "dataset_version": str(flowers.pk)}
    assert api(viewer).post(address, wanted, format="json").status_code == 403
    answer = api(trainer).post(address, wanted, format="json")
    assert answer.status_code == 202 and answer.json()["state"] == "queued", answer.content
    page = f"/models/{pair[0].model_id}/diff?base=1&head=2"
    assert "waiting for a worker" in web(viewer).get(page).content.decode()
    found = done(Comparison.objects.get())
    assert found.state == "succeeded", found.error
    assert {row["status"] for row in found.result["weights"]} <= {"same", "changed"}
    assert any(row["relative_norm"] for row in found.result["weights"])
    behaviour = found.result["behaviour"]
    assert behaviour["rows"] == behaviour["labelled"] == 240 and 0 <= behaviour["agreement"] <= 1
    flips = behaviour["flipped"]["to_right"]["count"] - behaviour["flipped"]["to_wrong"]["count"]
    assert round((behaviour["loss"]["base"] - behaviour["loss"]["head"]) * 240) == flips
    again = api(trainer).post(address, wanted, format="json").json()
    assert again["id"] == str(found.pk) and again["result"]["behaviour"] == behaviour
    text = web(viewer).get(page).content.decode()
    assert "Change by tensor" in text and text.count('class="heat-') == len(found.result["weights"])
    assert "Flipped to right" in text and 'action="/models' not in text.split("Weights and behaviour")[1]


def test_a_version_beside_itself_is_the_same_everywhere(pair, trainer, flowers):
    asked = comparisons.request_comparison(actor=trainer, base=pair[0], head=pair[0], dataset_version=flowers)
    found = done(asked)
    assert {row["status"] for row in found.result["weights"]} == {"same"}
    assert found.result["behaviour"]["agreement"] == 1.0
    assert found.result["behaviour"]["slices"] == {"better": [], "worse": []}


def test_regression_is_compared_by_its_error(queue_run, trainer, flowers):
    for seed in (1, 2):
        train(str(queue_run(QUICK | {"seed": seed}, task="regression", target="length").pk))
    base, head = ModelVersion.objects.select_related("model").order_by("number")
    found = done(comparisons.request_comparison(actor=trainer, base=base, head=head, dataset_version=flowers))
    assert found.state == "succeeded", found.error
    assert set(found.result["behaviour"]["difference"]) == {"mean", "mean_absolute", "largest"}


def test_what_cannot_be_compared_says_why(pair, trainer, organization, api, queue_run, stranger):
    train(str(queue_run(QUICK, task="regression", target="length", register_as=pair[0].model.name).pk))
    number = ModelVersion.objects.select_related("model").latest("number")
    flowers = pair[0].dataset_version
    found = done(comparisons.request_comparison(actor=trainer, base=pair[0], head=number, dataset_version=flowers))
    assert found.state == "failed" and "classes, the other numbers" in found.error["sentence"]
    address = f"/api/v1/models/{pair[0].model_id}/comparisons"
    wanted = {"base": str(pair[0].pk), "head": str(pair[1].pk)}
    other = factories.DatasetVersionFactory(dataset__organization=organization, number=1)
    elsewhere = factories.DatasetVersionFactory(number=1)
    for version, code in ((other.pk, "missing_columns"), (elsewhere.pk, "does_not_exist")):
        answer = api(trainer).post(address, {**wanted, "dataset_version": str(version)}, format="json")
        assert answer.status_code == 400 and answer.json()["errors"][0]["code"] == code, answer.content
    broken = commit(trainer, pair[0].model, tree={"model.safetensors": {"sha256": "0" * 64, "size": 9}})
    gone = done(comparisons.request_comparison(actor=trainer, base=pair[0], head=broken))
    assert gone.state == "failed" and gone.error["code"] == "not_comparable"
    assert api(stranger).get(f"/api/v1/comparisons/{gone.pk}").status_code == 404


def test_a_comparison_can_be_cancelled_and_a_lost_one_is_taken_back(pair, trainer, web, meanwhile):
    asked = comparisons.request_comparison(actor=trainer, base=pair[0], head=pair[1])
    web(trainer).post(f"/comparisons/{asked.pk}/cancel")
    asked.refresh_from_db()
    assert asked.state == "cancelled"
    again = comparisons.request_comparison(actor=trainer, base=pair[0], head=pair[1])
    assert again.pk != asked.pk
    held = Comparison.claim(again.pk)
    Comparison.objects.filter(pk=held.pk).update(lease_expires_at="2020-01-01T00:00Z")
    assert reconcile_comparisons()["taken_back"] == 1
    assert done(again).state == "succeeded"
    held = comparisons.request_comparison(actor=trainer, base=pair[1], head=pair[0])
    Comparison.objects.filter(pk=held.pk).update(
        state="running", failures=9, lease_epoch=1, lease_expires_at="2020-01-01T00:00Z"
    )
    assert reconcile_comparisons()["ended"] == 1
    held.refresh_from_db()
    assert held.state == "failed" and held.error["code"] == "worker_lost"


def test_the_button_on_the_page_asks_for_a_comparison(pair, trainer, viewer, web, flowers):
    address = f"/models/{pair[0].model_id}/compare"
    wanted = {"base": str(pair[0].pk), "head": str(pair[1].pk), "dataset_version": str(flowers.pk)}
    assert web(viewer).post(address, wanted).status_code == 403
    answer = web(trainer).post(address, wanted)
    assert answer.status_code == 302 and answer.url.endswith("?base=1&head=2")
    assert Comparison.objects.get().dataset_version == flowers
    assert "base:" in web(trainer).post(address, {"base": "x"}, follow=True).content.decode()


def test_the_data_to_compare_on_is_what_the_person_may_see(organization, trainer, stranger):
    model = factories.RegisteredModelFactory(organization=organization)
    ready = factories.DatasetVersionFactory(dataset__organization=organization)
    factories.DatasetVersionFactory(dataset__organization=organization, state="queued")
    assert list(comparisons.ready_data(trainer, model)) == [ready]
    assert list(comparisons.ready_data(stranger, model)) == []
