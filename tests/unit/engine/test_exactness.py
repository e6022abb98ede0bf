"""A run killed at any moment and resumed ends with the same bytes as one that was left alone."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlplatform.engine.run import run_job
from tests.unit.engine.conftest import (
    classification_columns,
    mixed_columns,
    read_spool,
    regression_columns,
    start_engine,
)
from tests.unit.engine.test_modalities import image_job, texts
from tests.unit.engine.transformers_bases import tiny_bert, tiny_images

CHECKPOINT = b'"type":"checkpoint"'
# More of them by hand: EXACTNESS_KILLS=20 pytest tests/unit/engine/test_exactness.py
KILLS = int(os.environ.get("EXACTNESS_KILLS", "1"))
EPOCHS = 80 * KILLS  # long enough for each of them to come before the end, on a fast machine too
CONFIG = {
    "epochs": 60,  # long enough for three signals on a fast machine
    "threads": 1,
    "folds": 2,
    "batch_size": 8,
    "log_interval": 5,
    "early_stopping": False,
    "checkpoint_seconds": 0.05,
    "params": {"members": 4, "width": 32, "dropout": 0.2},
}


def weights(job_dir: Path) -> str:
    return hashlib.sha256((job_dir / "output" / "model.safetensors").read_bytes()).hexdigest()


def metric_points(job_dir: Path) -> list[tuple[Any, ...]]:
    points = read_spool(job_dir, "metric")
    return [(event["step"], event["epoch"], event["values"]) for event in points]


def run_with_kills(job_dir: Path, kills: int, seed: int, number: int = signal.SIGKILL) -> int:
    """Start the engine again and again, each time sending a signal: mostly some time after a new checkpoint, now and then at
    any moment from its start to about then. Returns the number of signals that ended it: one that comes as it ends by itself does not
    count."""
    chance, until_checkpoint = random.Random(seed), 4.0
    for delivered in range(kills + 20):
        spool = job_dir / "events.jsonl"
        before = spool.read_bytes().count(CHECKPOINT) if spool.exists() else 0
        process = start_engine(job_dir)
        if delivered < kills:
            if delivered % 4 == 2:
                time.sleep(chance.uniform(0.0, until_checkpoint))
            else:
                began = time.monotonic()
                wait_for_checkpoint(job_dir, process, before + 1)
                until_checkpoint = time.monotonic() - began
                time.sleep(chance.uniform(0.0, 0.1))
            process.send_signal(number)
        code = process.wait(timeout=180)
        if code == 0:
            return delivered
        assert code in (-signal.SIGKILL, 75)
    raise AssertionError("the run never ended")


def wait_for_checkpoint(job_dir: Path, process: Any, number: int) -> None:
    """Until the spool holds that many ``checkpoint`` events."""
    spool = job_dir / "events.jsonl"
    while process.poll() is None:
        if spool.exists() and spool.read_bytes().count(CHECKPOINT) >= number:
            return
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "columns", "target"),
    [("classification", classification_columns, "y"), ("regression", regression_columns, "z")],
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_runs_end_with_the_same_bytes(
    job: Callable[..., Path], task: str, columns: Callable[[], Any], target: str, number: int
) -> None:
    settings = {"task": task, "target": target, "config": CONFIG}
    whole = job(columns(), name="whole", **settings)
    assert start_engine(whole).wait(timeout=180) == 0
    broken = job(columns(), name="broken", **settings)

    assert run_with_kills(broken, kills=3, seed=number, number=number) >= 2

    resumed = [event["resumed_from"] for event in read_spool(broken, "started")]
    assert len([step for step in resumed if step]) >= 2
    assert weights(broken) == weights(whole)
    assert metric_points(broken) == metric_points(whole)
    for name in ("model.json", "evaluation.json", "manifest.json"):
        assert (broken / "output" / name).read_bytes() == (whole / "output" / name).read_bytes()
    sequences = [event["sequence"] for event in read_spool(broken)]
    assert sequences == list(range(1, len(sequences) + 1))


DEEP = {
    "epochs": EPOCHS,
    "threads": 1,
    "batch_size": 8,
    "log_interval": 5,
    "early_stopping": False,
    "checkpoint_seconds": 0.05,
    "params": {"image_width": 8, "text_width": 16, "text_heads": 2, "dropout": 0.2},
}


def deep_job(job: Callable[..., Path], kind: str, name: str, **overrides: Any) -> Path:
    """Rows of one kind of input, with an encoder and dropout."""
    config = {**DEEP, "architecture": "mlp", "text_encoder": "transformer"}
    if kind == "image":
        return image_job(job, 40, name, **{"config": config, **overrides})
    if kind == "language":
        _, said = texts(40)["review"]
        columns = {"asked": ("text", [text[:20] for text in said]), "said": ("text", said)}
        writing = {**DEEP, "params": {"text_width": 16, "text_layers": 1, "text_heads": 2}, "text_length": 32}
        task = {"task": "language-model", "target": "said", "features": ["asked"]}
        return job(columns, name=name, **{"config": writing, **task, **overrides})
    columns = texts(40) if kind == "text" else mixed_columns(40)
    table = {**CONFIG, "epochs": EPOCHS}
    return job(columns, name=name, **{"config": config if kind == "text" else table, **overrides})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "text", "table", "language"])
@pytest.mark.parametrize("mode", ["scratch", "full", "head", "lora"])
def test_every_kind_of_training_is_exact_after_kills(job: Callable[..., Path], kind: str, mode: str) -> None:
    overrides: dict[str, Any] = {}
    base = deep_job(job, kind, "base")
    if mode != "scratch":
        assert run_job(base) == 0
        staged = {"unfreeze_every": 2} if mode == "head" else {}
        overrides = {"finetune": {"mode": mode, **staged}}
        overrides["config"] = {key: value for key, value in DEEP.items() if key != "params"}
    jobs = [deep_job(job, kind, name, **overrides) for name in ("whole", "broken")]
    for made in jobs:
        if mode != "scratch":
            shutil.copytree(base / "output", made / "base")
    whole, broken = jobs
    assert start_engine(whole).wait(timeout=180) == 0

    assert run_with_kills(broken, kills=KILLS, seed=len(kind + mode)) == KILLS

    for path in (whole / "output").iterdir():
        assert (broken / "output" / path.name).read_bytes() == path.read_bytes(), path.name
    assert metric_points(broken) == metric_points(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mode"), [("bert", "full"), ("bert", "head"), ("bert", "lora"), ("resnet", "full"), ("vit", "lora")]
)
def test_a_transformers_base_is_exact_after_kills(
    job: Callable[..., Path], tmp_path: Path, kind: str, mode: str
) -> None:
    base = tiny_bert(tmp_path / kind) if kind == "bert" else tiny_images(tmp_path / kind, kind)
    config = {**{key: value for key, value in DEEP.items() if key != "params"}, "epochs": 2 * EPOCHS}
    staged = {"unfreeze_every": 2} if mode == "head" else {}

    def make(name: str) -> Path:
        asked = {"config": config, "finetune": {"mode": mode, **staged}}
        made = job(texts(40), name=name, **asked) if kind == "bert" else image_job(job, 40, name, **asked)
        shutil.copytree(base, made / "base")
        return made

    jobs = [make(name) for name in ("whole", "broken")]
    whole, broken = jobs
    assert start_engine(whole).wait(timeout=180) == 0

    assert run_with_kills(broken, kills=KILLS, seed=len(mode)) == KILLS

    assert [event["resumed_from"] for event in read_spool(broken, "started")][-1]
    for path in (whole / "output").iterdir():
        assert (broken / "output" / path.name).read_bytes() == path.read_bytes(), path.name
    assert metric_points(broken) == metric_points(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "image", "language"])
def test_architectures_that_start_from_nothing_are_exact_after_kills(job: Callable[..., Path], kind: str) -> None:
    # Epochs enough for the kill to come before the end: the run tells of its first checkpoint when that is on the disk.
    config = {**{key: value for key, value in DEEP.items() if key != "params"}, "epochs": 4 * EPOCHS}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}

    def make(name: str) -> Path:
        if kind == "image":
            vit = {"model_type": "vit", **sizes, "patch_size": 4, "hidden_dropout_prob": 0.1}
            return image_job(job, 40, name, config={**config, "image_model": vit, "image_size": 16})
        if kind == "text":
            return job(texts(40), name=name, config={**config, "text_model": {"model_type": "bert", **sizes}})
        settings = {**config, "text_model": {"model_type": "llama", **sizes}, "text_length": 16}
        return job({"review": texts(40)["review"]}, name=name, task="language-model", target="review", config=settings)

    whole, broken = make("whole"), make("broken")
    assert start_engine(whole).wait(timeout=180) == 0

    assert run_with_kills(broken, kills=KILLS, seed=len(kind)) == KILLS

    assert [event["resumed_from"] for event in read_spool(broken, "started")][-1]
    for path in (whole / "output").iterdir():
        assert (broken / "output" / path.name).read_bytes() == path.read_bytes(), path.name
    assert metric_points(broken) == metric_points(whole)


def test_a_damaged_checkpoint_is_skipped(job: Callable[..., Path]) -> None:
    whole = job(classification_columns(60), name="whole", config=CONFIG)
    broken = job(classification_columns(60), name="broken", config=CONFIG)
    assert run_job(whole) == 0
    assert run_job(broken) == 0
    found = sorted((broken / "checkpoints").iterdir())
    newest = found[-1] / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    (broken / "output" / "model.safetensors").write_bytes(b"")

    assert run_job(broken) == 0

    messages = [event["message"] for event in read_spool(broken, "log")]
    assert any("damaged checkpoint was skipped" in message and "SHA-256" in message for message in messages)
    assert read_spool(broken, "started")[-1]["resumed_from"] < int(found[-1].name.removeprefix("step-"))
    assert weights(broken) == weights(whole)
    assert metric_points(broken) == metric_points(whole)
