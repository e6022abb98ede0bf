"""Archives become rows, objects and an index; what is no image is named."""

import io

import pytest
from django.core.exceptions import ValidationError
from PIL import Image

from datasets import additions, services
from datasets import images as stored_images
from datasets.images import image_of, records_of
from datasets.ingestion.images.packs import pack_name
from datasets.jobs import Ingestion, ingest
from datasets.models import DatasetVersion
from datasets.reachability import reachable_objects
from dlplatform.objects.models import StoredObject
from tests.fixtures.pictures import picture, tarred, zipped
from tests.integration.images.conftest import FILES, digest

pytestmark = pytest.mark.django_db(transaction=True)


def test_an_archive_becomes_rows_objects_and_an_index(pets, organization):
    assert pets.rows == 12 and pets.image_columns == ["image"]
    store = services.object_store(organization.pk)
    listed = {record.sha256: record for record in records_of(store, pets.images)}
    assert set(listed) == {digest(content) for content in FILES.values()}
    for content in FILES.values():
        assert store.read(digest(content)) == content
        assert image_of(store, pets, digest(content)) == listed[digest(content)]
    small = Image.open(io.BytesIO(store.read(listed[digest(content)].thumbnail)))
    assert (small.size, small.format) == ((12, 9), "PNG")
    assert pets.images["count"] == 12 and pets.images["bytes"] == sum(map(len, FILES.values()))
    assert pets.bytes > pets.images["bytes"]
    assert all(image_of(store, pets, text) is None for text in ("0" * 64, "../x", digest(content).upper(), ""))


def test_large_pictures_have_small_thumbnails_and_odd_formats_too(upload, organization):
    files = {"a/1.jpg": picture(1, (400, 200), "JPEG"), "b/2.tif": picture(2, (50, 300), "TIFF"),
             "b/3.webp": picture(3, (120, 120), "WEBP"), "a/4.bmp": picture(4, (10, 10), "BMP")}  # fmt: skip
    version = upload(content=tarred(files))
    store = services.object_store(organization.pk)
    records = {record.sha256: record for record in records_of(store, version.images)}
    for content, size in zip(files.values(), [(96, 48), (16, 96), (96, 96), (10, 10)], strict=True):
        shown = Image.open(io.BytesIO(store.read(records[digest(content)].thumbnail)))
        assert shown.size == size and shown.format == records[digest(content)].thumbnail_format


def test_a_second_version_shares_its_images_with_the_first(upload, pets, organization):
    before = StoredObject.objects.count()
    second = upload({**FILES, "pets/cat/new.png": picture(500)})
    assert second.state == "ready" and second.images["count"] == 13
    # The archive, the new image (so small that its thumbnail is the same file), the index and the part.
    assert StoredObject.objects.count() == before + 4


def test_nothing_usable_is_rejected_and_every_file_is_named(upload, organization):
    version = upload({"cat/1.png": b"x", "dog/2.png": b"y"})
    assert version.state == "rejected" and version.images == {}
    assert [(one["code"], one["file"]) for one in version.problems] == [
        ("no_usable_images", None), ("unknown_format", "cat/1.png"), ("unknown_format", "dog/2.png"),
    ]  # fmt: skip
    assert version.source_sha256 in reachable_objects(organization.pk)


def test_a_child_that_hands_over_something_else_is_not_believed(sent, monkeypatch):
    def forged(store, folder, files, beat):
        pack = folder / pack_name(0)
        content = bytearray(pack.read_bytes())
        content[40] ^= 1
        pack.write_bytes(content)
        return stored_images.store_images(store, folder, files, beat)

    monkeypatch.setattr("datasets.jobs.store_images", forged)
    version = sent(zipped(FILES))
    ingest(str(version.pk))
    version.refresh_from_db()
    assert version.state == "rejected" and version.problems[0]["code"] == "decoder_crashed" and version.images == {}


@pytest.mark.parametrize("how", ["cancel", "drain"])
def test_storing_many_images_can_be_stopped(sent, trainer, monkeypatch, how):
    version = sent(zipped(FILES))
    working = Ingestion(DatasetVersion.claim(version.pk))

    def stopped(store, folder, files, beat):
        if how == "cancel":
            services.cancel_version(actor=trainer, version=version)
        else:
            working.draining = True
        working._renewed = 0.0
        return stored_images.store_images(store, folder, files, beat)

    monkeypatch.setattr("datasets.jobs.store_images", stopped)
    working.work()
    version.refresh_from_db()
    assert version.state == ("cancelled" if how == "cancel" else "queued") and version.parts == []


def test_no_rows_are_added_to_images(pets, trainer):
    for row in ({"image": digest(picture()), "label": "cat"}, {"label": "cat"}):
        with pytest.raises(ValidationError, match="Upload an archive"):
            additions.add_rows(actor=trainer, dataset=pets.dataset, rows=[row])


def test_rows_that_waited_for_an_upload_that_turned_out_to_be_images_are_rejected(sent, dataset, trainer):
    first = sent(zipped(FILES))
    added = additions.add_rows(actor=trainer, dataset=dataset, rows=[{"label": "cat"}])
    ingest(str(first.pk))
    ingest(str(added.pk))
    added.refresh_from_db()
    assert added.state == "rejected" and added.problems[0]["code"] == "image_rows"
