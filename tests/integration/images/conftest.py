"""Datasets of images: archives that are sent and ingested."""

import hashlib
from datetime import timedelta

import pytest
from django.utils import timezone

from datasets.jobs import ingest
from datasets.models import DatasetVersion
from datasets.reachability import reachable_objects
from dlplatform.objects.collection import collect
from tests import factories
from tests.fixtures.pictures import class_folders, zipped
from tests.integration.test_uploads import post

FILES = class_folders(6)


@pytest.fixture
def dataset(organization):
    return factories.DatasetFactory(organization=organization, name="pets")


@pytest.fixture
def sent(dataset, trainer):
    """``sent(content)``: a queued version of an archive, received by the streaming endpoint."""

    def send(content, name="pets.zip"):
        path = f"/api/v1/datasets/{dataset.pk}/versions?filename={name}"
        answer = post(trainer, dataset, path=path, content=content)
        assert answer.status_code == 202, answer.text
        return DatasetVersion.objects.get(pk=answer.json()["id"])

    return send


@pytest.fixture
def upload(sent):
    """``upload(files)``: sent and ingested."""

    def send(files=None, content=None):
        version = sent(content or zipped(files))
        ingest(str(version.pk))
        version.refresh_from_db()
        return version

    return send


@pytest.fixture
def pets(upload):
    version = upload(FILES)
    assert version.state == "ready", version.problems
    return version


def digest(content):
    return hashlib.sha256(content).hexdigest()


def address(version, content):
    return f"/api/v1/datasets/{version.dataset_id}/versions/{version.number}/images/{digest(content)}"


def collected(organization, days):
    grace, now = timedelta(days=7), timezone.now() + timedelta(days=days)
    return collect("datasets", organization.pk, reachable_objects(organization.pk), grace=grace, now=now)
