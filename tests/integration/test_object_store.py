"""The object store: whole or absent, verified when read, apart by organization."""

import hashlib
import os
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from dlplatform.objects.models import StoredObject
from dlplatform.objects.safetensors_layout import SLICE
from dlplatform.objects.store import CHUNK, CorruptObject, IncomingFile, MissingObject, ObjectStore

pytestmark = pytest.mark.django_db(transaction=True)

CONTENT = b"content" * 1000


@pytest.fixture
def store():
    return ObjectStore("models", uuid4())


def path_of(store, stored):
    return Path(store.storage.path(StoredObject.objects.get(sha256=stored.sha256).file))


def test_an_object_is_named_by_its_hash_and_read_back(store):
    stored = store.put_bytes(CONTENT)
    assert stored.sha256 == hashlib.sha256(CONTENT).hexdigest() and stored.size == len(CONTENT)
    assert store.exists(stored.sha256) and store.read(stored.sha256) == CONTENT


def test_an_object_larger_than_a_chunk_streams(store, tmp_path):
    source = tmp_path / "large"
    source.write_bytes(os.urandom(SLICE + 5))
    stored = store.put_file(source)
    assert source.exists()
    assert [len(chunk) for chunk in store.chunks(stored.sha256)] == [CHUNK] * (SLICE // CHUNK) + [5]
    store.fetch(stored.sha256, tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == source.read_bytes()


def test_an_empty_object_is_an_object(store):
    assert store.read(store.put_bytes(b"").sha256) == b""


@pytest.mark.parametrize("damage", [lambda c: c[:9] + b"X" + c[10:], lambda c: c[:-1], lambda c: b""])
def test_a_damaged_object_is_refused_and_never_lands_in_a_file(store, tmp_path, damage):
    stored = store.put_bytes(CONTENT)
    path = path_of(store, stored)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptObject):
        store.read(stored.sha256)
    with pytest.raises(CorruptObject):
        store.fetch(stored.sha256, tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "g" * 64, "a" * 63, "a" * 64])
def test_a_name_that_is_no_hash_of_ours_is_missing(store, name):
    with pytest.raises(MissingObject):
        store.open(name)


def test_a_failed_write_leaves_nothing(store):
    def broken():
        yield b"half"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        store.put_stream(broken())
    assert list(store.incoming_folder().iterdir()) == []


def test_a_failed_publication_leaves_nothing(store, monkeypatch):
    monkeypatch.setattr("dlplatform.objects.storages.publish", lambda *_: (_ for _ in ()).throw(OSError("no rename")))
    with pytest.raises(OSError, match="no rename"):
        store.put_bytes(CONTENT)
    assert not store.exists(hashlib.sha256(CONTENT).hexdigest())
    assert list(store.incoming_folder().iterdir()) == []


def test_two_writers_of_the_same_object_are_harmless(store):
    threads = [threading.Thread(target=store.put_bytes, args=(CONTENT,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read(hashlib.sha256(CONTENT).hexdigest()) == CONTENT
    assert list(store.incoming_folder().iterdir()) == []


def test_organizations_do_not_see_each_others_objects(store):
    stored = store.put_bytes(CONTENT)
    other = ObjectStore("models", uuid4())
    assert not other.exists(stored.sha256)
    with pytest.raises(MissingObject):
        other.read(stored.sha256)


def test_discarding(store):
    incoming = IncomingFile(store)
    incoming.write(b"abc")
    incoming.discard()
    assert list(store.incoming_folder().iterdir()) == []


def test_any_other_storage_of_django_works_too(settings, tmp_path):
    settings.STORAGES = settings.STORAGES | {
        "models": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    }
    from django.core.files.storage import storages

    storages.__init__(settings.STORAGES)
    store = ObjectStore("models", uuid4())
    stored = store.put_bytes(CONTENT)
    assert store.read(stored.sha256) == CONTENT
    assert store.put_bytes(CONTENT) == stored


def test_a_file_saved_through_the_storage_is_durable_too(store):
    from django.core.files.base import ContentFile

    name = store.storage.save("plain.txt", ContentFile(CONTENT))
    assert Path(store.storage.path(name)).read_bytes() == CONTENT
