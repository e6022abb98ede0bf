"""Runs share a machine's GPUs: nobody computes on what another one holds, and who waits gets their turn."""

import json
import os
import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from tests.integration.conftest import QUICK
from training import services
from training.accelerators import leases
from training.accelerators.devices import Device
from training.connection import LocalConnection
from training.jobs import train
from training.models import Accelerator, Preflight, Run, RunEvent
from training.orchestrator import Orchestrator
from training.trying import Trying

pytestmark = pytest.mark.django_db(transaction=True)


def machine(count, busy=()):
    return [Device(f"GPU-{index}", "A model", 8 * 1024**3, busy=index in busy) for index in range(count)]


@pytest.fixture
def has(monkeypatch):
    """``has(2, busy={0})``: what this machine's driver tells from now on."""

    def tell(count, busy=()):
        monkeypatch.setattr(leases, "devices", lambda: machine(count, busy))

    return tell


def claimed(run):
    taken = Run.claim(run.pk)
    assert taken is not None
    return taken


def asking(devices):
    return QUICK | {"devices": devices}


def test_runs_hold_different_devices_and_one_too_many_waits(has, queue_run):
    has(2)
    first, second, third = (claimed(queue_run()) for _ in range(3))
    assert leases.hold(first) == ["GPU-0"] and leases.hold(second) == ["GPU-1"]
    assert leases.hold(third) is None
    leases.give_back(first)
    assert leases.hold(third) == ["GPU-0"]
    assert {(one.uuid, one.run_id) for one in Accelerator.objects.all()} == {("GPU-0", third.pk), ("GPU-1", second.pk)}


def test_a_device_that_another_program_uses_is_not_given(has, queue_run):
    has(2, busy={0})
    assert leases.hold(claimed(queue_run())) == ["GPU-1"]
    assert leases.hold(claimed(queue_run(asking(1)))) is None


def test_a_claim_that_is_over_holds_nothing(has, queue_run):
    """Its worker died: the run went back to the queue, and with that claim its devices are free."""
    has(1)
    dead = claimed(queue_run())
    leases.hold(dead)
    Run.objects.filter(pk=dead.pk).update(lease_epoch=dead.lease_epoch + 1, state="queued")
    assert leases.hold(claimed(queue_run())) == ["GPU-0"]
    leases.give_back(dead)
    assert Accelerator.objects.get().run_id is not None


def test_a_later_run_does_not_take_what_an_earlier_one_waits_for(has, queue_run):
    has(2)
    holder, large, small = claimed(queue_run()), queue_run(asking(2)), queue_run()
    assert leases.hold(holder) == ["GPU-0"]
    train(str(large.pk))
    large.refresh_from_db()
    assert (large.state, large.waits_for) == ("queued", 2)
    assert leases.hold(claimed(small)) is None
    services.cancel_run(actor=large.created_by, run=large)
    assert leases.hold(Run.objects.get(pk=small.pk)) == ["GPU-1"]


def test_a_run_that_waits_says_so_once_and_loses_no_attempt(has, queue_run):
    has(1, busy={0})
    run = queue_run()
    for _ in range(3):
        train(str(run.pk))
        run.refresh_from_db()
        assert (run.state, run.attempt, run.failures, run.phase) == ("queued", 0, 0, "waiting for 1 free device")
        assert run.not_before is not None
        Run.objects.filter(pk=run.pk).update(not_before=None)
    told = [event.payload.get("message") for event in RunEvent.objects.filter(run=run, type="log")]
    assert told == ["The devices of this machine are in use; waiting for 1 free device."]
    has(1)
    train(str(run.pk))
    run.refresh_from_db()
    assert (run.state, run.attempt, run.waits_for) == ("succeeded", 1, None)
    assert Accelerator.objects.get().run_id is None


def test_who_waits_looks_again_as_soon_as_a_device_is_free(has, queue_run, monkeypatch):
    has(1)
    holder, waiting = claimed(queue_run()), queue_run()
    leases.hold(holder)
    train(str(waiting.pk))
    woken = []
    monkeypatch.setattr("dlplatform.jobs.wake", lambda job: woken.append(job.pk))
    leases.give_back(holder)
    waiting.refresh_from_db()
    assert woken == [waiting.pk] and waiting.not_before is None


def test_more_devices_than_any_machine_has_fail_in_words(has, queue_run):
    has(2)
    run = queue_run(asking(3))
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "failed" and run.error["code"] == "too_few_accelerators"
    assert "asks for 3 devices; no machine has more than 2" in run.error["sentence"]


