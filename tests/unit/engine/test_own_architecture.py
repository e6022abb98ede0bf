"""Architectures of users' own in the engine's loop, and the object that scripts talk to. Here without a sandbox."""

import json
import signal
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlplatform.engine import package
from dlplatform.engine.config import ConfigError, parse_config
from dlplatform.engine.denials import failure_of
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.events import SPOOL, read_events
from dlplatform.engine.network import NetworkShape
from dlplatform.engine.predict import Predictor
from dlplatform.engine.preprocessing import InputSizes
from dlplatform.engine.run import run_job
from dlplatform.engine.sandboxed import run_script
from dlplatform.engine.scripting import ScriptRun
from dlplatform.engine.user_code import Classes, CodeNetwork, load_build, started_from
from tests.fixtures import own_code


def job(folder, source, entry="model.py", task="classification", **config):
    random = np.random.default_rng(0)
    x, c = random.normal(size=120), random.choice(["a", "b"], 120)
    label = np.where(x + (c == "a") > 0, "yes", "no") if task == "classification" else x * 2
    (folder / "data").mkdir(parents=True)
    (folder / "code").mkdir()
    (folder / "code" / entry).write_text(source)
    pq.write_table(pa.table({"x": x, "c": c, "y": label}), folder / "data" / "p.parquet")
    spec = {
        "format": 1, "run": "r", "attempt": 1, "task": task, "target": "y", "entry": entry, "features": None,
        "columns": [{"name": "x", "type": "number"}, {"name": "c", "type": "category"},
                    {"name": "y", "type": "category" if task == "classification" else "number"}],
        "data": ["data/p.parquet"], "config": {"architecture": "code", "threads": 1, "params": {}, **config},
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def trained(folder, **config):
    job(folder, own_code.ARCHITECTURE, **({"epochs": 3} | config))
    assert run_job(folder) == 0, read_events(folder / SPOOL)[0][-1]
    return folder


def events(folder, kind):
    return [event for event in read_events(folder / SPOOL)[0] if event["type"] == kind]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_it_trains_saves_its_code_and_predicts_where_it_may(tmp_path, task):
    folder = job(tmp_path, own_code.ARCHITECTURE, task=task, epochs=3, params={"width": 4})
    assert run_job(folder) == 0, events(folder, "failed")
    assert (folder / "output" / "code" / "model.py").read_text() == own_code.ARCHITECTURE
    with pytest.raises(PackageError, match="only in a sandbox"):
        package.load(folder / "output")
    answers = Predictor(folder / "output", sandboxed=True).predict(
        [{"x": 1.0, "c": "a"}, {"x": 2.0, "c": "never seen"}]
    )
    assert len(answers) == 2


def test_a_stopped_run_ends_with_the_same_bytes(tmp_path):
    config = {"epochs": 6, "checkpoint_seconds": 0.05, "early_stopping": False}
    whole = trained(tmp_path / "whole", **config)
    parts = job(tmp_path / "parts", own_code.ARCHITECTURE, **config)
    for epoch in (2, 4):
        spec = json.loads((parts / "spec.json").read_text())
        (parts / "spec.json").write_text(json.dumps(spec | {"stop_after_epoch": epoch}))
        assert run_job(parts) == 75
    (parts / "spec.json").write_text(json.dumps({**spec, "stop_after_epoch": None}))
    assert run_job(parts) == 0
    assert (whole / "output/model.safetensors").read_bytes() == (parts / "output/model.safetensors").read_bytes()


def test_code_and_the_architecture_go_together(tmp_path):
    folder = job(tmp_path, own_code.ARCHITECTURE, architecture="mlp")
    assert run_job(folder) == 1 and events(folder, "failed")[0]["code"] == "bad_config"
    with pytest.raises(ConfigError):
        parse_config({"architecture": "code", "params": {"not a name": 1}}, "classification")
    assert parse_config({"architecture": "code", "params": {"any": [1]}}, "classification").params == {"any": [1]}


def test_a_package_with_altered_code_is_damaged(tmp_path):
    output = trained(tmp_path) / "output"
    (output / "code" / "model.py").write_text("raise SystemExit")
    with pytest.raises(PackageError, match="damaged"):
        package.verify(output)


@pytest.fixture
def bare():
    """A script changes this process: its streams, its modules, its signals."""
    kept = sys.stdout, sys.stderr, sys.argv, list(sys.path), signal.getsignal(signal.SIGTERM)
    yield
    sys.stdout, sys.stderr, sys.argv, sys.path[:], handler = kept
    signal.signal(signal.SIGTERM, handler)


def script(folder, source, **config):
    job(folder, source, entry="main.py", **config)
    return run_script(folder, json.loads((folder / "spec.json").read_text()))


def test_a_script_reports_saves_and_finishes(tmp_path, bare):
    source = """
import torch
from dlp_run import run
assert run.data.table().num_rows == 120 and run.target == "y" and run.features == ["x", "c"]
assert run.params == {"lr": 0.1} and not run.should_stop and run.latest_checkpoint() is None
for step in range(1, 4):
    run.log(loss=torch.tensor(1 / step), step=step)
    run.log(accuracy=0.5, step=step)
    run.progress(step, 3)
run.log(loss=float("nan"))
print("part", end="")
with run.checkpoint(3) as folder:
    (folder / "a.txt").write_text("a")
run.save({"w": torch.zeros(2)}, metrics={"loss": 0.25}, card="# Card")
"""
    assert script(tmp_path, source, params={"lr": 0.1}) == 0
    assert [(one["step"], one["values"]) for one in events(tmp_path, "metric")][:2] == [
        (1, {"loss": 1.0}), (1, {"accuracy": 0.5}),
    ]  # fmt: skip
    assert events(tmp_path, "metric")[-1]["values"] == {"loss": None} and events(tmp_path, "metric")[-1]["step"] == 4
    assert events(tmp_path, "finished")[0]["metrics"] == {"loss": 0.25}
    assert events(tmp_path, "checkpoint")[0]["step"] == 3 and "part" in [
        one["message"] for one in events(tmp_path, "log")
    ]
    assert (tmp_path / "output" / "metrics.json").exists()


def test_a_resumed_script_reports_no_step_twice_and_finds_the_newest_whole_checkpoint(tmp_path, bare):
    job(tmp_path, "", entry="main.py")
    spec = json.loads((tmp_path / "spec.json").read_text())
    run = ScriptRun(tmp_path, spec)
    for step in (1, 2, 3, 4):
        run.log(loss=step, step=step)
        with run.checkpoint(step) as folder:
            (folder / "n").write_text(str(step))
    run.close()
    (tmp_path / "checkpoints/step-000004/n").write_text("damaged")
    again = ScriptRun(tmp_path, spec)
    assert again.latest_checkpoint()[0] == 3
    again.log(loss=9, step=4)
    again.log(loss=5, accuracy=1, step=5)
    again.log(accuracy=1, step=4)
    again.close()
    assert [one["step"] for one in events(tmp_path, "metric")] == [1, 2, 3, 4, 5]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_an_unfinished_checkpoint_does_not_count(tmp_path, bare):
    job(tmp_path, "", entry="main.py")
    run = ScriptRun(tmp_path, json.loads((tmp_path / "spec.json").read_text()))
    with pytest.raises(ZeroDivisionError), run.checkpoint(1):
        1 / 0  # noqa: B018
    assert run.latest_checkpoint() is None
    for wrong in ({"loss": "high"}, {"x" * 200: 1.0}):
        with pytest.raises(ValueError, match="metric"):
            run.log(**wrong)
    with pytest.raises(ValueError, match="step"):
        run.log(loss=1, step=-1)
    run.close()


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("raise KeyError('a')", "code_error"), ("import sys; sys.exit(4)", "code_error"), ("x = 1", "code_error"),
        ("raise PermissionError(13, 'no')", "not_permitted"), ("open('/nowhere/at/all')", "not_permitted"),
        ("raise MemoryError", "memory_limit"), ("raise OSError(28, 'full')", "disk_limit"),
        ("raise BlockingIOError(11, 'again')", "process_limit"), ("open('missing')", "code_error"), ("1 +", "code_error"),
    ],
)  # fmt: skip
def test_every_way_to_fail_has_its_name(tmp_path, bare, source, code):
    assert script(tmp_path, source) == 1
    failed = events(tmp_path, "failed")[0]
    assert failed["code"] == code and failed["sentence"].startswith("main.py") and failed["next_step"]


