"""Two real steps before a run is queued: what they tell, how they fail, and who may."""

import pytest

from datasets.models import DatasetVersion
from tests import factories
from tests.integration.conftest import QUICK, flower_rows
from training import trying
from training.jobs import preflight as work
from training.models import Preflight, Run

pytestmark = pytest.mark.django_db(transaction=True)
WHAT = {"task": "classification", "target": "kind", "config": QUICK}


def tried(api, actor, version, **more):
    answer = api(actor).post("/api/v1/preflights", {"dataset_version": str(version.pk), **WHAT, **more}, format="json")
    assert answer.status_code == 202, answer.content
    work(answer.json()["id"])
    return api(actor).get(f"/api/v1/preflights/{answer.json()['id']}").json()


def test_a_trial_tells_time_memory_and_sizes_and_queues_nothing(flowers, api, trainer, settings):
    told = tried(api, trainer, flowers)
    assert told["state"] == "succeeded", told["error"]
    result = told["result"]
    assert (
        0 < result["seconds_per_step"] < 5 and result["seconds"] >= result["total_steps"] * result["seconds_per_step"]
    )
    assert result["total_steps"] == 3 * -(-result["rows_per_epoch"] // result["batch_size"])
    assert result["trainable"] == result["parameters"] > 0 and result["epochs"] == 3
    assert result["peak_bytes"] > 0 and result["device"] == "cpu" and result["threads"] == 1
    assert not Run.objects.exists()
    assert list(settings.JOB_PATH.iterdir()) == []


def test_the_steps_are_those_that_the_run_takes(flowers, api, trainer, queue_run):
    from training.jobs import train

    run = queue_run(QUICK | {"early_stopping": False})
    train(str(run.pk))
    run.refresh_from_db()
    assert tried(api, trainer, flowers)["result"]["total_steps"] == run.total_steps


def test_more_rows_than_are_tried_are_reckoned_with(organization, tmp_path, api, trainer, monkeypatch):
    monkeypatch.setattr(trying, "MOST_ROWS", 100)
    monkeypatch.setattr(trying, "MOST_IMAGES", 100)
    version = factories.ready_version(factories.DatasetFactory(organization=organization), flower_rows(400), tmp_path)
    result = tried(api, trainer, version, config=QUICK | {"batch_size": 16, "folds": 1})["result"]
    assert result["rows_tried"] == 0.25
    assert result["total_steps"] == pytest.approx(3 * 340 / 16, abs=6)


def test_what_the_engine_refuses_is_told_by_name(organization, tmp_path, api, trainer):
    rows = [{"x": number, "y": "a" if number else ""} for number in range(40)]
    version = factories.ready_version(factories.DatasetFactory(organization=organization), rows, tmp_path)
    DatasetVersion.objects.filter(pk=version.pk).update(profile={})
    told = tried(api, trainer, version, target="y")
    assert (told["state"], told["error"]["code"]) == ("failed", "single_class")
    assert told["error"]["next_step"]


def test_a_trial_that_takes_too_long_is_ended(flowers, api, trainer, monkeypatch):
    monkeypatch.setattr(trying, "PATIENCE", 0.0)
    told = tried(api, trainer, flowers)
    assert (told["state"], told["error"]["code"]) == ("failed", "too_slow")


def test_wrong_choices_are_refused_before_anything_is_tried(flowers, api, trainer):
    answer = api(trainer).post(
        "/api/v1/preflights", {"dataset_version": str(flowers.pk), **WHAT, "target": "nothing"}, format="json"
    )
    assert answer.status_code == 400 and answer.json()["errors"][0]["attr"] == "target"
    assert not Preflight.objects.exists()


def form_of(flowers):
    return {"dataset_version": str(flowers.pk), "task": "classification", "target": "kind",
            "features": ["length", "width", "colour"], "config.architecture": "mlp", "config.threads": "1",
            "config.epochs": "2"}  # fmt: skip


def test_the_form_asks_and_shows_what_was_found(flowers, web, trainer):
    part = web(trainer).post("/preflights", form_of(flowers)).content.decode()
    row = Preflight.objects.get()
    assert f"/preflights/{row.pk}" in part and "every 1s" in part
    work(str(row.pk))
    part = web(trainer).get(f"/preflights/{row.pk}").content.decode()
    assert "Parameters that train" in part and "every 1s" not in part
    assert (
        "nothing-like-this"
        in web(trainer).post("/preflights", form_of(flowers) | {"target": "nothing-like-this"}).content.decode()
    )
    assert "Check first" in web(trainer).get(f"/runs/new?version={flowers.pk}").content.decode()


def test_who_may_try(flowers, api, web, viewer, stranger):
    body = {"dataset_version": str(flowers.pk), **WHAT}
    assert api(viewer).post("/api/v1/preflights", body, format="json").status_code == 403
    assert api(stranger).post("/api/v1/preflights", body, format="json").status_code == 400
    assert web(viewer).post("/preflights", form_of(flowers)).status_code == 403
    assert web(stranger).post("/preflights", form_of(flowers)).status_code == 404
    row = factories.PreflightFactory(dataset_version=flowers)
    assert web(viewer).get(f"/preflights/{row.pk}").status_code == 200
    assert web(stranger).get(f"/preflights/{row.pk}").status_code == 404
