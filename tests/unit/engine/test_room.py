"""A network too large for the machine is refused by name, before it takes any memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from dlplatform.engine import room
from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.errors import EngineError
from dlplatform.engine.room import memory_of_device, require_room
from dlplatform.engine.run import run_job
from dlplatform.engine.trial import try_out
from tests.unit.engine.conftest import mixed_columns, read_spool
from tests.unit.engine.test_modalities import image_job

CPU = not torch.cuda.is_available()


def refused(job_dir: Path) -> dict[str, Any]:
    before = psutil.Process().memory_info().rss
    assert run_job(job_dir) == 1
    assert psutil.Process().memory_info().rss - before < 2 << 30
    return read_spool(job_dir, "failed")[0]


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"image_width": 1024, "image_depth": 32}, "params.image_width or params.image_depth"),
        ({"image_width": 4, "image_depth": 1, "width": 4096, "layers": 16}, "params.width or params.layers"),
    ],
)
def test_a_network_larger_than_the_machine_names_what_to_lower(
    job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, params: dict[str, int], named: str
) -> None:
    monkeypatch.setattr(room, "memory_of_device", lambda: 1 << 30)
    job_dir = image_job(job, config={"architecture": "mlp", "params": params})
    failed = refused(job_dir)
    assert (failed["code"], named in failed["next_step"]) == ("out_of_memory", True), failed
    assert "there are 1.1 GB" in failed["sentence"]


def test_a_language_model_is_measured_too(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_of_device", lambda: 1 << 30)
    texts = {"y": ("text", [f"so many words {number}" for number in range(60)])}
    config = {"params": {"text_width": 4096, "text_layers": 64, "text_heads": 64}, "tokenizer": "byte"}
    made = job(texts, task="language-model", features=[], config=config)
    failed = refused(made)
    assert (failed["code"], "text_layers" in failed["next_step"]) == ("out_of_memory", True), failed


def test_a_trial_tells_it_at_once(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_of_device", lambda: 1 << 20)
    made = job(mixed_columns(60), config={"params": {"width": 512}})
    assert try_out(made) == 1
    assert json.loads((made / "trial.json").read_text())["error"]["code"] == "out_of_memory"


def test_what_fits_is_measured_without_drawing_numbers() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    require_room(lambda: nn.Linear(8, 8), TrainingConfig())
    assert torch.equal(torch.get_rng_state(), before)


def test_several_devices_share_what_is_kept_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "memory_of_device", lambda: 3 * 4 * 1000)
    with pytest.raises(EngineError, match="there are"):
        require_room(lambda: nn.Linear(999, 1), TrainingConfig())
    with pytest.raises(EngineError, match="there are"):  # two processes of one machine have half of its memory each
        require_room(lambda: nn.Linear(999, 1), TrainingConfig(devices=2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    require_room(lambda: nn.Linear(999, 1), TrainingConfig(devices=2))
    with pytest.raises(EngineError, match="there are"):
        require_room(lambda: nn.Linear(999, 1), TrainingConfig(devices=2, strategy="ddp"))


@pytest.mark.skipif(not CPU, reason="an accelerator decides here")
def test_a_container_may_have_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    whole = memory_of_device()
    assert whole == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_of_device() == whole
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory_of_device() == 1_000_000