def test_a_script_that_is_asked_to_stop_leaves_with_the_code_of_an_interruption(tmp_path, bare):
    source = """
import os, signal
from dlp_run import run
os.kill(os.getpid(), signal.SIGTERM)
while not run.should_stop: pass
"""
    assert script(tmp_path, source) == 75


def test_an_engine_error_goes_through_unchanged():
    from dlplatform.engine.denials import guarded

    def fails():
        raise EngineError("nan_loss", "It is not a number.")

    with pytest.raises(EngineError, match="not a number"):
        guarded("model.py", fails)
    assert failure_of("x", RuntimeError("DefaultCPUAllocator: can't allocate memory")).code == "memory_limit"


GROWING = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.body = nn.Linear(inputs, 5)
        self.answer = nn.Linear(5, outputs)
        self.mixed = nn.Parameter(torch.randn(3, outputs))
        self.square = nn.Parameter(torch.randn(outputs, outputs))

    def forward(self, given):
        return self.answer(torch.relu(self.body(given["numbers"]))) + 0 * (self.mixed.sum() + self.square.sum())

def build(schema, **params):
    return Net(schema.numbers, schema.outputs)
"""


def test_classes_that_a_base_knows_keep_what_it_learned_of_them(tmp_path):
    """Whatever the code calls its head and however its tensors lie."""
    (tmp_path / "model.py").write_text(GROWING)
    build, inputs = load_build(tmp_path), InputSizes(2, (), (), 0)

    def network(outputs):
        torch.manual_seed(outputs)
        return CodeNetwork(NetworkShape("code", 1, 1, outputs, inputs, kind="class"), build, {})

    base, grown, before = network(2), network(3), network(3)
    for name in ("center", "inverse_scale", "known"):
        getattr(base.encoder, name).fill_(1)
    fresh = started_from(grown, base, Classes(["a", "b"], ["a", "b", "c"]))
    found, new, old = grown.state_dict(), before.state_dict(), base.state_dict()
    assert torch.equal(found["model.answer.weight"][:2], old["model.answer.weight"])
    assert torch.equal(found["model.answer.weight"][2], new["model.answer.weight"][2])
    assert torch.equal(found["model.answer.bias"][:2], old["model.answer.bias"])
    assert torch.equal(found["model.mixed"][:, :2], old["model.mixed"])
    assert torch.equal(found["model.mixed"][:, 2], new["model.mixed"][:, 2])
    assert torch.equal(
        found["model.square"], new["model.square"]
    )  # of two axes nobody knows which is that of the classes
    assert torch.equal(found["model.body.weight"], old["model.body.weight"])
    assert set(fresh) == {"model.answer", "model"}

    anew = network(3)  # as runs did that recorded nothing of it
    assert set(started_from(anew, base, Classes([], ["a", "b", "c"]))) == {"model.answer", "model"}
    assert torch.equal(anew.state_dict()["model.answer.weight"], new["model.answer.weight"])

    same = network(2)
    assert started_from(same, base, Classes(["a", "b"], ["a", "b"])) == []
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in old.items())
