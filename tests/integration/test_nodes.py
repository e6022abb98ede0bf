"""Runs on several machines, from the leader's side and from another's; `tests/e2e/test_nodes.py` has both at work."""

import shutil
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db.models.functions import Now
from django.utils import timezone

from dlplatform.objects.storages import files_below
from tests.integration.conftest import LONG, QUICK
from tests.integration.test_run_life import points, under_way, weights
from training import kept_checkpoints, services
from training.job_directories import job_directory, node_directory, sweep_job_directories
from training.jobs import join_run, train
from training.models import Node, Run, RunEvent
from training.nodes import gathering, machines
from training.nodes.gathering import Gathering, TooFewMachines

pytestmark = pytest.mark.django_db(transaction=True)

TWO = QUICK | {"nodes": 2}


@pytest.fixture
def known(monkeypatch):
    """``known(name=idle workers, …)``: what the workers' register tells from now on; this machine is always there."""

    def tell(**others):
        found = {"here": 1, **others}
        monkeypatch.setattr(gathering, "machines", lambda: dict(found))
        monkeypatch.setattr(kept_checkpoints, "machines", lambda: dict(found))

    tell()
    return tell


@pytest.fixture(autouse=True)
def named(settings):
    settings.NODE_NAME = "here"


def claimed(run):
    taken = Run.claim(run.pk)
    assert taken is not None
    return taken


def hosts(run):
    return list(Node.objects.filter(run=run).order_by("rank").values_list("host", flat=True))


def test_a_run_waits_for_machines_and_says_so_once(queue_run, known):
    run = queue_run(TWO)
    for _ in range(2):
        Run.objects.filter(pk=run.pk).update(not_before=None)
        train(str(run.pk))
    run.refresh_from_db()
    assert (run.state, run.attempt, run.failures) == ("queued", 0, 0)
    assert run.phase == "waiting for 2 machines: 1 of 2 machines have workers"
    said = RunEvent.objects.filter(run=run, type="log", payload__message__icontains="waits")
    assert said.count() == 1 and not Node.objects.exists()


def test_idle_machines_are_asked_first_and_silent_ones_last(queue_run, known):
    known(silent=3, busy=0, idle=1, free=2)
    earlier = queue_run(TWO)
    Node.objects.create(run=earlier, run_epoch=1, rank=1, host="silent", state="cancelled")
    run = claimed(queue_run(QUICK | {"nodes": 4}))
    Gathering(run).ask()
    assert hosts(run) == ["free", "idle", "busy"]


def test_one_group_gathers_at_a_time(queue_run, known):
    known(other=1)
    first, second = claimed(queue_run(TWO)), claimed(queue_run(TWO))
    Gathering(first).ask()
    with pytest.raises(TooFewMachines, match="another run gathers"):
        Gathering(second).ask()
    Run.objects.filter(pk=first.pk).update(state="running")
    Gathering(second).ask()


def test_a_machine_that_does_not_become_ready_is_named(queue_run, known, monkeypatch):
    known(other=1)
    monkeypatch.setattr(gathering, "PATIENCE", 0.2)
    run = queue_run(TWO)
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "queued" and run.phase == "waiting for 2 machines: other did not become ready"
    assert Node.objects.get().state == "cancelled"


def test_a_machine_that_failed_or_fell_silent_is_noticed(queue_run, known):
    known(one=1, two=1)
    run = claimed(queue_run(QUICK | {"nodes": 3}))
    group = Gathering(run)
    group.ask()
    assert group.lost() is None
    Node.objects.filter(host="two").update(state="ready", lease_expires_at=Now() - timedelta(seconds=1))
    assert group.lost() == "two is heard of no more"
    Node.objects.filter(host="two").update(lease_expires_at=Now() + timedelta(hours=1))
    Node.objects.filter(host="one").update(state="failed", error={"sentence": "It broke."})
    assert group.lost() == "one: It broke."
    group.dissolve()
    assert Node.objects.get(host="two").cancel_requested_at


def test_what_a_dead_leader_asked_for_is_ended(queue_run, known):
    known(one=1, two=1, three=1)
    run = claimed(queue_run(QUICK | {"nodes": 4}))
    Gathering(run).ask()
    Node.objects.filter(host="two").update(state="running", lease_expires_at=Now() - timedelta(seconds=1))
    Node.objects.filter(host="three").update(state="running", lease_expires_at=Now() + timedelta(hours=1))
    assert gathering.end_orphans() == 0, "the leader lives, and decides"
    Run.objects.filter(pk=run.pk).update(lease_epoch=run.lease_epoch + 1)
    assert gathering.end_orphans() == 2
    assert dict(Node.objects.values_list("host", "state")) == {
        "one": "cancelled", "two": "cancelled", "three": "running",
    }  # fmt: skip


