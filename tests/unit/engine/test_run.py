"""Whole runs in this process: what they write, and how they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from dlplatform.engine import learning, run
from dlplatform.engine.predict import Predictor
from dlplatform.engine.schema import example_row
from tests.unit.engine.conftest import QUICK, ROOT, Columns, classification_columns, read_spool, start_engine

Job = Callable[..., Path]
NUMBERS = [float(number) for number in range(40)]
YES_NO = ["yes" if number % 3 else "no" for number in range(40)]


def small(**columns: tuple[str, list[Any]]) -> Columns:
    return {"a": ("number", NUMBERS), "y": ("category", YES_NO), **columns}


def evaluation(job_dir: Path) -> dict[str, Any]:
    return json.loads((job_dir / "output" / "evaluation.json").read_text())  # type: ignore[no-any-return]


def test_a_run_tells_its_story(trained: dict[str, Path]) -> None:
    events = read_spool(trained["classification"])
    kinds = [event["type"] for event in events]
    assert kinds[0] == "progress"
    assert kinds[-1] == "finished"
    started = next(event for event in events if event["type"] == "started")
    assert started["threads"] == 1
    assert started["environment"]["versions"]["torch"] == torch.__version__
    assert started["rows"] == {"train": 200, "validation": 200}
    first, *epochs = [event for event in events if event["type"] == "metric"]
    assert first["step"] == 1
    assert set(first["values"]) == {"train/loss", "learning_rate"}
    assert [event["epoch"] for event in epochs] == [0, 1, 2]
    assert {"train/loss", "validation/loss", "validation/accuracy", "learning_rate"} == set(epochs[0]["values"])
    fractions = [event["fraction"] for event in events if event["type"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any(event["type"] == "checkpoint" for event in events)


def test_the_evaluation_of_a_classifier(trained: dict[str, Path]) -> None:
    body = evaluation(trained["classification"])
    assert body["labels"] == ["high", "low"]
    assert sum(map(sum, body["confusion_matrix"])) == body["rows"] == 200
    assert set(body["metrics"]) == {"accuracy", "balanced_accuracy", "f1_macro", "log_loss", "roc_auc"}
    assert {entry["column"] for entry in body["importance"]} == {
        "number", "integer", "flag", "colour", "when", "note",
    }  # fmt: skip
    assert body["baseline"]["kind"] == "majority class"
    assert len(body["worst"]) <= 20
    assert set(body["worst"][0]) == {"row", "actual", "predicted", "probability", "values"}
    assert body["curves"]["recall"][-1] == 1.0


def test_the_evaluation_of_a_regression(trained: dict[str, Path]) -> None:
    body = evaluation(trained["regression"])
    assert set(body["metrics"]) == {"rmse", "mae", "r2"}
    assert body["baseline"]["kind"] == "mean"
    assert sum(body["residual_histogram"]["counts"]) == 200
    worst = body["worst"][0]
    assert worst["error"] == pytest.approx(worst["predicted"] - worst["actual"])


def test_worst_rows_can_be_predicted_again(trained: dict[str, Path]) -> None:
    predictor = Predictor(trained["regression"] / "output")
    assert len(predictor.predict([entry["values"] for entry in evaluation(trained["regression"])["worst"]])) == 20


def test_a_card_is_written(trained: dict[str, Path]) -> None:
    card = (trained["regression"] / "output" / "README.md").read_text()
    assert card.startswith("# Model of z")
    assert "baseline (mean)" in card
    assert "dataset: made for a test" in card


def test_a_finished_job_only_says_so_again(job: Job) -> None:
    job_dir = job(small())
    assert run.run_job(job_dir) == run.run_job(job_dir) == 0
    assert len(read_spool(job_dir, "finished")) == 2
    assert len(read_spool(job_dir, "started")) == 1


@pytest.mark.parametrize("architecture", ["tabm", "mlp", "linear"])
@pytest.mark.parametrize("folds", [1, 3])
def test_every_architecture_learns(job: Job, architecture: str, folds: int) -> None:
    config = {"architecture": architecture, "epochs": 30, "folds": folds, "threads": 1, "batch_size": 16}
    labels = [bool(number > 20) for number in range(40)]
    job_dir = job({"a": ("number", NUMBERS), "y": ("boolean", labels)}, config=config)
    assert run.run_job(job_dir) == 0
    low, high = Predictor(job_dir / "output").predict([{"a": 0}, {"a": 39.0}])
    assert (low["label"], high["label"]) == ("false", "true")
    description = json.loads((job_dir / "output" / "model.json").read_text())
    assert description["output"]["values"] == [False, True]


EDGES: dict[str, tuple[Columns, dict[str, Any]]] = {
    "ten rows": ({"a": ("number", NUMBERS[:10]), "y": ("category", YES_NO[:10])}, {}),
    "ten rows, one part": (
        {"a": ("number", NUMBERS[:10]), "y": ("category", YES_NO[:10])},
        {"config": {"folds": 1, "epochs": 2, "threads": 1}},
    ),
    "a rare class": (small(y=("category", ["rare"] * 2 + ["usual"] * 38)), {}),
    "a class of one row": (small(y=("category", ["rare"] + ["usual"] * 39)), {}),
    "a constant column": (small(c=("number", [3.0] * 40)), {}),
    "an empty column": (small(c=("number", [None] * 40), d=("category", [None] * 40)), {}),
    "an empty text": (small(c=("text", [None] * 40)), {}),
    "categories only": ({"c": ("category", ["u", "v"] * 20), "y": ("category", YES_NO)}, {}),
    "texts only": ({"c": ("text", ["some words", "other words"] * 20), "y": ("category", YES_NO)}, {}),
    "many categories": (small(c=("category", [f"id-{number}" for number in range(40)])), {}),
    "dates": (
        small(c=("datetime", [datetime(1960, 1, 1, tzinfo=UTC) + timedelta(days=900 * n) for n in range(40)])),
        {},
    ),
    "integer classes": (small(y=("integer", [number % 3 - 1 for number in range(40)])), {}),
    "number classes": (small(y=("number", [number % 2 / 2 for number in range(40)])), {}),
    "regression on integers": (small(y=("integer", list(range(40)))), {"task": "regression"}),
    "regression on booleans": (small(y=("boolean", [True, False] * 20)), {"task": "regression"}),
    "a constant number": (small(y=("number", [5.0] * 40)), {"task": "regression"}),
    "enormous numbers": (small(c=("number", [1e300 * n for n in range(40)])), {}),
    "tiny differences": (small(y=("number", [1e9 + n / 1000 for n in range(40)])), {"task": "regression"}),
    "two parts": (small(), {"parts": 2}),
    "chosen features": (small(c=("category", YES_NO)), {"features": ["c"]}),
    "half precision": (small(), {"config": {**QUICK, "precision": "bfloat16"}}),
    "clipped gradients": (small(), {"config": {**QUICK, "max_grad_norm": 1.0}}),
    "balanced": (small(), {"config": {**QUICK, "class_weights": "balanced", "label_smoothing": 0.1}}),
    "constant rate": (small(), {"config": {**QUICK, "schedule": "constant"}}),
    "linear schedule": (small(), {"config": {**QUICK, "schedule": "linear", "importance": False}}),
}


@pytest.mark.parametrize("name", EDGES)
def test_odd_tables_train_and_predict(job: Job, name: str) -> None:
    columns, settings = EDGES[name]
    job_dir = job(columns, **settings)
    assert run.run_job(job_dir) == 0, read_spool(job_dir, "failed")
    predictor = Predictor(job_dir / "output")
    answers = predictor.predict([example_row(predictor.description)])
    assert answers
    assert evaluation(job_dir)["rows"] > 0


def test_labels_keep_their_json_values(job: Job) -> None:
    columns, settings = EDGES["integer classes"]
    job_dir = job(columns, **settings)
    assert run.run_job(job_dir) == 0
    output = json.loads((job_dir / "output" / "model.json").read_text())["output"]
    assert output == {"kind": "class", "classes": ["-1", "0", "1"], "values": [-1, 0, 1]}


def test_rows_without_a_target_are_left_out(job: Job) -> None:
    job_dir = job(small(y=("category", [None] * 5 + YES_NO[5:])))
    assert run.run_job(job_dir) == 0
    assert "5 rows have no value in 'y'" in read_spool(job_dir, "log")[0]["message"]
    assert all(entry["row"] >= 5 for entry in evaluation(job_dir)["worst"])


FAILURES: dict[str, tuple[Columns, dict[str, Any], str]] = {
    "no such target": (small(), {"target": "nothing"}, "target_missing"),
    "an empty target": (small(y=("category", [None] * 40)), {}, "target_missing"),
    "one class": (small(y=("category", ["yes"] * 40)), {}, "single_class"),
    "few rows": ({"a": ("number", NUMBERS[:4]), "y": ("category", YES_NO[:4])}, {}, "too_few_rows"),
    "bad setting": (small(), {"config": {"epochs": 0}}, "bad_config"),
    "unknown task": (small(), {"task": "poetry"}, "bad_config"),
    "unknown format": (small(), {"format": 2}, "bad_config"),
    "words as numbers": (small(), {"task": "regression"}, "bad_data"),
    "a date as target": (small(y=("datetime", [datetime(2026, 1, 1, tzinfo=UTC)] * 40)), {}, "bad_data"),
    "unknown feature": (small(), {"features": ["b"]}, "bad_data"),
    "target as feature": (small(), {"features": ["a", "y"]}, "bad_data"),
    "no features": (small(), {"features": []}, "bad_data"),
    "no columns": (small(), {"columns": []}, "bad_data"),
    "unknown type": (small(), {"columns": [{"name": "y", "type": "sound"}]}, "bad_data"),
    "same name twice": (small(), {"columns": [{"name": "y", "type": "number"}] * 2}, "bad_data"),
    "no files": (small(), {"data": []}, "bad_data"),
    "a file elsewhere": (small(), {"data": ["../../etc/passwd"]}, "bad_data"),
    "too many classes": (
        {"a": ("number", list(map(float, range(1100)))), "y": ("integer", list(range(1100)))},
        {},
        "bad_data",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_have_a_code_and_a_next_step(job: Job, name: str) -> None:
    columns, settings, code = FAILURES[name]
    job_dir = job(columns, **settings)
    assert run.run_job(job_dir) == 1
    (failed,) = read_spool(job_dir, "failed")
    assert failed["code"] == code, failed
    assert failed["sentence"].endswith(".")
    assert failed["next_step"].endswith(".")
    assert not (job_dir / "output").exists()


def test_an_unreadable_spec_is_a_bad_config(job: Job) -> None:
    job_dir = job(small())
    for content in ("{", "[]"):
        (job_dir / "spec.json").write_text(content)
        assert run.run_job(job_dir) == 1
    assert {event["code"] for event in read_spool(job_dir, "failed")} == {"bad_config"}


def test_a_nan_loss_names_its_step_and_keeps_the_last_good_checkpoint(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_dir = job(classification_columns(60), config={**QUICK, "checkpoint_seconds": 0.05, "batch_size": 10})
    original = run.Trainer._train_step

    def poisoned(self: Any, rows: Any) -> Any:
        loss = original(self, rows)
        time.sleep(0.02)
        return loss * float("nan") if self.state.step == 6 else loss

    monkeypatch.setattr(run.Trainer, "_train_step", poisoned)
    assert run.run_job(job_dir) == 1
    (failed,) = read_spool(job_dir, "failed")
    assert failed["code"] == "nan_loss"
    assert "step 7" in failed["sentence"]
    kept = sorted(int(path.name.removeprefix("step-")) for path in (job_dir / "checkpoints").iterdir())
    assert kept[-1] <= 6


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (KeyError("x"), "internal"),
    ],
)
def test_unexpected_errors_are_named(job: Job, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(learning, "read_table", fail)
    job_dir = job(small())
    assert run.run_job(job_dir) == 1
    (failed,) = read_spool(job_dir, "failed")
    assert failed["code"] == code
    assert "Traceback" in failed["detail"]


def test_a_checkpoint_of_another_run_is_refused(job: Job) -> None:
    job_dir = job(small())
    assert run.run_job(job_dir) == 0
    other = job(small(b=("number", NUMBERS)), name="other")
    (job_dir / "checkpoints").rename(other / "checkpoints")
    assert run.run_job(other) == 1
    assert read_spool(other, "failed")[0]["code"] == "checkpoint_corrupt"


def test_damaged_checkpoints_alone_mean_a_new_start(job: Job) -> None:
    job_dir = job(small())
    assert run.run_job(job_dir) == 0
    for path in (job_dir / "checkpoints").iterdir():
        (path / "manifest.json").write_text("{}")
    (job_dir / "output" / "README.md").unlink()
    assert run.run_job(job_dir) == 0
    messages = " ".join(event["message"] for event in read_spool(job_dir, "log"))
    assert "made again" in messages
    assert "begins again" in messages
    assert read_spool(job_dir, "started")[-1]["resumed_from"] is None


def test_a_term_signal_leaves_a_checkpoint(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job_dir = job(small(), config={**QUICK, "epochs": 50})
    original = run.Trainer._train_step

    def interrupted(self: Any, rows: Any) -> Any:
        if self.state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, rows)

    monkeypatch.setattr(run.Trainer, "_train_step", interrupted)
    assert run.run_job(job_dir) == 75
    assert (job_dir / "checkpoints" / "step-000006").is_dir()
    monkeypatch.undo()
    assert run.run_job(job_dir) == 0
    assert read_spool(job_dir, "started")[-1]["resumed_from"] == 6


def test_a_run_stopped_in_its_first_epoch_goes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**QUICK, "batch_size": 4}
    whole, job_dir = job(small(), name="whole", config=config), job(small(), config=config)
    assert run.run_job(whole) == 0
    original = run.Trainer._train_step

    def interrupted(self: Any, rows: Any) -> Any:
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, rows)

    monkeypatch.setattr(run.Trainer, "_train_step", interrupted)
    assert run.run_job(job_dir) == 75
    monkeypatch.undo()
    assert run.run_job(job_dir) == 0
    assert read_spool(job_dir, "started")[-1]["resumed_from"] == 3
    weights = [(each / "output" / "model.safetensors").read_bytes() for each in (whole, job_dir)]
    assert weights[0] == weights[1]


def test_a_signal_while_loading_needs_no_checkpoint(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    original = learning.read_table

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(learning, "read_table", interrupted)
    job_dir = job(small())
    assert run.run_job(job_dir) == 75
    assert not (job_dir / "checkpoints").exists()


def test_stacks_are_dumped_on_request(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    original = learning.read_table

    def asked(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*arguments)

    monkeypatch.setattr(learning, "read_table", asked)
    job_dir = job(small())
    assert run.run_job(job_dir) == 0
    assert "run_job" in (job_dir / "stacks.txt").read_text()


def test_the_command_line(job: Job) -> None:
    job_dir = job(small())
    assert start_engine(job_dir).wait(timeout=240) == 0
    wrong = subprocess.run([sys.executable, "-m", "dlplatform.engine"], cwd=ROOT, capture_output=True, check=False)
    assert wrong.returncode == 2
    assert b"usage" in wrong.stderr


FORK = """
import os, sys, time
from pathlib import Path
from dlplatform.engine.run import run_job, warm_up
warm_up()
child = os.fork()
if not child:
    os._exit(run_job(Path(sys.argv[1])))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_warm_parent_forks_a_child_with_two_threads(job: Job) -> None:
    job_dir = job(classification_columns(500), config={**QUICK, "threads": 2, "params": {"width": 256}})
    done = subprocess.run([sys.executable, "-c", FORK, str(job_dir)], cwd=ROOT, timeout=240, check=False)
    assert done.returncode == 0
    assert read_spool(job_dir, "started")[0]["threads"] == 2
