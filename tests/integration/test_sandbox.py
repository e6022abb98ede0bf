"""Hostile code in real sandboxes: it is stopped, named, and harms nothing."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from django.conf import settings as configured
from django.db import connection

from registry.models import ModelVersion
from tests.fixtures import own_code
from tests.fixtures.inference import eventually
from tests.integration.coding import ended, log_of, survivors, under_way
from training import services
from training.job_directories import job_directory
from training.jobs import train
from training.models import Run

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces"),
]


@pytest.fixture
def small(settings, monkeypatch):
    """An installation that allows little, so that its limits are soon met."""
    settings.SANDBOX_MEMORY_MB = 512
    settings.SANDBOX_DISK_MB = 64
    settings.SANDBOX_PROCESSES = 48
    settings.SANDBOX_SECONDS = 20
    monkeypatch.setattr("training.confined.MOST_FILES", 2_000)
    monkeypatch.setattr("training.confined.MOST_REPORTED", 8 << 20)
    return settings


@pytest.mark.parametrize("attack", own_code.ATTACKS)
def test_hostile_code_is_stopped_and_named_and_harms_nothing(queue_code, small, tmp_path, attack):
    secret = job_directory(Run(pk=None)).parent / "other" / "secret"
    secret.parent.mkdir(parents=True)
    secret.write_text("SECRET_OF_ANOTHER")
    listening = socket.create_server(("127.0.0.1", 0))
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(Path(os.environ.get("TMPDIR", "/tmp")) / f"own-code-{os.getpid()}"))
    source, named = own_code.ATTACKS[attack]
    places = {
        "secret": secret,
        "jobs": secret.parent.parent,
        "socket": local.getsockname(),
        "port": listening.getsockname()[1],
    }
    try:
        run = queue_code(source.format(**places))
        began = time.monotonic()
        ended(run)
    finally:
        listening.close()
        local.close()
        os.unlink(places["socket"])
    assert (run.state, run.error["code"]) == ("failed", named), (run.error, log_of(run))
    assert run.error["sentence"] and run.error["next_step"]
    assert ("Correct what the code writes" in run.error["next_step"]) == (named == "package_rejected")
    assert time.monotonic() - began < 60
    assert "SECRET_OF_ANOTHER" not in log_of(run) and configured.SECRET_KEY not in log_of(run)
    assert survivors(run) == [] and ModelVersion.objects.count() == 0
    assert secret.read_text() == "SECRET_OF_ANOTHER"


def test_code_that_ignores_every_signal_is_cancelled_within_fifteen_seconds_with_no_survivors(
    queue_code, coder, meanwhile
):
    run = queue_code(own_code.IGNORES)
    asked = []

    def cancel():
        asked.append(time.monotonic())
        assert len(survivors(run)) >= 3
        services.cancel_run(actor=coder, run=Run.objects.get(pk=run.pk))

    meanwhile(under_way(run), cancel)
    assert ended(run).state == "cancelled"
    assert time.monotonic() - asked[0] < 15
    assert survivors(run) == []


def test_nothing_of_a_sandbox_survives_its_worker(queue_code, coder):
    run = queue_code(own_code.IGNORES)
    connection.close()
    worker = os.fork()
    if worker == 0:
        train(str(run.pk))
        os._exit(0)
    eventually(under_way(run), 120)
    assert survivors(run)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    eventually(lambda: not survivors(run), 60)


def test_what_an_attempt_left_behind_does_not_lead_the_next_one_astray(queue_code, coder, tmp_path):
    """Links in place of the mount points and of the spool: the worker follows none of them."""
    outside = tmp_path / "outside"
    outside.mkdir()
    run = queue_code("import os\nos._exit(3)")
    ended(run)
    work = job_directory(run) / "work"
    (work / "events.jsonl").unlink(missing_ok=True)
    for name, target in (("events.jsonl", outside / "spool"), ("stacks.txt", "/etc/passwd")):
        (work / name).unlink(missing_ok=True)
        (work / name).symlink_to(target)
    for name in ("data", "code"):
        (work / name).rmdir()
        (work / name).symlink_to(outside)
    (work / "spec.json").unlink()
    (work / "spec.json").symlink_to(outside / "spec")
    services.resume_run(actor=coder, run=run)
    ended(run)
    assert run.state == "failed" and list(outside.iterdir()) == []


def test_forged_events_break_neither_the_run_nor_its_page(queue_code, web, viewer):
    forged = """
import json
from dlp_run import run
lines = [
    [], 5, {"type": "metric"}, {"sequence": "a", "type": "log", "message": "x", "level": "info"},
    {"sequence": 10**30, "type": "log", "level": "info", "message": "x"},
    {"sequence": 100, "time": "soon", "type": "log", "level": "<b>", "message": "<script>alert(1)</script>\\u0000\\ud800"},
    {"sequence": 101, "type": "started", "environment": [], "threads": 1, "device": "", "resumed_from": None,
     "parameters": 1, "rows": {}, "config": {"params": 3}},
    {"sequence": 102, "type": "started", "environment": {"a": {"b": "c"}}, "threads": 1, "device": "x",
     "resumed_from": None, "parameters": 1, "rows": {"train": 1}, "config": {"params": {"p": [1]}}},
    {"sequence": 103, "type": "metric", "step": 1, "epoch": 0, "values": {"loss": "high"}},
    {"sequence": 104, "type": "metric", "step": 1, "epoch": 0, "values": {"loss": 1e400, "": 2}},
    {"sequence": 105, "type": "finding", "code": "x", "severity": "y", "sentence": "z", "next_step": "", "change": [1]},
    {"sequence": 106, "type": "state", "state": "succeeded"},
    {"sequence": 107, "type": "failed", "code": "nonsense", "sentence": "<i>", "next_step": "", "detail": ""},
]
with open("/job/events.jsonl", "a") as spool:
    for line in lines:
        spool.write(json.dumps(line) + "\\n")
    spool.write("[" * 100000 + "\\n")
import os
os._exit(1)
"""
    run = ended(queue_code(forged.replace("\\\\", "\\")))
    assert run.state == "failed" and run.error["code"] == "code_error"
    answer = web(viewer).get(f"/runs/{run.pk}/")
    assert answer.status_code == 200
    assert b"<script>alert" not in answer.content