def test_a_machine_comes_late_and_goes_away_again(queue_run, known):
    known(other=1)
    run = claimed(queue_run(TWO))
    Gathering(run).ask()
    node = Node.objects.get()
    assert node.queue_name == "training@other"
    Run.objects.filter(pk=run.pk).update(lease_epoch=run.lease_epoch + 1)
    join_run(str(node.pk))
    node.refresh_from_db()
    assert node.state == "cancelled" and not node_directory(node).exists()


def test_a_machine_prepares_and_is_sent_away(queue_run, known, meanwhile):
    known(other=1)
    run = claimed(queue_run(TWO))
    group = Gathering(run)
    group.ask()
    node = Node.objects.get()
    meanwhile(lambda: Node.objects.get().state == "ready", group.dissolve)
    join_run(str(node.pk))
    node.refresh_from_db()
    assert node.state == "cancelled"
    assert (node_directory(node) / "spec.json").exists()
    Run.objects.filter(pk=run.pk).update(state="failed", finished_at=timezone.now() - timedelta(days=20))
    assert sweep_job_directories(timedelta(days=14)) == 1 and not node_directory(node).exists()


def test_code_of_ones_own_has_one_machine(queue_code):
    with pytest.raises(ValidationError) as refused:
        queue_code("print(1)", nodes=2)
    assert "nodes is 1 for your own code" in str(refused.value)


# --- checkpoints that another machine finds -------------------------------------------------------------


def test_another_machine_goes_on_from_the_kept_checkpoint(queue_run, known, meanwhile):
    """The job directory is gone; the weights and every metric are those of a run that was left alone."""
    config = LONG | {"epochs": 400}
    whole = queue_run(config)
    train(str(whole.pk))
    known(other=1)
    run = queue_run(config)
    meanwhile(under_way(run), lambda: services.pause_run(run=run, actor=run.created_by))
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "paused" and run.kept_checkpoint["step"] > 0
    shutil.rmtree(job_directory(run))
    services.resume_run(run=run, actor=run.created_by)
    train(str(run.pk))
    assert weights(run) == weights(whole) and points(run) == points(whole)
    assert RunEvent.objects.filter(run=run, type="started").last().payload["resumed_from"] > 0
    assert list(files_below(storages["models"], f"checkpoints/{run.pk}")) == []


def test_on_one_machine_nothing_is_copied(queue_run, known, meanwhile):
    run = queue_run(LONG)
    meanwhile(under_way(run), lambda: services.pause_run(run=run, actor=run.created_by))
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "paused" and run.kept_checkpoint is None


def test_a_kept_checkpoint_that_is_damaged_is_passed_over(queue_run, known, meanwhile):
    known(other=1)
    run = queue_run(QUICK)
    storages["models"].save(f"checkpoints/{run.pk}/1-000005/state.json", ContentFile(b"torn"))
    storages["models"].save(f"checkpoints/{run.pk}/1-000005/manifest.json", ContentFile(b"{}"))
    Run.objects.filter(pk=run.pk).update(kept_checkpoint={"step": 5, "folder": f"checkpoints/{run.pk}/1-000005"})
    train(str(run.pk))
    run.refresh_from_db()
    assert run.state == "succeeded"
    assert RunEvent.objects.filter(run=run, type="log", payload__message__icontains="damaged").exists()


def test_kept_checkpoints_of_ended_runs_are_swept(queue_run, known):
    run = queue_run(QUICK)
    for owner in (run.pk, "0c1c9a52-0000-0000-0000-000000000000"):
        storages["models"].save(f"checkpoints/{owner}/1-000005/state.json", ContentFile(b"x"))
    assert kept_checkpoints.sweep(timedelta(days=14)) == 1
    assert list(files_below(storages["models"], f"checkpoints/{run.pk}"))


# --- where a machine is reached ------------------------------------------------------------------------


def test_the_own_address_is_the_one_that_is_set_or_leads_to_valkey(settings):
    assert machines.own_address() == "127.0.0.1"
    settings.REDIS_URL = "unix:///tmp/valkey.sock"
    assert machines.own_address() == "127.0.0.1"
    settings.NODE_ADDRESS = "192.0.2.7"
    assert machines.own_address() == "192.0.2.7"
