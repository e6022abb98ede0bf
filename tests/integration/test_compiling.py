"""A version that is compiled where it answers: made by a job, served as it is at first, swapped in, and left so when it fails."""

import fcntl
import os

import pytest
import torch
from django.urls import reverse

from dlplatform.engine.compiling import LOCK
from dlplatform.engine.environment import serving_threads
from dlplatform.engine.optimizing import measuring
from dlplatform.engine.optimizing.report import threads
from registry import optimizations
from registry.jobs import optimize as work
from registry.models import ModelVersion
from registry.serving import cache, services
from registry.serving.batches import request_batch
from registry.serving.jobs import predict_dataset
from registry.serving.server import compiling
from registry.serving.services import Wanted
from tests.fixtures.inference import Inference, eventually
from tests.integration.answering import key_of
from tests.integration.conftest import QUICK
from training.jobs import train

pytestmark = pytest.mark.django_db(transaction=True)
ROW = {"length": 5.1, "width": 3.0, "colour": "red"}


@pytest.fixture
def version(queue_run, monkeypatch):
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    train(str(queue_run(QUICK).pk))
    return ModelVersion.objects.select_related("model", "dataset_version__dataset").get()


def says(inference, version, runtime, reason=""):
    line = f'dlplatform_inference_compiled{{reason="{reason}",runtime="{runtime}",version="{version.pk}"}} 1.0'
    return line in inference.client.get("/metrics").text


