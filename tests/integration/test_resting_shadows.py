"""A shadow whose process ends again and again is started more and more rarely, at a low priority, and says so."""

import threading
import time
from uuid import uuid4

import psutil
import pytest
from django.urls import reverse

from dlplatform.engine.errors import PackageError
from registry.serving import cache, confined, prediction_log, services
from registry.serving.confined import ConfinedPredictor
from registry.serving.server import resting
from registry.serving.server.resting import Resting, Rests
from registry.serving.services import Wanted
from tests.fixtures.inference import Inference, eventually
from tests.integration.answering import code_of, key_of, value_of
from tests.integration.test_shadows import deployment, kept, versions  # noqa: F401 - fixtures

pytestmark = pytest.mark.django_db(transaction=True)


class Mortal(ConfinedPredictor):
    """A model in a process that dies at each row; how often it was started, and whether as one that yields."""

    started: list[bool] = []

    def __init__(self, yields):
        self.yields, self.alive, self._ready = yields, True, time.monotonic()
        Mortal.started.append(yields)

    alive = True

    def predict(self, instances):
        self.alive = False
        raise PackageError("Its code ended (of itself).")

    def close(self):
        self.alive = False


@pytest.fixture
def mortal(stubs, versions, monkeypatch):  # noqa: F811
    Mortal.started = []
    ours = stubs.loaded

    def loaded(version, *, yields=False):
        return Mortal(yields) if version.pk == versions[1].pk else ours(version)

    monkeypatch.setattr(cache, "loaded", loaded)
    return versions[1].pk


def test_a_shadow_that_dies_at_each_row_rests_and_says_so(
    api, web, viewer, mortal, deployment, inference, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(resting, "FIRST_SECONDS", 30.0)
    key = key_of(viewer)
    models = inference.server.models
    eventually(lambda: models.ready(mortal))
    assert value_of(inference.ask("screening", key)) == 1.0
    eventually(kept)
    assert [one.error for one in kept()] == ["model_unusable"], "it failed at this one"
    assert value_of(inference.ask("screening", key)) == 1.0
    inference.server.watcher.look()
    assert value_of(inference.ask("screening", key)) == 1.0
    eventually(lambda: len(kept()) == 3)
    assert {one.error for one in kept()[1:]} == {"dropped"} and Mortal.started == [True], "not started again"
    with pytest.raises(Resting, match="ended once; it rests for 30 s"):
        models.load(mortal).result(0)
    assert "rests for 30 s" in inference.server.watcher.unloadable[mortal]
    counted = inference.client.get("/metrics").text
    assert f'process_ends_total{{version="{mortal}"}} 1.0' in counted and "resting_shadows 1.0" in counted
    prediction_log.buffer.flush()
    inference.server.telling.tell()
    (told,) = api(viewer).get(f"/api/v1/deployments/{deployment.pk}/shadows").json()
    assert (told["dropped"], told["failed"]) == (2, 1) and told["resting"].startswith("ended 1×, tried again in ")
    page = reverse("deployment", args=[deployment.pk])
    assert "ended 1×, tried again in" in web(viewer).get(page).content.decode()
    with Inference() as other:  # of this one the process has not ended
        eventually(lambda: other.server.models.ready(mortal))
        other.server.telling.tell()
        assert '<span class="tag">1 of 2 ended 1×, tried again in' in web(viewer).get(page).content.decode()


def test_a_live_model_that_dies_is_started_again_at_once(
    maintainer, viewer, mortal, deployment, inference  # noqa: F811
):  # fmt: skip
    """A shadow that becomes live gets a process of full priority before it answers, and its caller the error."""
    key = key_of(viewer)
    eventually(lambda: inference.server.models.ready(mortal))
    services.change_variants(actor=maintainer, deployment=deployment, variants=[Wanted(mortal)])
    deployment.refresh_from_db()
    inference.wait_for(deployment.pk, deployment.revision)
    assert Mortal.started == [True, False]
    for _ in range(3):
        assert code_of(inference.ask("screening", key)) == "model_unusable"
    assert Mortal.started[2:] == [False, False], "each asks it anew"


def test_rests_grow_to_a_minute_and_a_steady_life_ends_them():
    now, version = [0.0], uuid4()
    rests = Rests(lambda: now[0])
    rests.ended(version, 0.0)
    assert rests.refusal(version) is None, "it is no shadow"
    rests.follow({version})
    pauses = []
    for _ in range(9):
        rests.ended(version, 1.0)
        now[0] += 0.5
        before = now[0]
        while rests.refusal(version):
            now[0] += 0.25
        pauses.append(now[0] - before + 0.5)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert rests.told() == {}
    rests.ended(version, 1.0)
    now[0] += 20
    assert rests.told() == {version: "ended 10×, tried again in 40 s"}
    assert "10 times in a row" in str(rests.refusal(version))
    rests.ended(version, resting.STEADY_SECONDS)
    assert rests.told() == {version: "ended 1×, tried again in 1 s"}
    rests.follow(set())
    assert rests.refusal(version) is None


def test_a_sandbox_that_yields_has_a_low_priority(tmp_path, settings, monkeypatch):
    """The warden and the program, each in the session of its own."""
    settings.CACHE_PATH = tmp_path
    loading = threading.Event()

    def expect(self, seconds):
        first = eventually(lambda: psutil.Process(self._process.pid).children(recursive=True)[1:])
        nice = eventually(lambda: [one.nice() for one in first] == [confined.NICE] * len(first))
        assert nice and psutil.Process(self._process.pid).nice() == confined.NICE
        loading.set()

    monkeypatch.setattr(ConfinedPredictor, "_expect", expect)
    package = tmp_path / "package"
    package.mkdir()
    ConfinedPredictor(uuid4(), package, yields=True).close()
    assert loading.is_set()


def test_shadows_that_hang_while_they_load_hold_up_no_live_model(stubs, versions, inference):  # noqa: F811
    live, shadow = versions
    let_go = threading.Event()
    stubs.loads[shadow.pk] = let_go.wait
    models = inference.server.models
    models.follow_shadows({shadow.pk, uuid4()})
    try:
        hanging = [models.load(version) for version in sorted(models.rests.shadows, key=lambda one: one != shadow.pk)]
        assert models.load(live.pk).result(20) is models.ready(live.pk)
        assert not any(one.done() for one in hanging)
    finally:
        let_go.set()


def test_only_an_end_of_a_process_makes_a_shadow_rest_and_its_reason_is_told(stubs, versions, inference):  # noqa: F811
    version = versions[1].pk
    models = inference.server.models
    models.follow_shadows({version})

    def fail(error):
        def raised():
            raise error

        stubs.loads[version] = raised
        models._failed.clear()
        with pytest.raises(type(error)):
            models.load(version).result(20)

    fail(PackageError("model.safetensors is damaged"))
    assert models.rests.refusal(version) is None
    fail(confined.ProcessEnded("Its code did not answer within 300 s."))
    eventually(lambda: models.rests.refusal(version))
    assert "ended once" in str(models.rests.refusal(version)) and "within 300 s" in str(models.rests.refusal(version))
