"""The store when writing fails: old state or new state, and nothing half visible."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from django.db import connection
from django.utils import timezone
from safetensors.numpy import save

from dlplatform.objects import index, packs, storages, writing
from dlplatform.objects.collection import collect, remove_abandoned
from dlplatform.objects.index import Superseded
from dlplatform.objects.models import StoredObject
from dlplatform.objects.reading import Contents
from dlplatform.objects.store import MissingObject, ObjectStore

pytestmark = pytest.mark.django_db(transaction=True)

GENERATOR = np.random.default_rng(2)


@pytest.fixture
def store():
    return ObjectStore("models", uuid4())


def weights(*shape):
    return (GENERATOR.standard_normal(shape) * 0.02).astype(np.float32)


def package(folder):
    """Three files: two large tensors and small ones, a text, noise."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(
        save({"a": weights(300, 300), "b": weights(300, 300), **{f"c{n}": weights(5) for n in range(3)}})
    )
    (folder / "README.md").write_text("words " * 100)
    (folder / "noise.bin").write_bytes(GENERATOR.bytes(100_000))
    return sorted(folder.iterdir())


def files_of(store):
    return {path for path in Path(store.storage.location).rglob("*") if path.is_file()}


def assert_whole(store):
    """Every row can be read with its hash, and parts and bases of every row have rows."""
    rows = {row.sha256: row for row in store.scope.rows}
    for row in rows.values():
        assert {row.base, *(sha256 for sha256, _ in row.parts)} - {""} <= rows.keys()
        assert len(store.read(row.sha256)) == row.size


class Failing:
    """Lets a function fail with "no space left" on its n-th call."""

    def __init__(self, monkeypatch, owner, name, call, *, after=False):
        self.left, self.original, self.after = call, getattr(owner, name), after
        self.lock = threading.Lock()
        monkeypatch.setattr(owner, name, lambda *given, **more: self._work(*given, **more))

    def _work(self, *given, **more):
        with self.lock:
            self.left -= 1
            fails = self.left == 0
        if not fails or self.after:
            done = self.original(*given, **more)
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return done

    @property
    def spared(self):
        return self.left > 0


FAULTS = {
    "fsync": (os, "fsync"),
    "rename": (storages, "publish"),
    "temporary file": (writing.tempfile, "mkstemp"),
    "write": (writing, "start_writing_back"),
    "pack": (packs.PackWriter, "add"),
    "folder": (storages, "make_durable_folder"),
}


@pytest.mark.parametrize(
    ("fault", "after"),
    # A temporary file whose making failed was not made.
    [(fault, after) for fault in FAULTS for after in (False, True) if (fault, after) != ("temporary file", True)],
)
def test_a_write_that_fails_at_any_moment_leaves_the_old_state(store, tmp_path, monkeypatch, fault, after):
    kept = store.put_bytes(GENERATOR.bytes(500))
    before, rows = files_of(store), store.scope.rows.count()
    paths = package(tmp_path / "package")
    for call in range(1, 60):
        with monkeypatch.context() as patched:
            failing = Failing(patched, *FAULTS[fault], call, after=after)
            try:
                store.put_files([(path, None) for path in paths])
            except OSError as error:
                assert error.errno == errno.ENOSPC
        if failing.spared:
            break
        assert store.scope.rows.count() == rows
        assert files_of(store) == before
    else:
        raise AssertionError("it never succeeded")
    assert call > 1
    assert_whole(store)
    assert store.exists(kept.sha256) and store.scope.rows.count() == rows + 9


