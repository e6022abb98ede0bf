"""Collection: what is reachable stays, what is not goes after its grace, and comes back until then."""

import hashlib
import os
import threading
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from django.db import connection, transaction
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from safetensors.numpy import save

from dlplatform import cron
from dlplatform.objects.collection import bytes_freed, collect, remove_abandoned
from dlplatform.objects.models import StoredObject
from dlplatform.objects.store import IncomingFile, MissingObject, ObjectStore
from registry import services
from registry.reachability import bytes_freed_by_deleting

pytestmark = pytest.mark.django_db(transaction=True)

GENERATOR = np.random.default_rng(5)
GRACE = timedelta(days=7)


@pytest.fixture
def store():
    return ObjectStore("models", uuid4())


def weights(*shape):
    return (GENERATOR.standard_normal(shape) * 0.02).astype(np.float32)


def put(store, tmp_path, tensors, like=None):
    path = tmp_path / f"{uuid4()}.safetensors"
    path.write_bytes(save(tensors))
    return store.put_file(path, like=like).sha256


def files_of(store):
    return [path for path in Path(store.storage.location).rglob("*") if path.is_file()]


def bytes_on_disk(store):
    return sum(path.stat().st_size for path in files_of(store))


def later(store, reachable, days):
    return collect(
        "models", store.scope.organization, reachable, grace=GRACE, now=timezone.now() + timedelta(days=days)
    )


def collected(store, reachable):
    """Condemned a while after it was put, swept another while later."""
    os_time_passes(store)
    return later(store, reachable, 8), later(store, reachable, 16)


def os_time_passes(store):
    for path in files_of(store):
        os.utime(path, (0, 0))


def test_what_is_out_of_reach_goes_in_two_steps(store, tmp_path):
    kept = put(store, tmp_path, {"a": weights(200, 200)})
    gone = put(store, tmp_path, {"b": weights(200, 200)})
    assert later(store, [kept], 1).condemned == 0  # young: its writer may not have come to referring to it
    first, second = collected(store, [kept])
    assert (first.condemned, first.swept) == (3, 0) and second.swept == 3
    assert store.exists(kept) and store.read(kept) and not store.exists(gone)
    with pytest.raises(MissingObject):
        store.read(gone)


def test_what_deleting_frees_is_known_beforehand_and_freed(store, tmp_path):
    first = {"a": weights(300, 300), "b": weights(300, 300)}
    kept = put(store, tmp_path, first)
    gone = put(store, tmp_path, first | {"b": weights(300, 300), "c": weights(200, 200)})
    expected = bytes_freed("models", store.scope.organization, [gone], [kept])
    assert 0.8 * (360_000 + 160_000) < expected < 530_000
    before = bytes_on_disk(store)
    _, second = collected(store, [kept])
    assert second.bytes == expected
    assert before - bytes_on_disk(store) == expected  # its pack goes too: nothing else was in it
    assert store.read(kept) == save(first)


def test_bases_of_what_is_kept_are_kept(store, tmp_path):
    base = {"a": weights(300, 300)}
    changed = {"a": base["a"] + weights(300, 300) * np.float32(1e-4)}
    old = put(store, tmp_path, base)
    new = put(store, tmp_path, changed, like=old)
    assert StoredObject.objects.filter(codec="delta").count() == 1
    assert bytes_freed("models", store.scope.organization, [old], [new]) < 1000
    collected(store, [new])
    assert not store.exists(old) and store.read(new) == save(changed)


def test_a_condemned_object_can_be_read_and_is_revived_by_a_put_a_call_or_a_reference(store, tmp_path):
    tensors = [{"a": weights(50, 50)} for _ in range(4)]
    put_again, called, referred, forgotten = [put(store, tmp_path, one) for one in tensors]
    assert later(store, [], 8).condemned == 9  # their header is one object
    assert store.read(forgotten) == save(tensors[3])
    put(store, tmp_path, tensors[0])
    store.revive([called])
    later(store, [put_again, called, referred], 8)
    later(store, [put_again, called, referred], 16)
    for sha256, content in zip([put_again, called, referred], tensors, strict=False):
        assert store.read(sha256) == save(content)
    with pytest.raises(MissingObject):
        store.revive([forgotten])


def test_a_pack_is_rewritten_when_more_than_half_of_it_is_dead(store, tmp_path):
    tensors = {f"{number}": weights(1000) for number in range(20)}
    put(store, tmp_path, tensors)
    kept = put(store, tmp_path, {name: tensors[name] for name in list(tensors)[:5]})
    with store.open(kept) as reader:
        _, second = collected(store, [kept])
        assert second.packs == 1
        assert reader.read() == store.read(kept)  # opened before its bytes moved
    live = sum(StoredObject.objects.values_list("stored_size", flat=True))
    assert bytes_on_disk(store) < 1.1 * live + 1000


def test_files_without_rows_go_after_the_grace(store, tmp_path):
    kept = put(store, tmp_path, {"a": weights(200, 200)})
    stray = Path(store.storage.path(f"{store.prefix}/ab/{'c' * 64}.0123"))
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x")
    later(store, [kept], 8)
    assert stray.exists()
    os.utime(stray, (0, 0))
    later(store, [kept], 8)
    assert not stray.exists() and store.read(kept)


def test_files_of_the_time_before_the_index_get_rows(store):
    def old(content):
        sha256 = hashlib.sha256(content).hexdigest()
        path = Path(store.storage.path(f"{store.prefix}/{sha256[:2]}/{sha256}"))
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        os.utime(path, (0, 0))
        return sha256

    kept, gone = old(b"kept"), old(b"gone")
    first = later(store, [kept], 0)
    assert first.condemned == 1 and store.read(gone) == b"gone"
    later(store, [kept], 8)
    assert store.read(kept) == b"kept" and not store.exists(gone)


