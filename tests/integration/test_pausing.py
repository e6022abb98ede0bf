"""A run is set aside and goes on: by a person, and after the epochs that it was to train."""

import pytest

from dlplatform import jobs
from dlplatform.api import Conflict
from tests.integration.conftest import QUICK
from tests.integration.test_run_life import engines, points, under_way, weights
from training import services, states
from training.jobs import train
from training.models import Run, RunEvent

pytestmark = pytest.mark.django_db(transaction=True)
SLOW = QUICK | {"epochs": 150, "early_stopping": False, "checkpoint_seconds": 0.1, "batch_size": 16}


def test_a_running_run_is_paused_and_goes_on_to_the_bit(queue_run, trainer, meanwhile):
    quiet = queue_run(SLOW)
    train(str(quiet.pk))
    run = queue_run(SLOW)
    meanwhile(under_way(run, 5), lambda: services.pause_run(actor=trainer, run=Run.objects.get(pk=run.pk)))
    train(str(run.pk))
    run.refresh_from_db()
    assert (run.state, run.pause_requested_at, run.failures, run.finished_at) == ("paused", None, 0, None)
    assert engines() == []
    assert jobs.reconcile(Run, give_up=states.give_up)["woken"] == 0
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "paused" and run.attempt == 1
    services.resume_run(actor=trainer, run=run)
    train(str(run.pk))
    assert weights(run) == weights(quiet)
    assert points(run) == points(quiet)


def test_a_queued_run_is_paused_at_once_and_only_once(queue_run, trainer):
    run = services.pause_run(actor=trainer, run=queue_run())
    assert run.state == "paused"
    with pytest.raises(Conflict):
        services.pause_run(actor=trainer, run=run)
    assert services.cancel_run(actor=trainer, run=run).state == "cancelled"
    with pytest.raises(Conflict):
        services.pause_run(actor=trainer, run=run)


def test_a_run_pauses_after_its_epochs_and_goes_on_to_the_bit(queue_run, trainer):
    config = QUICK | {"epochs": 9, "early_stopping": False}
    quiet = queue_run(config)
    train(str(quiet.pk))
    run = queue_run(config, stop_after_epoch=2)
    for epochs, until in ((2, 5), (5, None)):
        train(str(run.pk))
        run.refresh_from_db()
        assert run.state == "paused"
        assert len([one for one in points(run) if one[0] == "validation/loss"]) == epochs
        services.resume_run(actor=trainer, run=run, stop_after_epoch=until)
    train(str(run.pk))
    assert weights(run) == weights(quiet) and points(run) == points(quiet)
    told = [one.payload["state"] for one in RunEvent.objects.filter(run=run, type="state").order_by("sequence")]
    assert told.count("paused") == 2 and told[-1] == "succeeded"


def test_the_page_and_the_api_pause_and_continue(queue_run, web, api, trainer, viewer):
    run = queue_run()
    page = web(trainer).get(f"/runs/{run.pk}/").content.decode()
    assert ">Pause</button>" in page
    assert api(viewer).post(f"/api/v1/runs/{run.pk}/pause").status_code == 403
    assert api(trainer).post(f"/api/v1/runs/{run.pk}/pause").json()["state"] == "paused"
    page = web(trainer).get(f"/runs/{run.pk}/").content.decode()
    assert ">Continue</button>" in page and "paused after epoch" in page
    assert [one["id"] for one in api(viewer).get("/api/v1/runs?state=paused").json()["results"]] == [str(run.pk)]
    assert api(trainer).post(f"/api/v1/runs/{run.pk}/resume").json()["state"] == "queued"
    assert web(trainer).post(f"/runs/{run.pk}/pause").status_code == 302
    run.refresh_from_db()
    assert run.state == "paused"