def test_a_larger_machine_that_was_seen_today_is_waited_for(has, queue_run):
    has(2)
    for index in range(4):
        Accelerator.objects.create(
            host="larger", uuid=f"GPU-L{index}", name="A model", memory_bytes=1, seen_at=timezone.now()
        )
    run = queue_run(asking(4))
    train(str(run.pk))
    run.refresh_from_db()
    assert (run.state, run.waits_for) == ("queued", 4)
    Accelerator.objects.filter(host="larger").update(seen_at=timezone.now() - timedelta(days=2), run=None)
    Run.objects.filter(pk=run.pk).update(not_before=None)
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "failed"


def test_a_device_that_is_gone_is_forgotten(has, queue_run):
    has(2)
    leases.hold(claimed(queue_run()))
    has(1)
    leases.hold(claimed(queue_run()))
    assert list(Accelerator.objects.values_list("uuid", flat=True)) == ["GPU-0"]
    has(0)
    assert leases.hold(claimed(queue_run())) == []
    assert not Accelerator.objects.exists()


def test_workers_that_choose_at_the_same_time_choose_differently(has, queue_run):
    has(4)
    runs = [claimed(queue_run()) for _ in range(6)]
    start, held = threading.Barrier(len(runs)), []

    def choose(run):
        try:
            start.wait()
            held.append(leases.hold(run))
        finally:
            connection.close()

    threads = [threading.Thread(target=choose, args=[run]) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given = sorted(one for devices in held if devices for one in devices)
    assert given == [f"GPU-{index}" for index in range(4)] and held.count(None) == 2


def trial_of(run):
    """A claimed preflight of what the run does."""
    made = Preflight.objects.create(
        dataset_version=run.dataset_version,
        task=run.task,
        targets=run.target_names,
        config=run.config,
        created_by=run.created_by,
    )
    taken = Preflight.claim(made.pk)
    assert taken is not None
    return taken


def test_a_trial_and_a_run_hold_different_devices(has, queue_run):
    has(2)
    run, other = claimed(queue_run()), claimed(queue_run())
    trial = trial_of(run)
    assert leases.hold_for_trial(trial) == ["GPU-0"] and leases.hold(run) == ["GPU-1"]
    assert leases.hold(other) is None
    with pytest.raises(leases.TooFew):
        leases.hold_for_trial(trial_of(run))
    leases.give_back(trial)
    assert leases.hold(other) == ["GPU-0"]
    assert Accelerator.objects.get(uuid="GPU-0").preflight is None


def test_a_trial_whose_worker_died_holds_nothing(has, queue_run):
    has(1)
    trial = trial_of(queue_run())
    leases.hold_for_trial(trial)
    Preflight.objects.filter(pk=trial.pk).update(lease_epoch=trial.lease_epoch + 1, state="queued")
    assert leases.hold(claimed(queue_run())) == ["GPU-0"]
    leases.give_back(trial)
    assert Accelerator.objects.get().run_id is not None


def test_a_run_that_waits_for_a_trial_is_woken_by_its_end(has, queue_run, monkeypatch):
    has(1)
    trial, waiting = trial_of(queue_run()), queue_run()
    leases.hold_for_trial(trial)
    train(str(waiting.pk))
    waiting.refresh_from_db()
    assert (waiting.state, waiting.waits_for) == ("queued", 1)
    woken = []
    monkeypatch.setattr("dlplatform.jobs.wake", lambda job: woken.append(job.pk))
    leases.give_back(trial)
    assert woken == [waiting.pk]


def test_a_trial_sees_its_devices_alone_and_frees_them(has, queue_run, monkeypatch):
    has(2, busy={0})
    seen, given_back = [], leases.give_back

    def write_down(directory):
        (directory / "trial.json").write_text(json.dumps({"error": {
            "code": "bad_config", "sentence": os.environ["CUDA_VISIBLE_DEVICES"], "next_step": "."}}))  # fmt: skip
        return 0

    trial = trial_of(queue_run())
    monkeypatch.setattr("training.trying._connection_for", lambda row: LocalConnection(write_down))
    monkeypatch.setattr(leases, "give_back", lambda holder: (seen.append(holder.pk), given_back(holder)))
    Trying(trial).work()
    trial.refresh_from_db()
    assert trial.error["sentence"] == "GPU-1" and seen == [trial.pk]
    assert not Accelerator.objects.exclude(preflight=None).exists()


def test_the_engine_sees_the_devices_of_its_run_alone(has, queue_run):
    has(2)

    def write_down(directory):
        (directory / "seen").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        return 1

    run = claimed(queue_run(asking(2)))
    orchestrator = Orchestrator(run, lambda: LocalConnection(write_down))
    orchestrator.work()
    assert (orchestrator.directory / "seen").read_text() == "GPU-0,GPU-1"
    assert not Accelerator.objects.filter(run__isnull=False).exists()
