"""Images of the prediction log: stored once, shown, limited, forgotten with their records; a record is never lost for one."""

import base64
from datetime import timedelta
from hashlib import sha256
from uuid import uuid4

import pytest
from django.db import OperationalError
from django.urls import reverse
from django.utils import timezone

from dlplatform import cron
from dlplatform.objects.models import StoredObject
from dlplatform.objects.store import ObjectStore
from registry.serving import logged_images, prediction_log
from registry.serving.logged_images import Sent
from registry.serving.models import LoggedImage, PredictionRecord
from registry.serving.server.deployments import read
from registry.serving.server.records import record_of
from tests import factories

pytestmark = pytest.mark.django_db
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
OTHER = b"\xff\xd8\xff" + b"j" * 300


@pytest.fixture
def deployment(organization):
    signature = {"inputs": [{"name": "x", "type": "number"}, {"name": "picture", "type": "image"}]}
    made = factories.DeploymentFactory(organization=organization, name="screening")
    variant = factories.VariantFactory(
        deployment=made, version__signature=signature, version__model__organization=organization
    )
    made.allocation = [[10_000, str(variant.pk)]]
    made.save()
    return made


@pytest.fixture
def buffer():
    return prediction_log.RecordBuffer(thread=False)


def text_of(content):
    return base64.b64encode(content).decode()


def entry(deployment, *pictures, error="", at=None):
    """As the inference server makes it of an answer."""
    (served,) = read([deployment.pk])
    rows = [{"x": 1.5, "picture": picture} for picture in pictures]
    made = record_of(served, served.telling, uuid4(), rows, [{"label": "a"}] * len(rows), 1.0, error)
    if at is not None:
        made.at = at
    return made


def digest(content):
    return sha256(content).hexdigest()


def test_images_are_stored_once_and_shown_to_who_sees_the_request(
    api, web, viewer, stranger, deployment, buffer, organization
):
    buffer.add(entry(deployment, text_of(PNG), f"data:image/jpeg;base64,{text_of(OTHER)}", None, ""))
    buffer.add(entry(deployment, text_of(PNG), "no base64!"))
    assert buffer.flush() == 2 and buffer._of_images == 0
    first, second = PredictionRecord.objects.order_by("id")
    assert [row["picture"] for row in first.instances] == [
        f"object:{digest(PNG)}", f"object:{digest(OTHER)}", None, f"sha256:{digest(b'')}",
    ]  # fmt: skip
    assert second.instances[0]["picture"] == f"object:{digest(PNG)}"
    assert second.instances[1]["picture"] == f"sha256:{digest(b'no base64!')}"
    assert LoggedImage.objects.count() == 2 and StoredObject.objects.filter(storage="datasets").count() == 2
    url = f"/api/v1/deployments/{deployment.pk}/requests/{first.request_id}"
    got = api(viewer).get(f"{url}/images/{digest(PNG)}")
    assert got.content == PNG and got["Content-Type"] == "image/png" and got["ETag"] and "sandbox" in str(got.headers)
    assert api(viewer).get(f"{url}/images/{digest(OTHER)}")["Content-Type"] == "image/jpeg"
    assert api(viewer).get(f"{url}/images/{'0' * 64}").status_code == 404
    assert api(stranger).get(f"{url}/images/{digest(PNG)}").status_code == 404
    page = reverse("deployment-request", args=[deployment.pk, first.request_id])
    shown = web(viewer).get(page).content.decode()
    assert f"images/{digest(PNG)}" in shown and "Row 4" in shown and ">a<" in shown.replace(": a", ">a")
    picture = reverse("deployment-request-image", args=[deployment.pk, first.request_id, digest(PNG)])
    assert web(viewer).get(picture).content == PNG and web(stranger).get(picture).status_code == 404
    assert web(stranger).get(page).status_code == 404
    assert web(viewer).get(reverse("deployment-request", args=[deployment.pk, uuid4()])).status_code == 404
    assert page in web(viewer).get(reverse("deployment", args=[deployment.pk])).content.decode()
    listed = reverse("deployment-request-image", args=[deployment.pk, second.request_id, digest(OTHER)])
    assert web(viewer).get(listed).status_code == 404, "an image of another request"
    ObjectStore("datasets", organization.pk).storage.delete(StoredObject.objects.first().file)
    assert api(viewer).get(f"{url}/images/{digest(PNG)}").status_code == 409


