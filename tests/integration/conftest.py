"""Real runs on small data, in this process: the orchestrator here, the engine in a fork as in production."""

import functools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.db import connection

from datasets.models import DatasetVersion
from dlplatform.accounts.models import Membership, Organization, User
from dlplatform.valkey import shared_connection
from registry.serving import cache, prediction_log
from registry.serving import client as serving_client
from tests import factories
from tests.fixtures import own_code
from tests.fixtures.inference import Inference, Stubs, eventually
from training import code, services
from training.connection import LocalConnection
from training.models import Run

# One thread: this process may have used torch before, and a fork does not inherit its pool of threads.
QUICK = {"architecture": "mlp", "epochs": 3, "threads": 1, "importance": False, "seed": 3}
LONG = QUICK | {"epochs": 10_000, "early_stopping": False, "checkpoint_seconds": 0.2, "batch_size": 16}


def flower_rows(count: int = 240) -> list[dict[str, Any]]:
    generator = random.Random(5)
    rows = []
    for index in range(count):
        kind = index % 3
        rows.append(
            {
                "length": round(generator.gauss(5 + kind, 0.5), 2),
                "width": round(generator.gauss(3 - kind / 2, 0.3), 2),
                "colour": generator.choice(["red", "blue"]),
                "kind": "abc"[kind],
            }
        )
    return rows


@pytest.fixture
def inference(transactional_db, monkeypatch):
    """The inference server, which the web side of this process asks. Records are written when the test says so."""
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)  # its threads keep no connection
    monkeypatch.setattr(prediction_log, "buffer", prediction_log.RecordBuffer(thread=False))
    with Inference() as running:
        monkeypatch.setattr(prediction_log.buffer, "flush", running.after_answers(prediction_log.buffer.flush))
        asking = httpx.Client(base_url=running.address, trust_env=False, timeout=20)
        monkeypatch.setattr(serving_client, "_client", lambda: asking)
        yield running
        asking.close()


@pytest.fixture
def stubs(monkeypatch) -> Stubs:
    made = Stubs()
    monkeypatch.setattr(cache, "loaded", made.loaded)
    return made


@pytest.fixture(autouse=True)
def empty_queues() -> None:
    """What an earlier test queued and nobody worked on is not there; this process has a Valkey database of its own."""
    shared_connection().flushdb()


@functools.cache
def _warm_up() -> None:
    from dlplatform.engine.run import warm_up  # only here: most tests need no torch

    warm_up()


@pytest.fixture(autouse=True)
def warm_before_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker of the platform is: what a first step does only once, it has done before the first fork.

    Every run of a cold process would import for seconds in its fork.
    """
    start = LocalConnection.start

    def warmed(connection: LocalConnection, *given: Any, **more: Any) -> None:
        _warm_up()
        start(connection, *given, **more)

    monkeypatch.setattr(LocalConnection, "start", warmed)


@pytest.fixture
def flowers(organization: Organization, tmp_path: Path) -> DatasetVersion:
    dataset = factories.DatasetFactory(organization=organization, name="flowers")
    folder = tmp_path / "flowers"
    folder.mkdir()
    return factories.ready_version(dataset, flower_rows(), folder, number=1)


@pytest.fixture
def queue_run(flowers: DatasetVersion, trainer: User) -> Callable[..., Run]:
    """``queue_run(config, …)``: a queued run on the flowers."""

    def make(config: dict[str, Any] | None = None, **more: Any) -> Run:
        wanted = {"task": "classification", "target": "kind"} | more
        return services.create_run(actor=trainer, dataset_version=flowers, config=config or QUICK, **wanted)

    return make


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., None]]:
    """``meanwhile(condition, act)``: in a thread, do something once a condition on the database holds.

    The test fails where the condition never held or the deed went wrong.
    """
    pool = ThreadPoolExecutor()
    started: list[Future[None]] = []

    def start(condition: Callable[[], Any], act: Callable[[], Any]) -> None:
        def work() -> None:
            try:
                eventually(condition, seconds=120, pause=0.05)
                act()
            finally:
                connection.close()

        started.append(pool.submit(work))

    yield start
    pool.shutdown()
    for one in started:
        one.result()


@pytest.fixture
def coder(trainer, organization):
    """The trainer, with the permission."""
    Membership.objects.filter(user=trainer, organization=organization).update(may_run_code=True)
    return trainer


@pytest.fixture
def queue_code(coder, organization, flowers):
    """``queue_code(source or {path: source}, params)``: a queued run with code, on the flowers."""

    def make(source, params=None, entry="", **config):
        files = source if isinstance(source, dict) else {"main.py": source}
        bundle = code.add_code(
            actor=coder, organization=organization, filename="code.zip", content=own_code.zipped(files)
        )
        return services.create_run(
            actor=coder, dataset_version=flowers, task="classification", target="kind", code=bundle, entry=entry,
            config={"params": params or {}, "threads": 1, **config},
        )  # fmt: skip

    return make
