"""The prediction log and feedback: what is kept, what is lost, what it says, and for how long."""

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, OperationalError, transaction
from django.urls import reverse
from django.utils import timezone

from dlplatform.engine.errors import PackageError, PredictionInputError
from registry.serving import feedback, latency, prediction_log, services
from registry.serving.models import Feedback, PredictionRecord
from registry.serving.statistics.proportions import wilson
from tests import factories
from tests.fixtures.inference import eventually

pytestmark = pytest.mark.django_db
ROW = {"x": 1.5}


@pytest.fixture
def deployment(organization):
    signature = {"inputs": [{"name": "x", "type": "number"}, {"name": "picture", "type": "image"}]}
    made = factories.DeploymentFactory(organization=organization, name="screening")
    factories.VariantFactory(deployment=made, version__signature=signature, version__model__organization=organization)
    return made


@pytest.fixture
def answers(deployment, stubs, inference):
    """A model behind the deployment, and the inference server in front of it."""

    def answer(rows):
        if any(row["x"] == "bad" for row in rows):
            raise PredictionInputError(0, "x", "invalid", "no number")
        if any(row["x"] == "broken" for row in rows):
            raise PackageError("it broke")
        return [{"label": "a" if row["x"] > 1 else "b"} for row in rows]

    stubs.answers[deployment.variants.get().version_id] = answer


@pytest.fixture
def buffer(inference):
    return prediction_log.buffer


def ask(client, deployment, *rows, **more):
    url = f"/api/v1/deployments/{deployment.pk}/predict"
    return client.post(url, {"instances": list(rows) or [ROW], **more}, format="json")


def record_of(deployment, **more):
    usual = {"instances": [ROW], "milliseconds": 1.0, "at": timezone.now()}
    variant = deployment.variants.get()
    return PredictionRecord(request_id=uuid4(), deployment=deployment, variant=variant, **usual | more)


def entry_of(record):
    """As the inference server hands it to the buffer."""
    return prediction_log.Entry(*(getattr(record, name) for name in prediction_log.COLUMNS))


def test_what_answered_a_request_is_one_look_up(api, viewer, stranger, deployment, answers, buffer):
    client = api(viewer)
    answer = ask(client, deployment, ROW | {"picture": "AAAA"}, key="k7").json()
    url = f"/api/v1/deployments/{deployment.pk}/requests"
    assert client.get(f"{url}/{answer['request_id']}").status_code == 404, "not yet written"
    assert buffer.flush() == 1
    found = client.get(f"{url}/{answer['request_id']}").json()
    assert found["version"] == answer["version"] and found["variant"] == answer["variant"] and found["key"] == "k7"
    assert found["predictions"] == answer["predictions"] and found["error"] == "" and found["milliseconds"] > 0
    assert found["revision"] == deployment.revision and found["propensity"] == 1 and found["shadows"] == []
    assert found["instances"][0]["x"] == 1.5 and found["instances"][0]["picture"].startswith("object:")
    assert client.get(url).json()["results"] == [found]
    assert client.get(f"{url}/{uuid4()}").status_code == 404
    assert api(stranger).get(f"{url}/{answer['request_id']}").status_code == 404


def test_shadows_are_shown_beside_the_live_answer_and_judged_by_the_same_labels(api, viewer, deployment):
    live = record_of(deployment, predictions=[{"label": "a"}], revision=4, propensity=0.9)
    live.save()
    shadow = factories.VariantFactory(deployment=deployment, role="shadow", version__number=7)
    more = {"request_id": live.request_id, "deployment": deployment, "variant": shadow, "role": "shadow"}
    factories.PredictionRecordFactory(**more, predictions=[{"label": "b"}])
    with pytest.raises(IntegrityError), transaction.atomic():
        factories.PredictionRecordFactory(**more)
    url = f"/api/v1/deployments/{deployment.pk}"
    (found,) = api(viewer).get(f"{url}/requests").json()["results"]
    assert api(viewer).get(f"{url}/requests/{live.request_id}").json() == found
    assert found["variant"] == str(live.variant_id) and found["revision"] == 4 and found["propensity"] == 0.9
    assert [(one["variant"], one["predictions"]) for one in found["shadows"]] == [(str(shadow.pk), [{"label": "b"}])]
    feedback.give_feedback(actor=viewer, deployment=deployment, labels=[feedback.Label(live.request_id, "b")])
    assert {one.variant.pk: one.accuracy for one in feedback.quality_of(deployment)} == {
        live.variant_id: 0, shadow.pk: 1,
    }  # fmt: skip