def test_a_text_that_looks_like_an_id_opens_nothing(api, web, viewer, deployment, buffer, organization):
    """Whoever may ask a deployment must not read other objects of the organization through its log."""
    secret = ObjectStore("datasets", organization.pk).put_bytes(PNG).sha256
    made = entry(deployment, text_of(OTHER))
    made.instances[0]["x"] = f"object:{secret}"
    buffer.add(made)
    buffer.flush()
    url = f"/api/v1/deployments/{deployment.pk}/requests/{made.request_id}"
    assert api(viewer).get(f"{url}/images/{secret}").status_code == 404
    assert api(viewer).get(f"{url}/images/{digest(OTHER)}").content == OTHER
    page = web(viewer).get(reverse("deployment-request", args=[deployment.pk, made.request_id])).content.decode()
    assert f"images/{secret}" not in page and f"object:{secret}" in page and f"images/{digest(OTHER)}" in page


def test_what_cannot_be_kept_stays_a_hash_and_its_record_is_written(deployment, buffer, monkeypatch, settings, caplog):
    kept = f"sha256:{digest(text_of(PNG).encode())}"

    def told():
        return PredictionRecord.objects.order_by("-id").first().instances[0]["picture"]

    buffer.add(entry(deployment, text_of(PNG), error="model_unusable"))
    assert buffer.flush() == 1 and told() == kept, "what failed may be no image"
    settings.PREDICTION_LOG_IMAGE_MB = 0
    buffer.add(entry(deployment, text_of(PNG)))
    assert buffer.flush() == 1 and told() == kept and "PREDICTION_LOG_IMAGE_MB is reached" in caplog.text
    settings.PREDICTION_LOG_IMAGE_MB = 1
    monkeypatch.setattr(prediction_log, "MOST_IMAGES", 420)
    for _ in range(2):
        buffer.add(entry(deployment, text_of(PNG)))
    assert buffer.flush() == 2 and told() == kept, "one too many waited"
    assert LoggedImage.objects.count() == 1

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(ObjectStore, "put_many", full)
    buffer.add(entry(deployment, text_of(OTHER)))
    assert buffer.flush() == 1 and told().startswith("sha256:") and "images of 1 records are not kept" in caplog.text


def test_images_wait_with_their_records_for_a_database_that_is_away(deployment, buffer, monkeypatch):
    real = logged_images._keep

    def away(*_):
        raise OperationalError("away")

    monkeypatch.setattr(logged_images, "_keep", away)
    buffer.add(entry(deployment, text_of(PNG)))
    assert buffer.flush() == 0 and buffer.waiting == 1 and buffer._of_images > 0
    monkeypatch.setattr(logged_images, "_keep", real)
    assert buffer.flush() == 1 and buffer._of_images == 0
    assert PredictionRecord.objects.get().instances[0]["picture"] == f"object:{digest(PNG)}"


def test_they_go_with_the_last_record_that_names_them(deployment, buffer, organization, settings):
    settings.PREDICTION_LOG_DAYS, settings.OBJECT_GRACE_DAYS = 30, 0
    old = timezone.now() - timedelta(days=40)
    for picture in (PNG, OTHER):
        buffer.add(entry(deployment, text_of(picture), at=old))
    buffer.add(entry(deployment, text_of(OTHER)))
    buffer.flush()
    prediction_log.forget_old()
    assert [row.sha256 for row in LoggedImage.objects.all()] == [digest(OTHER)]
    for _ in range(2):  # condemned, then swept
        cron.collect_objects()
    assert [row.sha256 for row in StoredObject.objects.filter(storage="datasets")] == [digest(OTHER)]
    assert ObjectStore("datasets", organization.pk).read(digest(OTHER)) == OTHER


@pytest.mark.django_db(transaction=True)
def test_a_deployment_that_is_gone_takes_nothing_with_it(deployment, buffer):
    gone = entry(deployment, text_of(PNG))
    gone.deployment_id = uuid4()
    buffer.add(gone)
    assert buffer.flush() == 1 and not LoggedImage.objects.exists() and buffer.waiting == 0


def test_what_was_sent_is_read_as_the_models_read_it():
    assert logged_images.content_of(" iVBO\nRw== ") == b"\x89PNG"
    assert logged_images.content_of("data:image/png;base64,iVBORw==") == b"\x89PNG"
    assert logged_images.content_of("") is None and logged_images.content_of("é") is None
    assert Sent(0, "a", "b").text == "b"