def test_files_that_a_writer_left_half_written_go(store):
    incoming = IncomingFile(store)
    incoming.write(b"half")
    assert remove_abandoned("models", grace=GRACE) == 0
    assert remove_abandoned("models", grace=GRACE, now=timezone.now() + timedelta(days=8)) == 1
    incoming.discard()
    assert files_of(store) == []


def test_nothing_is_collected_while_somebody_writes(store, tmp_path):
    put(store, tmp_path, {"a": weights(5)})
    blocked, release = threading.Event(), threading.Event()

    def write():
        try:
            with transaction.atomic():
                store.put_bytes(b"more")
                blocked.set()
                release.wait(20)
        finally:
            connection.close()

    thread = threading.Thread(target=write)
    thread.start()
    assert blocked.wait(20)
    assert later(store, [], 8).condemned == 0
    release.set()
    thread.join()
    assert later(store, [], 8).condemned == 4


def test_the_tick_keeps_all_that_versions_refer_to(organization, trainer, tmp_path, settings):
    model = services.create_model(actor=trainer, organization=organization, name="net")
    store = services.object_store(organization.pk)
    versions = []
    for _ in range(2):
        path = tmp_path / "model.safetensors"
        path.write_bytes(save({"a": weights(200, 200)}))
        stored = store.put_file(path)
        versions.append(
            services.commit_version(
                actor=trainer,
                model=model,
                tree={path.name: {"sha256": stored.sha256, "size": stored.size}},
                task="classification",
                signature={},
                metrics={},
                lineage={},
                message="",
            )
        )
    lost = put(store, tmp_path, {"b": weights(200, 200)})
    StoredObject.objects.update(touched_at=timezone.now() - timedelta(days=30))
    os_time_passes(store)
    cron.collect_objects()
    assert StoredObject.objects.exclude(condemned_at=None).count() == 3
    StoredObject.objects.exclude(condemned_at=None).update(condemned_at=timezone.now() - timedelta(days=30))
    collecting = cron.Collecting()
    collecting.start()
    collecting.start()
    collecting._thread.join()
    assert not store.exists(lost)
    for version in versions:
        assert store.read(version.tree["model.safetensors"]["sha256"])
    freed = bytes_freed_by_deleting([versions[0]], organization.pk)
    assert 0.8 * 160_000 < freed < 161_000


# --- a long life --------------------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """Puts, deletions, collections and time, in any order, with writers beside the collection."""

    @initialize()
    def begin(self):
        self.store = ObjectStore("models", uuid4())
        self.now = timezone.now()
        self.reachable = {}
        self.tensors = [weights(40, 40) for _ in range(4)]
        self.noise = 0

    def _content(self, first, second, change):
        self.noise += change
        tensors = {"a": self.tensors[first].copy(), "b": self.tensors[second], "c": np.zeros(3, np.float32)}
        tensors["a"].view(np.uint32)[0, :20] ^= np.uint32(self.noise)
        return save(tensors)

    def _put(self, content, like):
        path = Path(self.store.incoming_folder()).parent / f"source-{uuid4()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        try:
            return self.store.put_file(path, like=like).sha256
        finally:
            path.unlink()

    def _like(self, index):
        known = sorted(self.reachable)
        return known[index % len(known)] if known else None

    @rule(first=st.integers(0, 3), second=st.integers(0, 3), change=st.integers(0, 5), like=st.integers(0, 9))
    def put(self, first, second, change, like):
        content = self._content(first, second, change)
        self.reachable[self._put(content, self._like(like))] = content

    @precondition(lambda self: self.reachable)
    @rule(index=st.integers(0, 9))
    def delete(self, index):
        del self.reachable[self._like(index)]

    @rule(days=st.integers(1, 9))
    def collect(self, days):
        self.now += timedelta(days=days)
        collect("models", self.store.scope.organization, list(self.reachable), grace=GRACE, now=self.now)

    @rule(first=st.integers(0, 3), second=st.integers(0, 3), change=st.integers(0, 5), like=st.integers(0, 9))
    def put_while_it_is_collected(self, first, second, change, like):
        content, ancestor = self._content(first, second, change), self._like(like)
        put = []

        def write():
            try:
                put.append(self._put(content, ancestor))
            finally:
                connection.close()

        thread = threading.Thread(target=write)
        thread.start()
        for _ in range(3):
            # The clock of the collection runs ahead of the writers': what is put now may be old for it at once, and
            # is wanted all the same, as by a version that is committed in the next moment.
            wanted = [*self.reachable, hashlib.sha256(content).hexdigest()]
            collect("models", self.store.scope.organization, wanted, grace=GRACE, now=self.now)
        thread.join()
        self.reachable[put[0]] = content

    @invariant()
    def all_that_is_reachable_can_be_read(self):
        for sha256, content in getattr(self, "reachable", {}).items():
            assert self.store.read(sha256) == content

    @invariant()
    def the_index_is_closed(self):
        if not hasattr(self, "store"):
            return
        rows = {row.sha256: row for row in self.store.scope.rows}
        for row in rows.values():
            assert {row.base, *(sha256 for sha256, _ in row.parts)} - {""} <= rows.keys()
            assert not row.file or self.store.storage.exists(row.file)


def test_a_long_life(db, tmp_path):
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        ),
    )  # fmt: skip