def test_a_failure_is_kept_with_its_code(api, viewer, deployment, answers, buffer):
    assert ask(api(viewer), deployment, {"x": "broken"}).status_code == 422
    refused = ask(api(viewer), deployment, {"x": "bad"})
    assert refused.status_code == 400 and refused.json()["errors"][0]["attr"] == "instances.0.x", refused.content
    buffer.flush()
    kept = PredictionRecord.objects.order_by("id").values_list("error", "predictions")
    assert list(kept) == [("model_unusable", None), ("bad_request", None)]


def test_a_share_is_sampled(api, viewer, maintainer, deployment, answers, buffer, inference):
    url = f"/api/v1/deployments/{deployment.pk}"
    assert api(maintainer).patch(url, {"sample_rate": 0}, format="json").json()["sample_rate"] == 0
    inference.server.watcher.look()
    assert ask(api(viewer), deployment).status_code == 200
    assert buffer.flush() == 0
    assert api(maintainer).patch(url, {"sample_rate": 1.5}, format="json").status_code == 400
    assert api(viewer).patch(url, {"sample_rate": 1}, format="json").status_code == 403


def test_records_wait_for_a_database_that_is_away_and_are_lost_beyond_the_bound(
    deployment, buffer, monkeypatch, caplog
):
    real = prediction_log._write

    def away(batch):
        raise OperationalError("away")

    monkeypatch.setattr(prediction_log, "_write", away)
    monkeypatch.setattr(prediction_log, "MOST", 3)
    records = [record_of(deployment) for _ in range(5)]
    for record in records:
        buffer.add(entry_of(record))
    assert buffer.flush() == 0 and "2 records of predictions were lost" in caplog.text
    monkeypatch.setattr(prediction_log, "_write", real)
    assert buffer.flush() == 3
    kept = PredictionRecord.objects.order_by("id").values_list("request_id", flat=True)
    assert list(kept) == [record.request_id for record in records[:3]], "in order"


@pytest.mark.django_db(transaction=True)
def test_a_record_that_cannot_be_written_costs_no_other(deployment, buffer, organization):
    gone = factories.DeploymentFactory(organization=organization)
    factories.VariantFactory(deployment=gone, version__model__organization=organization)
    orphan = record_of(gone)
    odd = record_of(deployment, predictions=[{"text": "a\0b"}])
    good = record_of(deployment)
    gone.delete()
    orphan.deployment_id, orphan.variant_id = uuid4(), uuid4()
    for record in (orphan, odd, good):
        buffer.add(entry_of(record))
    buffer.flush()
    assert list(PredictionRecord.objects.values_list("request_id", flat=True)) == [good.request_id]


def test_a_record_is_kept_as_it_is_whatever_it_holds(deployment, buffer):
    """What has a meaning in COPY's format has none in a record."""
    odd = 'a\\b\t"c"\r\n\\N ü'
    record = record_of(deployment, key=odd, predictions=[{"text": odd, "x": None}], propensity=0.25, revision=3)
    record.instances = [{odd: odd, "many": 10**30, "y": -0.5, "z": True}]
    buffer.add(entry_of(record))
    assert buffer.flush() == 1
    kept = PredictionRecord.objects.get()
    for name in ("request_id", "key", "instances", "predictions", "propensity", "revision", "role", "at", "error"):
        assert getattr(kept, name) == getattr(record, name), name


def test_feedback_comes_late_again_early_and_in_bulk(api, viewer, stranger, deployment, answers, buffer):
    client = api(viewer)
    url = f"/api/v1/deployments/{deployment.pk}/feedback"
    answer = ask(client, deployment, ROW, {"x": 0.5}).json()
    one = {"request_id": answer["request_id"], "label": "b"}
    first = client.post(url, one, format="json")
    assert first.status_code == 202 and first.json() == {"accepted": 1}, first.content
    buffer.flush()
    again = [one | {"label": "b"}, one | {"label": "a"}, one | {"index": 1, "label": "a"}]
    assert client.post(url, again, format="json").json() == {"accepted": 2}
    found = client.get(f"/api/v1/deployments/{deployment.pk}/requests/{answer['request_id']}").json()
    assert found["labels"] == {"0": "a", "1": "a"}
    (quality,) = feedback.quality_of(deployment)
    assert quality.labelled == 2 and quality.accuracy == 0.5
    assert api(stranger).post(url, one, format="json").status_code == 404


