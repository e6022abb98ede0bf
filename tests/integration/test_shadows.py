"""Shadow variants: copies beside the traffic, kept beside the answers, and never in their way."""

import threading
from uuid import UUID

import pytest
from django.urls import reverse

from dlplatform.engine.errors import PackageError
from registry.serving import batching, prediction_log, services, shadowing
from registry.serving.models import PredictionRecord
from registry.serving.services import Wanted
from tests import factories
from tests.fixtures.inference import eventually
from tests.integration.answering import INPUTS, TREE, Held, code_of, constant, key_of, value_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def versions(organization, stubs):
    model = factories.RegisteredModelFactory(organization=organization, name="flowers")
    made = [factories.ModelVersionFactory(model=model, number=number, tree=TREE, signature=INPUTS) for number in (1, 2)]
    stubs.answers[made[0].pk] = constant(1.0)
    return made


@pytest.fixture
def deployment(maintainer, organization, versions):
    live, shadow = versions
    wanted = [Wanted(live.pk), Wanted(shadow.pk, role="shadow")]
    return services.create_deployment(actor=maintainer, organization=organization, name="screening", variants=wanted)


@pytest.fixture
def ask(inference, deployment, viewer, versions):
    eventually(lambda: all(inference.server.models.ready(one.pk) for one in versions))
    key = key_of(viewer)
    return lambda rows=None: inference.ask("screening", key, rows)


def kept():
    """Records of shadows that are on their way to the database."""
    return [one for one in list(prediction_log.buffer._waiting) if one.role == "shadow"]


def test_a_shadow_answers_beside_and_is_compared(api, web, viewer, deployment, versions, stubs, ask):
    stubs.answers[versions[1].pk] = constant(3.5)
    answer = ask([{"x": 1.0}, {"x": 2.0}])
    assert value_of(answer) == 1.0 and answer.json()["version"] == str(versions[0].pk)
    eventually(kept)
    prediction_log.buffer.flush()
    request = answer.json()["request_id"]
    found = api(viewer).get(f"/api/v1/deployments/{deployment.pk}/requests/{request}").json()
    (shadow,) = found["shadows"]
    assert shadow["version"] == str(versions[1].pk) and shadow["predictions"] == [{"value": 3.5}] * 2
    record = PredictionRecord.objects.get(role="shadow")
    assert (record.revision, record.propensity, record.instances, record.request_id) == (1, None, [], UUID(request))
    (compared,) = shadowing.comparisons_of(deployment)
    assert (compared.answered, compared.mean_difference, compared.agreement) == (1, 2.5, None)
    url = f"/api/v1/deployments/{deployment.pk}/shadows"
    assert api(viewer).get(url).json() == [{
        "variant": str(compared.variant.pk), "version": str(versions[1].pk), "answered": 1, "dropped": 0, "failed": 0,
        "classified": 0, "agreement": None, "measured": 2, "mean_difference": 2.5, "resting": "",
    }]  # fmt: skip
    assert api(factories.UserFactory()).get(url).status_code == 404
    shown = web(viewer).get(reverse("deployment", args=[deployment.pk])).content.decode()
    assert "Copies answered" in shown and "flowers v2" in shown and "2.5" in shown


def test_a_shadow_that_sleeps_or_crashes_costs_no_answer_and_fails_by_itself(
    deployment, versions, stubs, ask, inference, monkeypatch
):
    held = stubs.answers[versions[1].pk] = Held()
    monkeypatch.setattr(batching, "MOST_WAITING", 3)
    assert value_of(ask()) == 1.0
    assert held.entered.wait(20)
    for _ in range(5):  # while the shadow sleeps: three copies wait, and two are dropped
        assert value_of(ask()) == 1.0
    eventually(lambda: len(kept()) == 2)
    assert {one.error for one in kept()} == {"dropped"}

    def crash(rows):
        raise RuntimeError("crash")

    stubs.answers[versions[1].pk] = crash
    held.gate.set()
    eventually(lambda: len(kept()) == 6)
    assert value_of(ask()) == 1.0
    eventually(lambda: len(kept()) == 7)
    prediction_log.buffer.flush()
    (compared,) = shadowing.comparisons_of(deployment)
    counted = f'shadow_copies_total{{deployment="{deployment.pk}",error="dropped",variant="{compared.variant.pk}"}} 2.0'
    assert counted in inference.client.get("/metrics").text
    assert (compared.dropped, compared.answered + compared.failed) == (2, 5) and compared.failed >= 1


def test_copies_wait_while_answers_do(deployment, versions, stubs, ask, inference):
    """The thread for the shadows begins nothing while an answer waits for torch."""
    shadow = stubs.answers[versions[1].pk] = Held()
    shadow.gate.set()
    live = stubs.answers[versions[0].pk] = Held()
    busy = [threading.Thread(target=ask) for _ in range(2)]
    busy[0].start()
    assert live.entered.wait(20)
    busy[1].start()
    eventually(lambda: inference.server.models.live.waiting == 1)
    predictor = inference.server.models.ready(versions[1].pk)
    copy = inference.server.models.shadow.of(versions[1].pk, predictor).ask(versions[1].pk, [{"x": 7}])
    assert not shadow.entered.wait(0.2), "it gave way"
    live.gate.set()
    assert copy.result(20) == [{"value": 1.0}]
    for thread in busy:
        thread.join()


def test_a_shadow_that_cannot_be_loaded_holds_up_no_change(
    maintainer, organization, viewer, versions, stubs, inference
):
    def broken():
        raise PackageError("no such layer")

    stubs.loads[versions[1].pk] = broken
    live, shadow = versions
    services.create_deployment(
        actor=maintainer, organization=organization, name="fresh",
        variants=[Wanted(live.pk), Wanted(shadow.pk, role="shadow")],
    )  # fmt: skip
    key = key_of(viewer)
    assert value_of(inference.ask("fresh", key)) == 1.0
    eventually(lambda: shadow.pk in inference.server.watcher.unloadable)
    assert value_of(inference.ask("fresh", key)) == 1.0
    eventually(lambda: [one for one in kept() if one.error == "model_unusable"])
    assert inference.client.get("/readyz").status_code == 200
    assert code_of(inference.ask("other", key)) == "not_found"


@pytest.mark.parametrize(
    ("live", "shadow", "agreement", "difference"),
    [
        ({"label": "a"}, {"label": "a"}, 1.0, None),
        ({"labels": ["a", "b"]}, {"labels": ["b", "a"]}, 1.0, None),
        ({"label": "a"}, {"label": "b"}, 0.0, None),
        ({"value": 1.0}, {"value": -1.0}, None, 2.0),
        ({"values": {"a": 1.0, "b": 2.0}}, {"values": {"a": 1.0, "b": 4.0}}, None, 1.0),
        ({"value": None}, {"value": 1.0}, None, None),
        ({}, {"label": "a"}, None, None),
    ],
)
def test_rows_are_compared_by_label_or_distance(live, shadow, agreement, difference):
    compared = shadowing.Comparison(factories.VariantFactory.build(deployment=None, version=None))
    compared.compare(live, shadow)
    assert (compared.agreement, compared.mean_difference) == (agreement, difference)
