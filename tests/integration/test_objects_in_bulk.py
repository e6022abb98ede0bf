"""Many objects put and fetched at once: shared, verified, and found wherever they have been moved to."""

import hashlib
import os
from pathlib import Path
from uuid import uuid4

import pytest

from dlplatform.objects import bulk
from dlplatform.objects.models import StoredObject
from dlplatform.objects.store import CorruptObject, MissingObject, ObjectStore

pytestmark = pytest.mark.django_db(transaction=True)

CONTENTS = [os.urandom(100 + 7 * index) for index in range(300)] + [b"text " * 50_000, os.urandom(200_000), b""]


@pytest.fixture
def store():
    return ObjectStore("datasets", uuid4())


@pytest.fixture
def wanted(store, tmp_path):
    return {one.sha256: tmp_path / one.sha256[:2] / one.sha256 for one in store.put_many(CONTENTS)}


def digest(content):
    return hashlib.sha256(content).hexdigest()


def contents(files):
    return {path.name: path.read_bytes() for path in files.values()}


def test_what_is_put_together_comes_back_together(store, wanted):
    beats = []
    store.fetch_many(wanted, beats.append)
    assert contents(wanted) == {digest(content): content for content in CONTENTS}
    assert sum(beats) == len(wanted) and len(beats) < 20, "neighbours come in one read"
    assert all(
        not path.name.startswith(".") for folder in {p.parent for p in wanted.values()} for path in folder.iterdir()
    )


def test_a_content_is_stored_once(store, wanted):
    before = StoredObject.objects.count()
    again = store.put_many([*CONTENTS, CONTENTS[0], b"new", b"new"])
    assert [one.sha256 for one in again[: len(CONTENTS)]] == [digest(content) for content in CONTENTS]
    assert StoredObject.objects.count() == before + 1 and again[-1] == again[-2]


def test_objects_of_other_kinds_come_too(store, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(b"a line of text\n" * 1_000_000)
    raw = tmp_path / "raw"
    raw.write_bytes(os.urandom(9_000_000))
    kept = [store.put_file(large), store.put_file(raw), store.put_bytes(b"small")]
    assert {row.codec for row in StoredObject.objects.all()} >= {"composite", "raw"}
    files = {one.sha256: tmp_path / "out" / one.sha256 for one in kept}
    store.fetch_many(files)
    assert [files[one.sha256].stat().st_size for one in kept] == [one.size for one in kept]
    assert digest(files[kept[0].sha256].read_bytes()) == kept[0].sha256


def test_a_missing_object_is_named(store, wanted, tmp_path):
    with pytest.raises(MissingObject, match="0" * 64):
        store.fetch_many({**wanted, "0" * 64: tmp_path / "never"})
    assert not (tmp_path / "never").exists()


def test_a_damaged_pack_is_noticed_and_nothing_of_it_is_left(store, wanted):
    row = StoredObject.objects.filter(codec="raw", size__lt=2_000).exclude(size=0).order_by("pk").first()
    path = Path(store.storage.path(row.file))
    data = bytearray(path.read_bytes())
    data[row.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptObject, match=row.sha256):
        store.fetch_many(wanted)
    assert not wanted[row.sha256].exists()


def test_a_pack_that_was_rewritten_meanwhile_is_looked_for_anew(store, wanted, monkeypatch):
    rows = bulk._rows

    def stale(scope, names):
        """The rows as they were before the pack got another name."""
        found = rows(scope, names)
        for file in {row.file for row in found if "pack" in row.file}:
            moved = file.replace("pack-0", "pack-7")
            path = Path(store.storage.path(file))
            if path.exists():
                path.rename(store.storage.path(moved))
                StoredObject.objects.filter(file=file).update(file=moved)
        return found

    monkeypatch.setattr(bulk, "_rows", stale)
    store.fetch_many(wanted)
    assert contents(wanted) == {digest(content): content for content in CONTENTS}
