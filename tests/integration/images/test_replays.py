"""Versions that learned from images are trained again from their lineage, from nothing and over a pretrained base."""

import pytest

from tests.fixtures.pictures import class_folders
from tests.integration.images.test_bases import asked, base  # noqa: F401 - a fixture
from tests.integration.test_replays import asked as replayed
from tests.integration.training_by_api import trained_version
from training.jobs import train
from training.models import ReplayCertificate

pytestmark = pytest.mark.django_db(transaction=True)
QUICK = {"epochs": 2, "threads": 1, "importance": False, "image_size": 16}


def certificate_of(version, api, trainer):
    run = replayed(api, trainer, version)
    train(str(run.pk))
    return ReplayCertificate.objects.get(version=version)


@pytest.fixture
def many(upload):
    return upload(class_folders(12))


def test_a_network_of_images_comes_out_again(many, trainer, api):
    body = {"dataset_version": str(many.pk), "task": "classification", "target": "label", "features": ["image"],
            "config": QUICK}  # fmt: skip
    version = trained_version(api(trainer).post("/api/v1/runs", body, format="json"))
    certificate = certificate_of(version, api, trainer)
    assert certificate.equal, certificate.details


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_base_of_images_tunes_to_the_same_again(base, many, trainer, api, mode):  # noqa: F811 - the fixture
    version = trained_version(asked(api, trainer, base("resnet"), many, mode=mode, config=QUICK))
    certificate = certificate_of(version, api, trainer)
    assert certificate.equal, certificate.details