@pytest.mark.slow
@pytest.mark.skipif(" " in torch.__file__, reason="torch does not quote what it tells the C++ compiler")
def test_it_answers_at_once_and_compiled_when_that_is_ready(
    version, trainer, maintainer, viewer, web, inference, settings, monkeypatch, caplog
):
    asked = optimizations.request_optimization(actor=trainer, version=version, plans=[{"passes": ["torch-compile"]}])
    with threads(serving_threads()):
        work(str(asked.pk))
        variant = asked.variants.get()
        assert variant.error is None, variant.error
        child = variant.output_version
        assert set(child.tree) == set(version.tree) and variant.graph == ""  # nothing of this machine is in it
        assert variant.report["compile"]["seconds"] > 0 and variant.report["agreement"] == 1.0
        (made,) = (settings.CACHE_PATH / "compiled").glob("*.so")

        # As on a machine where somebody else is still compiling it.
        hidden = made.rename(made.with_suffix(".hidden"))
        key = key_of(viewer)
        with (made.parent / LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            deployment = services.create_deployment(
                actor=maintainer, organization=version.model.organization, name="flowers",
                variants=[Wanted(child.pk)], despite_problems=True, reason="it is measured in little time here",
            )  # fmt: skip
            inference.wait_for(deployment.pk, 1)
            eventually(lambda: inference.client.get("/readyz").status_code == 200)
            before = inference.ask("flowers", key, [ROW])
            assert before.status_code == 200, before.text
            assert says(inference, child, "eager", "compiling")
            page = reverse("deployment", args=[deployment.pk])
            inference.server.telling.tell()
            assert '<span class="tag">being compiled</span>' in web(viewer).get(page).content.decode()
            hidden.rename(made)
        eventually(
            lambda: inference.ask("flowers", key, [ROW]).status_code == 200 and says(inference, child, "compiled")
        )
        assert not says(inference, child, "eager", "compiling")
        inference.server.telling.tell()
        assert '<span class="tag">compiled</span>' in web(viewer).get(page).content.decode()
        assert inference.server.models.ready(child.pk).run.__class__.__name__ == "CompiledRunner"
        after = inference.ask("flowers", key, [ROW] * 40).json()["predictions"]
        one = before.json()["predictions"][0]
        assert len(after) == 40 and {each["label"] for each in after} == {one["label"]}
        assert after[0]["probabilities"] == pytest.approx(one["probabilities"], abs=1e-4)
        assert inference.server.models.cache.sizes[child.pk] > made.stat().st_size
        assert cache.loaded(child).predict([ROW])[0]["label"] == one["label"]
        caplog.set_level("INFO", "registry.serving.batch_runtime")
        batch = request_batch(actor=trainer, version=child, dataset_version=version.dataset_version, name="all rows")
        predict_dataset(str(batch.pk))
        batch.refresh_from_db()
        assert batch.state == "succeeded" and f"batch prediction {batch.pk}: answered compiled" in caplog.text

        made.unlink()
        monkeypatch.setenv("CXX", "false")
        with Inference() as other:
            other.wait_for(deployment.pk, 1)
            eventually(lambda: says(other, child, "eager", "not_compiled"), 120)
            assert other.ask("flowers", key, [ROW]).json()["predictions"] == [one]
        assert "answers uncompiled: The network could not be compiled." in caplog.text
        monkeypatch.setenv("CXX", "no-such-compiler")
        with Inference() as other:
            other.wait_for(deployment.pk, 1)
            eventually(lambda: says(other, child, "eager", "no_compiler"))
            other.server.telling.tell()
            seen = web(viewer).get(page).content.decode()
            assert "1 of 2 compiled; 1 of 2 not compiled: There is no C++ compiler" in seen
            assert other.ask("flowers", key, [ROW]).json()["predictions"] == [one]
    assert os.listdir(made.parent) and not list(made.parent.glob("work-*"))


def test_without_a_compiler_it_is_refused_here_and_told_by_a_worker_elsewhere(version, trainer, api, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    address = f"/api/v1/model-versions/{version.pk}/optimizations"
    answer = api(trainer).post(address, {"variants": [{"passes": ["torch-compile"]}]}, format="json")
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "variants.0.passes"
    assert "apt-get install g++" in answer.json()["errors"][0]["detail"]

    monkeypatch.setattr("dlplatform.jobs.others_work", lambda: True)
    plans = [{"passes": ["torch-compile"]}, {"passes": ["int8"]}]
    asked = optimizations.request_optimization(actor=trainer, version=version, plans=plans)
    work(str(asked.pk))
    first, second = asked.variants.all()
    assert first.output_version is None and first.error["code"] == "no_compiler"
    assert "apt-get install g++" in first.error["next_step"]
    assert second.output_version is not None


# --- graphs of what is asked much --------------------------------------------------------------------------


@pytest.fixture
def ensemble(queue_run):
    """A network of many small operations, as tables have by default."""
    config = QUICK | {"architecture": "tabm", "folds": 1, "params": {"members": 4, "width": 32}}
    train(str(queue_run(config).pk))
    return ModelVersion.objects.select_related("model", "dataset_version__dataset").get()


@pytest.fixture
def asked_often(settings):
    settings.SERVE_AS_GRAPH_AFTER = 5


def deployed(version, actor, inference):
    deployment = services.create_deployment(
        actor=actor, organization=version.model.organization, name="flowers", variants=[Wanted(version.pk)]
    )
    inference.wait_for(deployment.pk, 1)
    eventually(lambda: inference.client.get("/readyz").status_code == 200)
    return deployment


def runner_of(inference, version):
    return inference.server.models.ready(version.pk).run.__class__.__name__


def test_what_is_asked_much_answers_as_a_graph(
    ensemble, asked_often, maintainer, viewer, web, inference, settings, monkeypatch
):
    monkeypatch.setattr(compiling, "LEAST", {1: 0.0})  # how fast it is here is not the question
    deployment, key = deployed(ensemble, maintainer, inference), key_of(viewer)
    before = inference.ask("flowers", key, [ROW]).json()["predictions"]
    assert runner_of(inference, ensemble) == "TorchRunner"
    size = inference.server.models.cache.sizes[ensemble.pk]

    def as_a_graph():
        assert inference.ask("flowers", key, [ROW]).status_code == 200
        return says(inference, ensemble, "graph")

    eventually(as_a_graph, 120)
    assert runner_of(inference, ensemble) == "GraphRunner"
    after = inference.ask("flowers", key, [ROW] * 40).json()["predictions"]
    assert len(after) == 40 and after[0]["label"] == before[0]["label"]
    assert after[0]["probabilities"] == pytest.approx(before[0]["probabilities"], abs=1e-4)
    (made,) = (settings.CACHE_PATH / "compiled").glob("*.onnx")
    assert inference.server.models.cache.sizes[ensemble.pk] == size + made.stat().st_size
    inference.server.telling.tell()
    seen = web(viewer).get(reverse("deployment", args=[deployment.pk])).content.decode()
    assert '<span class="tag">as a graph</span>' in seen
    assert ModelVersion.objects.count() == 1  # it is no version

    monkeypatch.setattr("dlplatform.engine.compiling.Compiler._compile", None)  # another process finds what was made
    with Inference() as other:
        other.wait_for(deployment.pk, 1)
        eventually(lambda: other.ask("flowers", key, [ROW]).status_code == 200 and says(other, ensemble, "graph"), 60)


def test_what_gains_nothing_or_cannot_be_a_graph_goes_on_as_it_is(
    ensemble, asked_often, maintainer, viewer, web, inference, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="registry.serving.server.compiling")
    monkeypatch.setattr(compiling, "LEAST", {1: 0.0, 8: 1e9})
    deployment, key = deployed(ensemble, maintainer, inference), key_of(viewer)
    first = inference.ask("flowers", key, [ROW]).json()["predictions"]

    def told(inference, sentence):
        answer = inference.ask("flowers", key, [ROW])
        assert answer.status_code == 200 and answer.json()["predictions"] == first
        return sentence in caplog.text

    eventually(lambda: told(inference, "gains nothing as a graph"), 120)
    assert runner_of(inference, ensemble) == "TorchRunner" and not says(inference, ensemble, "graph")

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr("dlplatform.engine.compiling.Compiler.found", broken)
    with Inference() as other:
        other.wait_for(deployment.pk, 1)
        eventually(lambda: told(other, "is not made a graph: no space left"), 60)
        other.server.telling.tell()
    seen = web(viewer).get(reverse("deployment", args=[deployment.pk])).content.decode()
    assert "as a graph" not in seen and "not compiled" not in seen  # nobody asked for it


def test_only_requests_count_and_whoever_joins_is_tried_at_once(
    ensemble, queue_run, settings, maintainer, viewer, monkeypatch
):
    settings.SERVE_AS_GRAPH_AFTER = 5
    with Inference() as inference:
        begun = []
        monkeypatch.setattr(inference.server.models.compiling, "_begin", lambda version, *_: begun.append(version))
        deployment, key = deployed(ensemble, maintainer, inference), key_of(viewer)
        headers = {"Authorization": f"Bearer {key}"}
        for _ in range(10):
            inference.server.watcher.look()
            assert inference.client.get("/v2/models/flowers/ready", headers=headers).status_code == 200
        for _ in range(4):
            assert inference.ask("flowers", key, [ROW]).status_code == 200
        assert begun == []
        for _ in range(5):
            assert inference.ask("flowers", key, [ROW]).status_code == 200
        assert begun == [ensemble.pk]

        run = queue_run(QUICK | {"architecture": "tabm", "folds": 1, "seed": 9, "params": {"members": 4, "width": 32}})
        train(str(run.pk))
        run.refresh_from_db()
        both = [Wanted(ensemble.pk), Wanted(run.output_version_id, 0.0)]
        services.change_variants(actor=maintainer, deployment=deployment, variants=both)
        inference.wait_for(deployment.pk, 2)
        eventually(lambda: inference.server.models.ready(run.output_version_id))
        assert inference.ask("flowers", key, [ROW]).status_code == 200
        assert begun == [ensemble.pk, run.output_version_id]


def test_it_is_never_made_a_graph_where_the_settings_say_so(ensemble, settings, maintainer, viewer, monkeypatch):
    settings.SERVE_AS_GRAPH_AFTER = 0
    with Inference() as inference:
        monkeypatch.setattr(inference.server.models.compiling, "_begin", lambda *_: pytest.fail("it was begun"))
        deployed(ensemble, maintainer, inference)
        key = key_of(viewer)
        for _ in range(20):
            assert inference.ask("flowers", key, [ROW]).status_code == 200
        assert runner_of(inference, ensemble) == "TorchRunner"
