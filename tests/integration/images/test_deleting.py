"""Images go with the last version that shows them, after the grace."""

import pytest

from datasets import deletion, services
from datasets.images import records_of
from datasets.reachability import reachable_objects
from dlplatform import cron
from dlplatform.api import Conflict
from dlplatform.objects.models import StoredObject
from dlplatform.objects.store import MissingObject
from tests.fixtures.pictures import picture
from tests.integration.images.conftest import FILES, address, collected, digest

pytestmark = pytest.mark.django_db(transaction=True)


def test_images_go_after_the_grace_with_the_version(maintainer, organization, pets):
    store = services.object_store(organization.pk)
    record = next(iter(records_of(store, pets.images)))
    told = deletion.preview_of_version(pets).bytes
    assert told > pets.images["bytes"]
    deletion.delete_version(actor=maintainer, version=pets)
    collected(organization, 8)
    collected(organization, 16)
    for sha256 in (record.sha256, record.thumbnail, pets.images["index"]):
        assert not store.exists(sha256)
    with pytest.raises(Conflict, match="gone"):
        deletion.restore_version(actor=maintainer, version=pets)


def test_an_undone_deletion_brings_every_image_back(api, maintainer, viewer, organization, pets):
    content = FILES["pets/cat/0.png"]
    deletion.delete_version(actor=maintainer, version=pets)
    assert api(viewer).get(address(pets, content)).status_code == 409
    collected(organization, 6.9)
    deletion.restore_version(actor=maintainer, version=pets)
    collected(organization, 30)
    assert api(viewer).get(address(pets, content)).content == content


def test_what_another_version_shows_too_stays(upload, maintainer, organization, pets):
    second = upload({**FILES, "pets/cat/new.png": picture(500)})
    third = upload({"cat/1.png": picture(800), "dog/2.png": picture(801)})
    assert deletion.preview_of_version(pets).bytes < pets.images["bytes"]
    deletion.delete_version(actor=maintainer, version=pets)
    collected(organization, 8)
    collected(organization, 16)
    store = services.object_store(organization.pk)
    for version in (second, third):
        for record in records_of(store, version.images):
            assert store.read(record.sha256) and store.read(record.thumbnail)


def test_an_archive_is_let_go_once_its_images_are_stored(organization, pets):
    store = services.object_store(organization.pk)
    assert store.exists(pets.source_sha256)
    collected(organization, 8)
    collected(organization, 16)
    assert not store.exists(pets.source_sha256)
    assert store.read(digest(FILES["pets/cat/0.png"])) == FILES["pets/cat/0.png"]


def test_nothing_is_collected_while_a_list_of_images_cannot_be_read(organization, pets, caplog):
    StoredObject.objects.filter(sha256=pets.images["index"]).delete()
    with pytest.raises(MissingObject):
        reachable_objects(organization.pk)
    cron.collect_objects()
    assert "are not collected" in caplog.text
    assert StoredObject.objects.filter(condemned_at__isnull=False).count() == 0
    assert deletion.preview_of_version(pets).bytes > 0
