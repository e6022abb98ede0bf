"""The life of a run: success, cancel, resume, crash, stall, drain, lost lease, database away."""

import os
import signal
import time
from datetime import timedelta

import psutil
import pytest
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection
from django.db.models import F

from dlplatform import jobs
from dlplatform.api import Conflict
from dlplatform.jobs import LeaseLost
from registry.models import ModelVersion, Ref
from registry.services import object_store
from tests.integration.conftest import LONG, QUICK
from training import services, states
from training.job_directories import job_directory, sweep_job_directories
from training.jobs import train
from training.models import MetricPoint, MetricSeries, Run, RunEvent
from training.orchestrator import Orchestrator

pytestmark = pytest.mark.django_db(transaction=True)


def engines():
    """Processes of engines: forks of this process that work inside a job directory."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "jobs" in child.cwd() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.Error:
            continue
    return found


def under_way(run, least=3):
    return lambda: Run.objects.get(pk=run.pk).state == "running" and Run.objects.get(pk=run.pk).epoch >= least


def weights(run):
    run.refresh_from_db()
    return run.output_version.tree["model.safetensors"]["sha256"]


def points(run):
    rows = MetricPoint.objects.filter(series__run=run).values_list("series__key", "step", "value")
    return sorted(rows)


def test_a_run_ends_as_a_version_with_its_lineage(queue_run, flowers, trainer):
    run = queue_run()
    train(str(run.pk))
    run.refresh_from_db()
    assert (run.state, run.attempt) == ("succeeded", 1), run.error
    version = run.output_version
    assert version.dataset_version == flowers
    assert version.model.name == "flowers"
    assert version.lineage["run"] == str(run.pk)
    assert version.lineage["seed"] == 3
    assert version.lineage["dataset"]["name"] == "flowers"
    assert version.lineage["versions"]["torch"]
    assert version.author == trainer
    assert {"model.json", "model.safetensors", "README.md"} <= set(version.tree)
    assert Ref.objects.get(model=version.model, kind="branch", name="main").version == version
    store = object_store(run.experiment.organization_id)
    assert b"flowers" in store.read(version.tree["README.md"]["sha256"])
    assert run.evaluation["metrics"] == run.metrics
    assert run.progress == 1.0 and run.finished_at and not job_directory(run).exists()
    assert MetricSeries.objects.get(run=run, key="accuracy").last == run.metrics["accuracy"]


def test_events_are_numbered_without_gap_and_end_with_the_state(queue_run):
    run = queue_run()
    train(str(run.pk))
    run.refresh_from_db()
    events = list(RunEvent.objects.filter(run=run).order_by("sequence"))
    numbers = {event.sequence for event in events}
    numbers |= set(MetricPoint.objects.filter(series__run=run).values_list("sequence", flat=True))
    assert numbers == set(range(1, run.last_sequence + 1))
    assert [event.payload["state"] for event in events if event.type == "state"] == [
        "queued", "running", "succeeded",
    ]  # fmt: skip


def test_a_second_claim_of_the_same_run_does_nothing(queue_run):
    run = queue_run()
    train(str(run.pk))
    train(str(run.pk))
    assert ModelVersion.objects.count() == 1


def test_cancel_stops_a_running_run_within_seconds_and_leaves_nobody(queue_run, trainer, meanwhile):
    run = queue_run(LONG)
    asked = []

    def cancel():
        asked.append(time.monotonic())
        services.cancel_run(actor=trainer, run=Run.objects.get(pk=run.pk))

    meanwhile(under_way(run), cancel)
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "cancelled"
    assert time.monotonic() - asked[0] < 60, "with room for a busy machine"
    assert engines() == []


def test_cancel_of_a_queued_run_is_immediate_and_repeated_cancel_is_a_conflict(queue_run, trainer):
    run = services.cancel_run(actor=trainer, run=queue_run())
    assert run.state == "cancelled"
    with pytest.raises(Conflict):
        services.cancel_run(actor=trainer, run=run)


def test_cancel_by_force_when_the_engine_does_not_listen(queue_run, trainer, meanwhile, monkeypatch):
    monkeypatch.setattr("training.orchestrator.CANCEL_GRACE", 0.5)
    run = queue_run(LONG)

    def freeze_and_cancel():
        engines()[0].send_signal(signal.SIGSTOP)
        services.cancel_run(actor=trainer, run=Run.objects.get(pk=run.pk))

    meanwhile(under_way(run), freeze_and_cancel)
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "cancelled"
    assert engines() == []


def test_a_killed_engine_is_started_again_and_ends_with_the_same_weights_and_metrics(queue_run, meanwhile):
    config = QUICK | {"epochs": 150, "early_stopping": False, "checkpoint_seconds": 0.1, "batch_size": 16}
    quiet = queue_run(config)
    train(str(quiet.pk))
    run = queue_run(config)
    meanwhile(under_way(run, 5), lambda: engines()[0].kill())
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "queued" and run.attempt == 1
    Run.objects.filter(pk=run.pk).update(not_before=None)
    train(str(run.pk))
    assert weights(run) == weights(quiet)
    assert points(run) == points(quiet)
    assert run.attempt == 2


def test_a_run_that_keeps_dying_fails_with_a_name_and_can_be_resumed(queue_run, trainer, meanwhile, monkeypatch):
    # The fork has this too: before its first checkpoint nothing was gained, so this attempt is charged.
    monkeypatch.setattr("dlplatform.engine.training.MINIMUM_GAP", 3600)
    run = queue_run(LONG | {"checkpoint_seconds": 3600})
    Run.objects.filter(pk=run.pk).update(max_attempts=1)
    meanwhile(lambda: engines() and Run.objects.get(pk=run.pk).state == "running", lambda: engines()[0].kill())
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "failed"
    assert run.error["code"] == "crash_loop" and run.error["next_step"]
    resumed = services.resume_run(actor=trainer, run=run)
    assert resumed.state == "queued" and resumed.error is None


def test_a_hung_engine_is_noticed_and_its_stacks_are_in_the_log(queue_run, meanwhile):
    run = queue_run(LONG)
    claimed = Run.claim(run.pk)
    orchestrator = Orchestrator(claimed)
    meanwhile(
        under_way(run), lambda: (claimed.config.update(stall_timeout=1.0), engines()[0].send_signal(signal.SIGSTOP))
    )
    orchestrator.work()
    run.refresh_from_db()
    assert run.state == "queued"
    messages = [event.payload["message"] for event in RunEvent.objects.filter(run=run, type="log")]
    assert any("No progress" in message for message in messages)
    assert engines() == []


def test_a_draining_worker_gives_the_run_back_without_a_charge_and_it_goes_on(queue_run, meanwhile):
    config = QUICK | {"epochs": 150, "early_stopping": False, "checkpoint_seconds": 0.1, "batch_size": 16}
    quiet = queue_run(config)
    train(str(quiet.pk))
    run = queue_run(config)
    meanwhile(under_way(run, 5), lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "queued" and run.failures == 0
    train(str(run.pk))
    assert weights(run) == weights(quiet)


def test_a_worker_that_lost_its_lease_stops_and_writes_nothing_more(queue_run, meanwhile):
    run = queue_run(LONG)
    meanwhile(
        under_way(run),
        lambda: Run.objects.filter(pk=run.pk).update(lease_epoch=F("lease_epoch") + 1, lease_owner="another"),
    )
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "running" and run.lease_owner == "another"
    assert engines() == []
    stale = Run.objects.get(pk=run.pk)
    stale.lease_epoch -= 1
    with pytest.raises(LeaseLost):
        stale.write(progress=0.99)


def test_the_database_may_go_away_during_a_run(queue_run, meanwhile):
    config = QUICK | {"epochs": 150, "early_stopping": False, "batch_size": 16}
    quiet = queue_run(config)
    train(str(quiet.pk))
    run = queue_run(config)

    def backend():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return cursor.fetchone()[0]

    worker = backend()

    def cut():
        """The worker's connection alone: other tests of this process keep theirs in threads."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [worker])

    meanwhile(under_way(run, 5), cut)
    train(str(run.pk))
    assert backend() != worker
    assert weights(run) == weights(quiet)
    assert points(run) == points(quiet)