@pytest.mark.parametrize(
    ("body", "attr"),
    [
        ({}, "request_id"),
        ([], None),
        ({"request_id": "x", "label": 1}, "request_id"),
        ({"request_id": str(UUID(int=1)), "label": {"a": 1}}, "label"),
        ({"request_id": str(UUID(int=1)), "label": "x" * 1001}, "label"),
        ({"request_id": str(UUID(int=1)), "label": "a\0"}, "label"),
        ({"request_id": str(UUID(int=1)), "label": "a", "index": -1}, "index"),
        ([{"request_id": str(UUID(int=1)), "label": "a"}, {}], "1.request_id"),
        ([{"request_id": str(UUID(int=1)), "label": "a"}, 3], "1"),
    ],
)
def test_bad_feedback_is_refused_by_its_place(api, viewer, deployment, body, attr):
    answer = api(viewer).post(f"/api/v1/deployments/{deployment.pk}/feedback", body, format="json")
    assert answer.status_code == 400, answer.content
    if attr:
        assert answer.json()["errors"][0]["attr"].startswith(attr), answer.json()
    assert not Feedback.objects.exists()


def test_feedback_for_rows_that_a_known_request_did_not_have_is_refused_by_its_place(api, viewer, deployment):
    record = record_of(deployment, instances=[{"x": 1}, {"x": 2}])
    record.save()
    alone = record_of(deployment, instances=[{"x": 1}], predictions=None, error="invalid")
    alone.save()
    client, url = api(viewer), f"/api/v1/deployments/{deployment.pk}/feedback"
    one = {"request_id": str(record.request_id), "label": "a"}

    def refused(body):
        answer = client.post(url, body, format="json")
        assert answer.status_code == 400 and not Feedback.objects.exists(), answer.content
        error = answer.json()["errors"][0]
        return error["attr"], error["detail"]

    attr, detail = refused(one | {"index": 2})
    assert attr == "index" and detail.endswith("had 2 rows: give an index from 0 to 1.")
    attr, detail = refused([one, one | {"index": 1}, one | {"index": 999}])
    assert attr == "2.index" and str(record.request_id) in detail
    attr, detail = refused([{"request_id": str(alone.request_id), "label": "a", "index": 1}])
    assert attr == "0.index" and "had one row: give an index from 0 to 0." in detail
    many = client.post(url, [one | {"index": 2}, one, *[one | {"index": 3}] * 200], format="json").json()["errors"]
    assert [each["attr"] for each in many[:2]] == ["0.index", "2.index"] and len(many) == 100, (
        "all at once, within reason"
    )
    unknown = {"request_id": str(UUID(int=7)), "label": "a", "index": 999}
    assert client.post(url, [one, one | {"index": 1}, unknown], format="json").json() == {"accepted": 3}


def test_what_another_deployment_was_asked_says_nothing_of_the_rows(api, viewer, organization, deployment):
    other = factories.DeploymentFactory(organization=organization, name="other")
    variant = factories.VariantFactory(deployment=other, version=deployment.variants.get().version)
    record = factories.PredictionRecordFactory(deployment=other, variant=variant, instances=[{"x": 1}])
    label = {"request_id": str(record.request_id), "label": "a", "index": 5}
    url = f"/api/v1/deployments/{deployment.pk}/feedback"
    assert api(viewer).post(url, label, format="json").status_code == 202


