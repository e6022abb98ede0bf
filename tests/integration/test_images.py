"""Image datasets from the upload to the end: stored, shown, trained on, deleted, collected."""

import hashlib

import pytest

from datasets import services
from datasets.images import image_of, records_of
from datasets.jobs import ingest
from datasets.models import DatasetVersion
from tests import factories
from tests.fixtures.pictures import class_folders, zipped
from tests.integration.test_uploads import post

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def dataset(organization):
    return factories.DatasetFactory(organization=organization, name="pets")


@pytest.fixture
def upload(dataset, trainer):
    """``upload(files)``: a version of an archive, sent by the API and ingested."""

    def send(files, name="pets.zip", content=None):
        path = f"/api/v1/datasets/{dataset.pk}/versions?filename={name}"
        answer = post(trainer, dataset, path=path, content=content or zipped(files))
        assert answer.status_code == 202, answer.text
        ingest(answer.json()["id"])
        return DatasetVersion.objects.get(pk=answer.json()["id"])

    return send


@pytest.fixture
def pets(upload):
    version = upload(class_folders())
    assert version.state == "ready", version.problems
    return version


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_an_archive_becomes_rows_blobs_and_an_index(upload, organization):
    files = class_folders()
    version = upload(files)
    assert version.state == "ready" and version.rows == 8
    assert [(one["name"], one["type"]) for one in version.columns] == [
        ("file", "text"), ("image", "image"), ("label", "category"),
    ]  # fmt: skip
    store = services.object_store(organization.pk)
    listed = {record.sha256: record for record in records_of(store, version.images)}
    assert set(listed) == {digest(content) for content in files.values()}
    for content in files.values():
        assert store.read(digest(content)) == content
        assert image_of(store, version, digest(content)) == listed[digest(content)]
    assert version.images["count"] == 8 and version.images["bytes"] == sum(map(len, files.values()))
    assert image_of(store, version, "0" * 64) is None and image_of(store, version, "../x") is None