def test_a_missing_object_fails_the_run_in_words(queue_run, flowers):
    flowers.parts[0]["sha256"] = "f" * 64
    flowers.save()
    run = queue_run()
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "failed" and run.error["code"] == "data_unavailable"


def test_an_engine_error_is_shown_with_its_next_step(queue_run):
    run = queue_run(QUICK | {"learning_rate": 1.0, "architecture": "linear"})
    Run.objects.filter(pk=run.pk).update(target="nowhere")
    run.refresh_from_db()
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "failed"
    assert run.error["code"] == "target_missing" and run.error["sentence"] and run.error["next_step"]


def test_a_damaged_package_is_refused_and_the_run_fails(queue_run, monkeypatch):
    run = Run.claim(queue_run().pk)
    orchestrator = Orchestrator(run)
    conclude = orchestrator._conclude

    def damage():
        weights_file = orchestrator.directory / "output" / "model.safetensors"
        content = bytearray(weights_file.read_bytes())
        content[-1] ^= 1
        weights_file.write_bytes(content)
        conclude()

    monkeypatch.setattr(orchestrator, "_conclude", damage)
    orchestrator.work()
    run.refresh_from_db()
    assert run.state == "failed" and run.error["code"] == "package_rejected"
    assert ModelVersion.objects.count() == 0


