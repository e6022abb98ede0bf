"""Runs with code of users' own: they train and make versions; hostile ones are stopped, named, and harm nothing."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
from django.conf import settings as configured
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection

from dlplatform.accounts.models import Membership
from registry.models import ModelVersion
from registry.services import object_store
from registry.serving.cache import loaded
from tests.fixtures import own_code
from training import code, services
from training.job_directories import job_directory
from training.jobs import train
from training.models import MetricPoint, Run, RunEvent

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces"),
]


@pytest.fixture
def coder(trainer, organization):
    """The trainer, with the permission."""
    Membership.objects.filter(user=trainer, organization=organization).update(may_run_code=True)
    return trainer


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


def ended(run):
    train(str(run.pk))
    run.refresh_from_db()
    return run


def log_of(run):
    lines = RunEvent.objects.filter(run=run, type="log").order_by("sequence")
    return "\n".join(line.payload["message"] for line in lines)


def survivors(run):
    """Processes that belong to the run: by their user where there is one of its own, else by their command."""
    from dlplatform.sandbox.process import user_for

    found = []
    for process in psutil.process_iter():
        try:
            mine = process.uids().real == user_for(run.pk) != os.geteuid() or str(run.pk) in " ".join(process.cmdline())
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def under_way(run, step=1):
    return lambda: MetricPoint.objects.filter(series__run=run, step__gte=step).exists()


# --- good code --------------------------------------------------------------------------------------------


def test_an_architecture_trains_in_the_ordinary_loop_and_comes_out_the_same_again(queue_code):
    files = {"model.py": own_code.ARCHITECTURE}
    wanted = {"epochs": 4, "importance": True, "seed": 5}
    first, second = (ended(queue_code(files, {"width": 8}, **wanted)) for _ in range(2))
    assert first.state == "succeeded", (first.error, log_of(first))
    version = first.output_version
    assert version.tree["code/model.py"] == first.code.tree["model.py"]
    assert version.lineage["code"]["digest"] == first.code.digest
    assert version.signature["output"]["classes"] == ["a", "b", "c"]
    assert first.evaluation["metrics"]["accuracy"] > 0.5 and first.metrics["accuracy"] > 0.5
    assert version.tree["model.safetensors"] == second.output_version.tree["model.safetensors"]
    assert b"architecture of its own" in object_store(version.model.organization_id).read(
        version.tree["README.md"]["sha256"]
    )
    assert not job_directory(first).exists() and survivors(first) == []


def test_such_a_model_answers_from_a_sandbox_and_nowhere_else(queue_code):
    from dlplatform.engine.errors import PackageError, PredictionInputError
    from dlplatform.engine.predict import Predictor
    from registry.serving.cache import package_directory

    version = ended(queue_code({"model.py": own_code.ARCHITECTURE}, epochs=4)).output_version
    with pytest.raises(PackageError, match="only in a sandbox"):
        Predictor(package_directory(version))
    predictor = loaded(version)
    try:
        answers = predictor.predict([{"length": 5.0, "width": 3.0, "colour": "red"}] * 2)
        assert len(answers) == 2 and set(answers[0]["probabilities"]) == {"a", "b", "c"}
        with pytest.raises(PredictionInputError) as refused:
            predictor.predict([{"length": "long", "width": 1.0, "colour": "red"}])
        assert refused.value.column == "length"
        assert predictor.alive
    finally:
        predictor.close()
    version.tree["code/model.py"]["sha256"] = "0" * 64
    with pytest.raises(PackageError):
        loaded(version)
    version.lineage.pop("code")
    with pytest.raises(PackageError):
        loaded(version)


def test_a_script_makes_a_version_with_its_metrics_log_and_lineage(queue_code):
    run = ended(queue_code({"main.py": own_code.SCRIPT, "requirements.txt": "torch>=2\nnumpy  # any"}, {"steps": 12}))
    assert run.state == "succeeded", (run.error, log_of(run))
    version = run.output_version
    assert {"model.safetensors", "metrics.json", "README.md", "code/main.py"} <= set(version.tree)
    assert version.lineage["code"]["entry"] == "main.py" and version.lineage["dataset"]["name"] == "flowers"
    assert version.lineage["tensors"] == 2
    assert run.metrics.keys() == {"loss"} and "ready" in log_of(run)
    steps = MetricPoint.objects.filter(series__run=run, series__key="loss").values_list("step", flat=True)
    assert list(steps.order_by("step")) == list(range(1, 13))
    assert MetricPoint.objects.filter(series__run=run, series__key="accuracy").count() == 12


def test_a_killed_script_goes_on_from_its_checkpoint_and_reports_every_step_once(queue_code, meanwhile):
    quiet = ended(queue_code(own_code.SCRIPT, {"steps": 40}))
    run = queue_code(own_code.SCRIPT, {"steps": 40, "slow": 0.05})
    meanwhile(under_way(run, 12), lambda: [one.kill() for one in survivors(run)])
    ended(run)
    assert run.state == "queued", run.error
    Run.objects.filter(pk=run.pk).update(not_before=None)
    ended(run)
    assert run.state == "succeeded", (run.error, log_of(run))
    assert "goes on after step" in log_of(run)
    weights = [one.output_version.tree["model.safetensors"]["sha256"] for one in (run, quiet)]
    assert weights[0] == weights[1]
    points = [
        list(MetricPoint.objects.filter(series__run=one).order_by("series__key", "step").values_list("step", "value"))
        for one in (run, quiet)
    ]
    assert points[0] == points[1]


def test_a_script_that_listens_is_paused_after_a_checkpoint_and_continued(queue_code, coder, meanwhile):
    run = queue_code(own_code.SCRIPT, {"steps": 60, "slow": 0.05})
    meanwhile(under_way(run, 3), lambda: services.pause_run(actor=coder, run=Run.objects.get(pk=run.pk)))
    assert ended(run).state == "paused", run.error
    services.resume_run(actor=coder, run=run)
    assert ended(run).state == "succeeded", (run.error, log_of(run))
    assert "goes on after step" in log_of(run)


# --- hostile code -----------------------------------------------------------------------------------------


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
    deadline = time.monotonic() + 30
    while not under_way(run)() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert survivors(run)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    deadline = time.monotonic() + 5
    while survivors(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert survivors(run) == []


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


# --- who may, and what is refused before it is queued -------------------------------------------------------


def test_no_role_implies_the_permission_and_it_can_be_taken_back(queue_code, coder, admin_user, organization, flowers):
    admin_user.is_superuser = True
    admin_user.save()
    with pytest.raises(PermissionDenied, match="permission of its own"):
        code.add_code(actor=admin_user, organization=organization, filename="main.py", content=b"x = 1")
    run = queue_code("print(1)")
    Membership.objects.filter(user=coder).update(may_run_code=False)
    assert ended(run).error["code"] == "code_not_permitted"
    for act in (
        lambda: services.resume_run(actor=coder, run=run),
        lambda: services.clone_run(actor=coder, run=run),
        lambda: services.create_run(
            actor=coder, dataset_version=flowers, task="classification", target="kind", code=run.code
        ),
    ):
        with pytest.raises(PermissionDenied, match="permission of its own"):
            act()


def test_a_machine_that_cannot_confine_runs_nothing(queue_code, monkeypatch):
    monkeypatch.setattr("dlplatform.sandbox.process.sys.platform", "darwin")
    run = ended(queue_code("open('/tmp/ran', 'w')"))
    assert run.error["code"] == "sandbox_unavailable" and "Linux" in run.error["sentence"] + run.error["next_step"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no-such-library>=1", "not installed"),
        ("torch>=99", "is wanted and"),
        ("-r other.txt", "no plain requirement"),
        ("thing @ https://example.com/thing.whl", "nothing is fetched"),
    ],
)
def test_requirements_that_are_not_met_are_named_before_queueing(queue_code, line, told):
    with pytest.raises(ValidationError) as refused:
        queue_code({"main.py": "x = 1", "requirements.txt": line})
    assert told in str(refused.value.message_dict["code"]) and Run.objects.count() == 0


def test_requirements_that_do_not_apply_here_are_passed_over(queue_code):
    assert queue_code({"main.py": "x = 1", "requirements.txt": 'nothing; sys_platform == "win32"\n\n# why'}).pk


@pytest.mark.parametrize(
    ("files", "entry", "config", "field"),
    [
        ({"main.py": "", "model.py": ""}, "", {}, "entry"),
        ({"other.py": ""}, "", {}, "entry"),
        ({"main.py": ""}, "gone.py", {}, "entry"),
        ({"main.py": ""}, "", {"architecture": "mlp"}, "config.architecture"),
        ({"main.py": ""}, "", {"devices": 2}, "config.devices"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(queue_code, files, entry, config, field):
    with pytest.raises(ValidationError) as refused:
        queue_code(files, entry=entry, **config)
    assert field in refused.value.message_dict


def test_the_architecture_code_needs_code(flowers, coder):
    with pytest.raises(ValidationError) as refused:
        services.create_run(
            actor=coder, dataset_version=flowers, task="classification", target="kind", config={"architecture": "code"}
        )
    assert "config.architecture" in refused.value.message_dict


@pytest.mark.parametrize(
    "source",
    [
        "def build(schema): return 3",
        "def build(schema): raise KeyError('x')",
        "x = 1",
        "import torch\nclass N(torch.nn.Module):\n    def forward(self, i): return i['numbers']\ndef build(schema): return N()",
        "import torch\ndef build(schema): return torch.nn.Linear(1, 1)",
        "syntax error",
    ],
)
def test_a_wrong_architecture_fails_with_its_reason(queue_code, source):
    run = ended(queue_code({"model.py": source}, epochs=1))
    assert run.state == "failed" and run.error["code"] in ("code_error", "code_missing"), run.error
