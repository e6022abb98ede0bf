"""Each finding provoked by a small run, healthy runs without any, and nothing said twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import nn

from dlplatform.engine import checkup
from dlplatform.engine.config import parse_config
from dlplatform.engine.doctor import Doctor
from dlplatform.engine.run import prepare_arrays, run_job
from dlplatform.engine.vision import FoldedResNet
from dlplatform.engine.vitals import Memory, memory_of, silent_units
from tests.unit.engine.conftest import Columns, classification_columns, read_spool, regression_columns

Job = Callable[..., Path]
PLAIN = {"threads": 1, "importance": False}
WILD = {
    "architecture": "mlp",
    "learning_rate": 1.0,
    "epochs": 20,
    "early_stopping": False,
    "schedule": "constant",
    "warmup": 0,
}
MEMORISING = {
    "architecture": "mlp", "folds": 1, "epochs": 60, "early_stopping": False, "learning_rate": 0.01,
    "params": {"width": 128, "dropout": 0.0},
}  # fmt: skip


def noise(rows: int = 200, columns: int = 10, seed: int = 0) -> Columns:
    """Columns that have nothing to do with the target."""
    random = np.random.default_rng(seed)
    made: Columns = {f"x{index}": ("number", random.normal(size=rows).tolist()) for index in range(columns)}
    return {**made, "y": ("category", [str(code) for code in random.integers(0, 2, rows)])}


def found(job_dir: Path) -> dict[str, dict[str, Any]]:
    findings = read_spool(job_dir, "finding")
    assert len({one["code"] for one in findings}) == len(findings)
    return {one["code"]: one for one in findings}


def doctor(**config: Any) -> Doctor:
    settled = {"epochs": 100, "batch_size": 64, "learning_rate": 0.003, "weight_decay": 0.01}
    return Doctor(parse_config({**settled, **config}, "classification"), reference=0.7, rows=100)


def test_a_wild_learning_rate_diverges_and_a_third_of_it_is_suggested(job: Job) -> None:
    job_dir = job({**noise(), "y": ("number", np.random.default_rng(1).normal(size=200).tolist())}, task="regression",
                  config={**PLAIN, **WILD})  # fmt: skip
    assert run_job(job_dir) == 0
    said = found(job_dir)["divergence"]
    assert said["severity"] == "error" and "worse than guessing" in said["sentence"]
    assert said["change"] == {"learning_rate": 0.33}
    assert "no_learning" not in found(job_dir)


def test_labels_without_any_relation_to_the_columns_are_no_learning(job: Job) -> None:
    job_dir = job(noise(300, 2), config=PLAIN)
    assert run_job(job_dir) == 0
    said = found(job_dir)
    assert set(said) == {"no_learning"}
    assert "without inputs reaches" in said["no_learning"]["sentence"]


def test_memorising_is_overfitting_and_a_stricter_run_is_suggested(job: Job) -> None:
    job_dir = job(noise(300), config={**PLAIN, **MEMORISING})
    assert run_job(job_dir) == 0
    said = found(job_dir)["overfitting"]
    assert said["change"] == {"weight_decay": 0.05, "params": {"dropout": 0.2}}
    assert "weights of the best epoch are kept" in said["sentence"]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_copy_of_the_target_is_too_good_at_once(job: Job, task: str) -> None:
    table = noise(200, 3)
    copy = np.random.default_rng(2).normal(size=200) if task == "regression" else np.array(table["y"][1], float)
    table["copy"] = ("number", copy.tolist())
    if task == "regression":
        table["y"] = ("number", copy.tolist())
    job_dir = job(table, task=task, config={**PLAIN, "architecture": "mlp", "learning_rate": 0.01, "epochs": 80})
    assert run_job(job_dir) == 0
    assert "leakage_suspected" in found(job_dir)


@pytest.mark.parametrize(("loader", "task"), [("load_wine", "classification"), ("load_diabetes", "regression")])
def test_healthy_runs_on_sample_tables_yield_nothing(job: Job, loader: str, task: str) -> None:
    bunch = getattr(sklearn.datasets, loader)()
    table: Columns = {name: ("number", bunch.data[:, index].tolist()) for index, name in enumerate(bunch.feature_names)}
    numbers = task == "regression"
    table["y"] = ("number", bunch.target.tolist()) if numbers else ("category", [str(code) for code in bunch.target])
    job_dir = job(table, task=task, config=PLAIN)
    assert run_job(job_dir) == 0
    assert found(job_dir) == {}


def test_a_loss_without_a_number_names_the_step_and_the_rows(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlplatform.engine.learner import RowLearner

    plain, calls = RowLearner.loss, []

    def failing(self: RowLearner, *given: Any) -> torch.Tensor:
        calls.append(1)
        loss = plain(self, *given)
        return loss * float("nan") if len(calls) == 3 else loss

    monkeypatch.setattr(RowLearner, "loss", failing)
    table = {**noise(80, 2), "y": ("number", [*range(79), 9_000.0])}
    job_dir = job(
        table, task="regression", config={**PLAIN, "epochs": 2, "folds": 1, "batch_size": 16, "learning_rate": 0.3}
    )
    assert run_job(job_dir) == 1
    failed = read_spool(job_dir, "failed")[0]
    assert failed["code"] == "nan_loss" and "at step 3. Its batch held the rows " in failed["sentence"]
    said = found(job_dir)["nan_loss"]
    assert said["sentence"] == failed["sentence"] and said["change"] == {"learning_rate": 0.1}


def test_killed_units_are_counted_without_disturbing_the_training(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(120, 3))
    trainer = prepare_arrays(features, (features[:, 0] > 0) * 1, "classification", tmp_path, epochs=6,
                             architecture="mlp")  # fmt: skip
    with torch.no_grad():
        trainer.network.hidden[1].bias.fill_(-1e6)
    before = torch.get_rng_state()
    with silent_units(trainer.network) as shares:
        trainer.learner.glance(trainer.network)
        dead = shares()
    assert torch.equal(before, torch.get_rng_state()) and trainer.network.training
    assert dead["hidden.1"] == 1.0 and dead["hidden.0"] < 0.5
    assert not any(module._forward_hooks for module in trainer.network.modules())
    said = trainer.checkup.doctor.looked(dead)
    assert [one.code for one in said] == ["dead_units"] and "hidden.1" in said[0].sentence
    assert trainer.checkup.doctor.looked(dead) == []


def test_units_of_a_student_without_normalisation_are_watched_too() -> None:
    body = FoldedResNet(1, 16, width=8, depth=1)
    with torch.no_grad():
        body.initialise(torch.Generator().manual_seed(1))
        body.blocks[1].first.bias[2:6] = -1e6
    network = nn.ModuleDict({"body": body})
    with silent_units(network) as shares:
        body(torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(2)))
        dead = shares()
    assert set(dead) == {"body.stem", *(f"body.blocks.{place}.first" for place in range(len(body.blocks)))}
    assert dead["body.blocks.1.first"] == 4 / body.blocks[1].first.out_channels
    assert max(share for name, share in dead.items() if name != "body.blocks.1.first") < 0.2


def test_a_slow_source_of_rows_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(64, 3))
    monkeypatch.setattr(checkup, "WAITING_SECONDS", 0.1)
    trainer = prepare_arrays(features, (features[:, 0] > 0) * 1, "classification", tmp_path, epochs=10,
                             architecture="mlp", batch_size=16, early_stopping=False)  # fmt: skip
    plain = type(trainer.learner.tensors).batch

    def slow(self: Any, *given: Any) -> Any:
        time.sleep(0.02)
        return plain(self, *given)

    monkeypatch.setattr(type(trainer.learner.tensors), "batch", slow)
    trainer.fit()
    assert "input_bound" in {one["code"] for one in read_spool(tmp_path, "finding")}


def test_memory_near_its_limit_suggests_half_of_the_batch() -> None:
    assert doctor().weighed(Memory(80, 100, "of this machine")) == []
    said = doctor().weighed(Memory(95, 100, "of the container"))
    assert said[0].code == "memory_near" and said[0].change == {"batch_size": 32}
    mine = memory_of(torch.device("cpu"))
    assert mine is not None and 0 < mine.used < mine.limit


def test_one_spike_is_no_divergence_and_a_fall_after_learning_is() -> None:
    once = doctor()
    assert [once.trained(step, loss) for step, loss in enumerate([0.7, 0.5, 9.0, 0.4, 0.3])] == [[]] * 5
    assert once.trained(6, 0.69) == []
    assert "what it had learnt is lost" in once.trained(7, 0.69)[0].sentence


def test_a_resumed_run_says_what_an_uninterrupted_one_says(job: Job) -> None:
    config = {**PLAIN, **MEMORISING, "epochs": 40}
    whole, broken = (job(noise(300), name=name, config=config) for name in ("whole", "broken"))
    assert run_job(whole) == 0
    spec = json.loads((broken / "spec.json").read_text())
    for pause in (8, 25, None):
        (broken / "spec.json").write_text(json.dumps({**spec, "stop_after_epoch": pause}))
        assert run_job(broken) == (75 if pause else 0)
    told = [
        [{**one, "time": "", "sequence": 0} for one in read_spool(job_dir, "finding")] for job_dir in (whole, broken)
    ]
    assert told[0] == told[1] and told[0]


@pytest.mark.parametrize(("table", "overrides"), [
    (classification_columns(200), {}), (regression_columns(200), {"task": "regression", "target": "z"}),
])  # fmt: skip
def test_tables_of_every_type_yield_nothing(job: Job, table: Columns, overrides: dict[str, Any]) -> None:
    job_dir = job(table, config=PLAIN, **overrides)
    assert run_job(job_dir) == 0
    assert found(job_dir) == {}
