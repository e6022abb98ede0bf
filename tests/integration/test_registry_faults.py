"""Faults during collection, commits and moves of refs: the old state or the new one, and nothing that is needed goes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
from django.db import connection

from dlplatform.objects import collection, packs, storages
from dlplatform.objects.models import StoredObject
from dlplatform.objects.store import ObjectStore
from registry import services
from registry.models import ModelVersion, Ref, RefMove
from tests import factories
from tests.fixtures.inference import eventually
from tests.integration.test_object_collection import later, os_time_passes, put
from tests.integration.test_object_store_faults import Failing, _address_of_the_test_database, assert_whole, weights

pytestmark = pytest.mark.django_db(transaction=True)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store():
    return ObjectStore("models", uuid4())


def aged(store, tmp_path):
    """Twelve small tensors in a pack of which four are needed, and two large files of which one is."""
    small = {f"{number}": weights(1000) for number in range(12)}
    put(store, tmp_path, small)
    kept = [put(store, tmp_path, {name: small[name] for name in list(small)[:4]})]
    large = weights(300, 300)
    put(store, tmp_path, {"large": large + 1})
    kept.append(put(store, tmp_path, {"large": large}))
    os_time_passes(store)
    return kept


FAULTS = {
    "fsync": (os, "fsync"),
    "rename": (storages, "publish"),
    "removal": (storages.DurableFileStorage, "delete"),
    "reading a pack": (collection, "read_range"),
    "writing a pack": (packs.PackWriter, "add"),
    "deleting": (collection, "delete_files"),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_collection_that_fails_at_any_moment_loses_nothing_and_the_next_one_ends_it(
    store, tmp_path, monkeypatch, fault, after
):
    for call in range(1, 60):
        kept = aged(store, tmp_path)
        later(store, kept, 8)
        with monkeypatch.context() as patched:
            failing = Failing(patched, *FAULTS[fault], call, after=after)
            try:
                later(store, kept, 16)
            except OSError:
                assert not failing.spared
        assert_whole(store)
        assert all(store.read(sha256) for sha256 in kept)
        os_time_passes(store)
        later(store, kept, 24)
        os_time_passes(store)
        later(store, kept, 32)
        assert_whole(store)
        assert all(store.read(sha256) for sha256 in kept)
        named = {
            store.storage.path(name) for name in StoredObject.objects.exclude(file="").values_list("file", flat=True)
        }
        on_disk = {str(path) for path in Path(store.storage.location).rglob("*") if path.is_file()}
        assert on_disk == named, "what a failed collection left behind went with a later one"
        if failing.spared:
            break
    else:
        raise AssertionError("it never succeeded")
    assert call > 1


# --- killed -------------------------------------------------------------------------------------------

PREAMBLE = """
import sys
from datetime import timedelta
from uuid import UUID
import django
django.setup()
from django.conf import settings
settings.STORAGES["models"] = {
    "BACKEND": "dlplatform.objects.storages.DurableFileStorage", "OPTIONS": {"location": sys.argv[1]}
}
print("at work", flush=True)
"""
COLLECTOR = (
    PREAMBLE
    + """
from django.utils import timezone
from dlplatform.objects.collection import collect
for days in range(8, 10_000, 8):
    now = timezone.now() + timedelta(days=days)
    collect("models", UUID(sys.argv[2]), sys.argv[3:], grace=timedelta(days=7), now=now)
    print(days, flush=True)
"""
)
MOVER = (
    PREAMBLE
    + """
from dlplatform.accounts.models import User
from registry import services
from registry.models import RegisteredModel
actor, model = User.objects.get(pk=sys.argv[2]), RegisteredModel.objects.get(pk=sys.argv[3])
store = services.object_store(model.organization_id)
for number in range(100_000):
    stored = store.put_bytes(f"{sys.argv[4]}-{number}".encode() * 2000)
    version = services.commit_version(
        actor=actor, model=model, tree={"w": {"sha256": stored.sha256, "size": stored.size}}, task="", signature={},
        metrics={}, lineage={}, message="m",
    )
    for kind, name in (("alias", "production"), ("branch", "side"), ("tag", f"t{sys.argv[4]}-{number}")):
        services.move_ref(actor=actor, model=model, kind=kind, name=name, version=version)
    services.roll_back(actor=actor, model=model, kind="alias", name="production")
    print(version.pk, flush=True)
"""
)


def killed_after(program, *arguments, seconds, answers=0):
    """Run a program and kill it a while after it has begun and printed `answers` lines; the lines that it printed.

    PostgreSQL ends a statement whose sender is dead, a COMMIT too: what is in the database is settled when it has let go.
    """
    name = f"killed {uuid4()}"
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "dlplatform.settings", "SECRET_KEY": "x", "PGAPPNAME": name,
        "DATABASE_URL": _address_of_the_test_database(), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "at work\n"
    first = [process.stdout.readline() for _ in range(answers)]
    assert _is_connected(name) or not answers
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    lines = [line.strip() for line in [*first, *process.stdout] if line.endswith("\n")]
    process.wait()
    eventually(lambda: not _is_connected(name))
    return lines


def _is_connected(name):
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s)", [name])
        return cursor.fetchone()[0]


@pytest.mark.slow
def test_a_collector_killed_at_any_moment_removes_nothing_that_is_needed(store, tmp_path):
    generator = random.Random(3)
    for _ in range(10):
        kept = aged(store, tmp_path)
        # The first passes are those that have something to do.
        killed_after(
            COLLECTOR, store.storage.location, store.scope.organization, *kept,
            seconds=generator.uniform(0, 0.1), answers=generator.randint(0, 2),
        )  # fmt: skip
        assert_whole(store)
        assert all(store.read(sha256) for sha256 in kept)


def stored_in(store, content):
    stored = store.put_bytes(content)
    return {"sha256": stored.sha256, "size": stored.size}


@pytest.mark.slow
def test_whoever_commits_and_moves_refs_may_be_killed_at_any_moment(organization, maintainer):
    model = factories.RegisteredModelFactory(organization=organization)
    store = services.object_store(organization.pk)
    first = services.commit_version(
        actor=maintainer, model=model, tree={"w": stored_in(store, b"first")}, task="", signature={}, metrics={}, lineage={},
        message="m",
    )  # fmt: skip
    services.move_ref(actor=maintainer, model=model, kind="alias", name="production", version=first)  # to roll back to
    generator, answered = random.Random(4), []
    for kill in range(10):
        answered += killed_after(
            MOVER, store.storage.location, maintainer.pk, model.pk, kill,
            seconds=generator.uniform(0, 0.2), answers=generator.randint(0, 3),
        )  # fmt: skip
        replayed = {}
        for move in RefMove.objects.filter(model=model).order_by("id"):
            assert replayed.get((move.kind, move.name)) == move.from_version_id, "no gap in the log"
            replayed[move.kind, move.name] = move.to_version_id
        assert replayed == {(ref.kind, ref.name): ref.version_id for ref in Ref.objects.filter(model=model)}
        for version in ModelVersion.objects.filter(model=model):
            assert store.read(version.tree["w"]["sha256"])
    known = {str(pk) for pk in model.versions.values_list("pk", flat=True)}
    assert len(answered) >= 10 and set(answered) <= known, "what was answered is there"
    numbers = sorted(model.versions.values_list("number", flat=True))
    assert numbers == list(range(1, len(numbers) + 1))