def test_a_full_disk_is_an_error_and_leaves_nothing(store, tmp_path):
    """A file system of 1 MB, full for real."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        store.storage = storages.DurableFileStorage(location=place)
        kept = store.put_bytes(GENERATOR.bytes(100_000))
        (tmp_path / "large").write_bytes(GENERATOR.bytes(2_000_000))
        for put in (
            lambda: store.put_file(tmp_path / "large"),
            lambda: store.put_stream(iter([GENERATOR.bytes(2_000_000)])),
        ):
            with pytest.raises(OSError, match="No space left"):
                put()
        assert len(files_of(store)) == 1 and store.scope.rows.count() == 1
        assert len(store.read(kept.sha256)) == 100_000
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_rows_that_cannot_be_written_leave_files_to_the_collection(store, tmp_path, monkeypatch):
    """The error may have come after the commit, so the files must stay until it is known that no row names them."""
    from django.db import OperationalError

    with monkeypatch.context() as patched:
        patched.setattr(index, "_beaten", lambda *_: (_ for _ in ()).throw(OperationalError("gone")))
        with pytest.raises(OperationalError):
            store.put_bytes(GENERATOR.bytes(100_000))
    assert len(files_of(store)) == 1 and not store.scope.rows.exists()
    for path in files_of(store):
        os.utime(path, (0, 0))
    collect("models", store.scope.organization, [], grace=timedelta(days=1))
    assert not files_of(store)


def test_what_vanishes_between_looking_and_committing_is_stored_anew(store, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"a": weights(200, 200), "b": weights(200, 200)}))
    first = store.put_file(path)
    original, left = index.add, [2]

    def swept_meanwhile(*given):
        if left[0]:
            left[0] -= 1
            store.scope.rows.all().delete()
        return original(*given)

    monkeypatch.setattr(index, "add", swept_meanwhile)
    assert store.put_file(path) == first
    assert_whole(store)
    monkeypatch.setattr(index, "add", lambda *_: (_ for _ in ()).throw(Superseded()))
    with pytest.raises(Superseded, match="change faster"):
        store.put_file(path)


def test_two_writers_of_overlapping_files_are_harmless(store, tmp_path):
    shared = weights(300, 300)
    paths = []
    for number in range(6):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(
            save({"shared": shared, "own": weights(100, 100) if number % 2 else shared[:100, :100].copy()})
        )
        paths.append(path)
    failures = []

    def write(order):
        try:
            for number in order:
                store.put_file(paths[number])
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    orders = [range(6), reversed(range(6)), [3, 0, 5, 1, 4, 2], range(6)]
    threads = [threading.Thread(target=write, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert_whole(store)
    named = {store.storage.path(row.file) for row in store.scope.rows.exclude(file="")}
    assert {str(path) for path in files_of(store)} == named


def test_an_upload_and_a_package_with_the_same_bytes_meet(store, tmp_path):
    """A part that another writer has stored as a file of its own meanwhile is noticed, and the batch made anew."""
    inner = save({"x": weights(40, 40)})
    (tmp_path / "inner").write_bytes(inner)
    outer = tmp_path / "outer"
    outer.write_bytes(save({"file": np.frombuffer(inner, np.uint8), "more": weights(100, 100)}))
    batch = writing.Batch(store.storage, store.scope)
    with pytest.raises(Superseded), batch:
        batch.add_file(outer)
        store.put_file(tmp_path / "inner")
        batch.commit()
    assert store.put_file(outer).size == outer.stat().st_size
    assert_whole(store)


def test_a_base_that_is_gone_is_missing_not_wrong(store, tmp_path):
    base = {"a": weights(300, 300)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(base))
    old = store.put_file(path)
    path.write_bytes(save({"a": base["a"] * np.float32(1.0001)}))
    new = store.put_file(path, like=old.sha256)
    delta = store.scope.rows.get(codec="delta")
    store.scope.rows.filter(sha256=delta.base).delete()
    with pytest.raises(MissingObject):
        store.read(new.sha256)
    assert Contents(store.storage, store.scope, new.sha256).row.size == new.size


WRITER = """
import os, sys
from pathlib import Path
from uuid import UUID
import django
django.setup()
from django.conf import settings
import numpy as np
from safetensors.numpy import save
from dlplatform.objects.store import ObjectStore

place, organization, seed = sys.argv[1], UUID(sys.argv[2]), int(sys.argv[3])
settings.STORAGES["models"] = {
    "BACKEND": "dlplatform.objects.storages.DurableFileStorage", "OPTIONS": {"location": place}
}
store = ObjectStore("models", organization)
generator = np.random.default_rng(seed)
path, like = Path(sys.argv[4]), None
tensors = {f"t{n}": generator.standard_normal((150, 150)).astype(np.float32) for n in range(6)}
print("writing", flush=True)
while True:
    path.write_bytes(save(tensors))
    like = store.put_file(path, like=like).sha256
    print(like, flush=True)
    tensors[f"t{generator.integers(6)}"] *= np.float32(1.001)
"""


def test_a_writer_killed_at_any_moment_leaves_no_row_without_its_bytes(tmp_path, settings):
    place, organization = tmp_path / "models", uuid4()
    store = ObjectStore("models", organization)
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "dlplatform.settings", "SECRET_KEY": "x",
        "DATABASE_URL": _address_of_the_test_database(), "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    generator = np.random.default_rng(1)
    answered: list[str] = []
    for kill in range(20):
        command = [sys.executable, "-c", WRITER, str(place), str(organization), str(kill), str(tmp_path / "source")]
        writer = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert writer.stdout.readline() == "writing\n"
        # So many answers first, however slow the machine is, then a moment anywhere in the next write.
        first = [writer.stdout.readline() for _ in range(generator.integers(0, 4))]
        time.sleep(generator.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        answered += [line.strip() for line in [*first, *writer.stdout] if len(line) == 65]
        writer.wait()
    assert len(answered) > 5
    assert_whole(store)
    for sha256 in answered:
        assert store.read(sha256)
    for path in files_of(store):
        os.utime(path, (0, 0))
    collect("models", organization, answered, grace=timedelta(days=1))
    remove_abandoned("models", grace=timedelta(days=1), now=timezone.now())
    named = {store.storage.path(row.file) for row in StoredObject.objects.exclude(file="")}
    assert {str(path) for path in files_of(store)} == named
    assert_whole(store)


def _address_of_the_test_database() -> str:
    address, name = os.environ["DATABASE_URL"], connection.settings_dict["NAME"]
    base, _, _ = address.rpartition("/")
    return f"{base}/{name}"