def test_half_a_character_is_no_label(api, viewer, deployment):
    body = json.dumps({"request_id": str(UUID(int=1)), "label": "a\ud800"})
    answer = api(viewer).post(f"/api/v1/deployments/{deployment.pk}/feedback", body, content_type="application/json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "label", answer.content
    assert not Feedback.objects.exists()


def test_numbers_are_judged_by_their_distance_and_intervals_are_wilsons(deployment):
    record = record_of(deployment, instances=[ROW, ROW], predictions=[{"value": 2.0}, {"value": 5.0}])
    record.save()
    labels = [feedback.Label(record.request_id, 3.0), feedback.Label(record.request_id, 5, index=1)]
    person = factories.UserFactory()
    factories.MembershipFactory(user=person, organization=deployment.organization, role="viewer")
    feedback.give_feedback(actor=person, deployment=deployment, labels=labels)
    (quality,) = feedback.quality_of(deployment)
    assert quality.mean_absolute_error == 0.5 and quality.accuracy is None and quality.interval is None
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1


def test_what_is_older_than_the_policy_goes(deployment, settings):
    settings.PREDICTION_LOG_DAYS = 30
    old, new = record_of(deployment), record_of(deployment)
    old.at = timezone.now() - timedelta(days=31)
    for record in (old, new):
        record.save()
        Feedback.objects.create(deployment=deployment, request_id=record.request_id, label="a", at=record.at)
    assert prediction_log.forget_old() == 2
    assert PredictionRecord.objects.get().request_id == new.request_id == Feedback.objects.get().request_id


def test_records_of_a_deployment_that_was_deleted_meanwhile_go(deployment, buffer, organization):
    gone = factories.DeploymentFactory(organization=organization)
    factories.VariantFactory(deployment=gone, version__model__organization=organization)
    late, kept = record_of(gone), record_of(deployment)
    gone.delete()
    for _ in range(2):
        late.request_id = uuid4()
        buffer.add(entry_of(late))
    buffer.add(entry_of(kept))
    assert buffer.flush() == 3
    assert prediction_log.forget_old() == 2 and prediction_log.forget_old() == 0
    assert PredictionRecord.objects.get().request_id == kept.request_id


def test_the_page_shows_the_last_requests_and_the_accuracy(api, web, viewer, deployment, answers, buffer):
    answer = ask(api(viewer), deployment, key="<b>k</b>").json()
    buffer.flush()
    label = {"request_id": answer["request_id"], "label": "a"}
    api(viewer).post(f"/api/v1/deployments/{deployment.pk}/feedback", label, format="json")
    address = reverse("deployment", args=[deployment.pk])
    shown = web(viewer).get(address).content.decode()
    assert answer["request_id"] in shown and "100" in shown and "<b>k</b>" not in shown
    part = web(viewer).get(address + "?part=requests", headers={"HX-Request": "true"}).content.decode()
    assert part.lstrip().startswith('<div id="requests"')


def test_the_page_draws_the_percentiles_of_each_variant_over_time(web, viewer, deployment):
    assert latency.latency_charts(deployment) == []
    variant = deployment.variants.get()
    now = timezone.now()
    for minute in range(0, 181, 20):
        for milliseconds in (1.0, 2.0, 9.0):
            at = now - timedelta(minutes=minute)
            factories.PredictionRecordFactory(
                deployment=deployment, variant=variant, at=at, milliseconds=milliseconds + (minute == 0)
            )
    factories.PredictionRecordFactory(deployment=deployment, variant=variant, milliseconds=999.0, error="invalid")
    (chart,) = latency.latency_charts(deployment)
    median, highest = chart["series"]
    assert median["name"].endswith("median") and highest["name"].endswith("99 %")
    assert chart["x"].startswith("minutes") and len(median["points"]) == 10
    assert median["points"][0][0] == pytest.approx(-178.5) and median["points"][0][1] == 2.0
    assert median["points"][-1] == [0.0, 3.0] and highest["points"][-1][1] == pytest.approx(9.86)
    shown = web(viewer).get(reverse("deployment", args=[deployment.pk])).content.decode()
    assert 'data-charts="latency-charts"' in shown and "js/figures.js" in shown


def test_details_are_changed_by_maintainers_alone(trainer, maintainer, deployment):
    services.set_details(actor=maintainer, deployment=deployment, description="new", sample_rate=0.5)
    deployment.refresh_from_db()
    assert deployment.sample_rate == 0.5 and deployment.description == "new"


@pytest.mark.django_db(transaction=True)
def test_a_thread_writes_within_seconds(deployment):
    buffer = prediction_log.RecordBuffer()
    buffer.add(entry_of(record_of(deployment)))
    eventually(PredictionRecord.objects.exists)
    assert PredictionRecord.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_server_that_is_stopped_in_good_order_writes_what_waits(deployment):
    """An inference server with a record that its thread would write only in an hour, stopped by SIGTERM."""
    from django.db import connection

    variant = deployment.variants.get()
    program = f"""
import os, django
django.setup()
import uvicorn
from django.conf import settings
settings.DATABASES["default"]["NAME"] = {connection.settings_dict["NAME"]!r}
from django.utils import timezone
from registry.serving.server.application import InferenceServer
from registry.serving import prediction_log
prediction_log.SECONDS = 3600
prediction_log.buffer.add(prediction_log.Entry("{uuid4()}", "{deployment.pk}", "{variant.pk}", "live", 1, None, "", [], None, 1.0,
    "", timezone.now()))
print("ready", flush=True)
uvicorn.run(InferenceServer(), port=0, lifespan="on", log_level="info")
"""
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "dlplatform.settings"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "Uvicorn running" in line:
            break
    assert not PredictionRecord.objects.exists()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert PredictionRecord.objects.count() == 1