def test_the_reconciler_takes_back_what_a_dead_worker_held_and_wakes_what_redis_forgot(queue_run):
    run = queue_run()
    Run.claim(run.pk)
    Run.objects.filter(pk=run.pk).update(lease_expires_at=F("lease_expires_at") - timedelta(minutes=5))
    jobs.connection().flushdb()
    assert jobs.reconcile(Run, give_up=states.give_up) == {"taken_back": 1, "ended": 0, "woken": 1}
    assert jobs.queue("training").get_job_ids() == [str(run.pk)]
    assert jobs.reconcile(Run, give_up=states.give_up) == {"taken_back": 0, "ended": 0, "woken": 0}


def test_the_reconciler_gives_up_after_the_last_attempt_and_honours_a_cancel(queue_run):
    for fields, state in (({"failures": 5}, "failed"), ({"cancel_requested_at": F("queued_at")}, "cancelled")):
        run = queue_run()
        Run.claim(run.pk)
        Run.objects.filter(pk=run.pk).update(lease_expires_at=F("lease_expires_at") - timedelta(minutes=5), **fields)
        jobs.reconcile(Run, give_up=states.give_up)
        run.refresh_from_db()
        assert run.state == state


def test_old_job_directories_are_swept_and_those_of_live_runs_are_kept(queue_run, settings):
    run = queue_run()
    job_directory(run).mkdir(parents=True)
    (settings.JOB_PATH / "00000000-0000-0000-0000-000000000000").mkdir()
    assert sweep_job_directories(timedelta(days=1)) == 1
    assert job_directory(run).exists()


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"target": "nothing"}, "target"),
        ({"task": "regression"}, "target"),
        ({"features": ["kind"]}, "features"),
        ({"features": ["nothing"]}, "features"),
        ({"config": {"epochs": 0}}, "config.epochs"),
        ({"config": {"no_such": 1}}, "config.no_such"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(queue_run, wanted, field):
    with pytest.raises(ValidationError) as refused:
        queue_run(**wanted)
    assert field in refused.value.message_dict
    assert Run.objects.count() == 0


def test_a_viewer_may_not_launch_and_a_clone_keeps_the_choices(queue_run, trainer, viewer, flowers):
    run = queue_run()
    with pytest.raises(PermissionDenied):
        services.clone_run(actor=viewer, run=run)
    clone = services.clone_run(actor=trainer, run=run, config={"epochs": 9})
    assert clone.config == run.config | {"epochs": 9}
    assert clone.cloned_from == run and clone.target == run.target


def test_a_run_by_several_processes_ends_like_any_other(queue_run):
    run = queue_run(QUICK | {"devices": 2, "folds": 1})
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "succeeded", run.error
    assert run.environment["processes"] == 2 and run.output_version is not None
