"""Several processes on one model: the same result as one, through crashes and requests to stop, without orphans."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dlplatform.engine.dropout import Dropout, Share, sharing
from tests.unit.engine.conftest import TOGETHER, mixed_columns, read_spool, start_engine
from tests.unit.engine.test_modalities import image_job

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("distributed")]


def trained(job: Callable[..., Path], name: str, **config: Any) -> Path:
    made = job(mixed_columns(120), name=name, config={**TOGETHER, **config})
    assert start_engine(made).wait(timeout=240) == 0, read_spool(made)[-3:]
    return made


def losses(job_dir: Path) -> list[float]:
    return [
        event["values"]["train/loss"] for event in read_spool(job_dir, "metric") if "validation/loss" in event["values"]
    ]


def members_of(job_dir: Path) -> list[psutil.Process]:
    """The processes that train on a job, without the one that started them."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        if str(job_dir) in (process.info["cmdline"] or []) and "TORCHELASTIC_RUN_ID" in (process.info["environ"] or {}):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.engine.conftest import write_job

    made = write_job(tmp_path_factory.mktemp("alone") / "job", mixed_columns(120), config=TOGETHER)
    assert start_engine(made).wait(timeout=240) == 0
    return made


@pytest.mark.parametrize(("devices", "strategy"), [(2, "ddp"), (3, "ddp"), (2, "fsdp"), (3, "fsdp")])
def test_several_processes_end_where_one_does(
    job: Callable[..., Path], alone: Path, by_two: Callable[..., Path], devices: int, strategy: str
) -> None:
    made = by_two(strategy) if devices == 2 else trained(job, "several", devices=devices, strategy=strategy)
    assert losses(made) == pytest.approx(losses(alone), rel=1e-6)
    assert read_spool(made, "started")[0]["environment"]["processes"] == devices
    ours, theirs = (load_file(each / "output" / "model.safetensors") for each in (made, alone))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].double().sub(tensor.double()).abs().max() < 1e-3, name
    sequences = [event["sequence"] for event in read_spool(made)]
    assert sequences == list(range(1, len(sequences) + 1))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_batch_that_fits_is_one_for_all(job: Callable[..., Path], strategy: str) -> None:
    made = trained(job, "fitting", devices=2, strategy=strategy, batch_size="fit")
    found = json.loads((made / "output" / "model.json").read_text())["config"]["batch_size"]
    assert isinstance(found, int) and found >= 4
    told = [event["message"] for event in read_spool(made, "log") if "batch size that fits" in event["message"]]
    assert told == [f"The batch size that fits is {found}."]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_costs_nothing(job: Callable[..., Path], by_two: Callable[..., Path], strategy: str) -> None:
    whole = by_two(strategy, epochs=8)
    broken = job(
        mixed_columns(120), name="broken", config={**TOGETHER, "devices": 2, "strategy": strategy, "epochs": 8}
    )
    process = start_engine(broken)
    until(lambda: read_spool(broken, "checkpoint") if (broken / "events.jsonl").exists() else [])
    members_of(broken)[-1].kill()
    assert process.wait(timeout=240) == 0
    assert len(read_spool(broken, "started")) == 2
    told = [event["message"] for event in read_spool(broken, "log") if event["level"] == "warning"]
    assert len(told) == 1 and told[0].startswith(
        "One of the processes ended before its time; all of them go on from step "
    )
    assert not [event for event in read_spool(whole, "log") if event["level"] == "warning"]
    digests = [
        hashlib.sha256((each / "output" / "model.safetensors").read_bytes()).hexdigest() for each in (whole, broken)
    ]
    assert digests[0] == digests[1]


def test_a_request_to_stop_ends_all_after_a_checkpoint(job: Callable[..., Path]) -> None:
    made = job(mixed_columns(120), config={**TOGETHER, "devices": 2, "epochs": 2000})
    process = start_engine(made)
    until(lambda: read_spool(made, "metric") if (made / "events.jsonl").exists() else [])
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 75
    assert until(lambda: not members_of(made))
    assert read_spool(made, "checkpoint")


def test_a_dead_launcher_leaves_no_orphans(job: Callable[..., Path]) -> None:
    made = job(mixed_columns(120), config={**TOGETHER, "devices": 2, "epochs": 2000})
    process = start_engine(made)
    until(lambda: read_spool(made, "metric") if (made / "events.jsonl").exists() else [])
    assert len(members_of(made)) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert until(lambda: not members_of(made))


def test_the_size_of_a_model_decides_how_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlplatform.engine import distributed

    network = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 100))
    network[0].requires_grad_(False)
    assert distributed.training_bytes(network) == 10_100 * 4 * (1 + 4)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "told_by_leader", lambda number: number)
    group = distributed.Joined(torch.device("cpu"))
    for memory, strategy in ((10_100 * 40 - 1, "fsdp"), (10_100 * 40, "ddp")):
        monkeypatch.setattr(distributed, "memory_of", lambda device, world, memory=memory: memory)
        assert group.suited_to(network, "auto").strategy == strategy
    assert group.suited_to(network, "fsdp").strategy == "fsdp"


@pytest.mark.parametrize(
    "finetune",
    [{"mode": "head", "unfreeze_every": 1}, {"mode": "lora", "rank": 2}, {"mode": "full"}],
    ids=["stages", "adapters", "full"],
)
def test_fine_tuning_by_two_ends_where_one_does(
    job: Callable[..., Path], alone: Path, finetune: dict[str, Any], tmp_path: Path
) -> None:
    """What trains only in part is held whole by each, even where ``fsdp`` was asked for, and says so."""
    ends = []
    for devices in (1, 2):
        made = job(mixed_columns(120), name=str(devices), config={**TOGETHER, "devices": devices, "strategy": "fsdp"},
                   finetune=finetune)  # fmt: skip
        shutil.copytree(alone / "output", made / "base")
        assert start_engine(made).wait(timeout=240) == 0, read_spool(made)[-3:]
        ends.append(made)
    assert losses(ends[1]) == pytest.approx(losses(ends[0]), rel=1e-6)
    said = [event["message"] for event in read_spool(ends[1], "log") if "held whole" in event["message"]]
    assert len(said) == (finetune["mode"] != "full")


FRESH = {
    "bert": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "attention_probs_dropout_prob": 0.0},
    "resnet": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "basic"},
    "swin": {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2,
             "patch_size": 2, "drop_path_rate": 0.3, "hidden_dropout_prob": 0.1},
    "dinov2": {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
               "patch_size": 4},
}  # fmt: skip


@pytest.mark.parametrize("kind", list(FRESH))
def test_architectures_of_the_library_end_where_one_process_does(job: Callable[..., Path], kind: str) -> None:
    """With batch normalisation made group normalisation, stochastic depth shared, and weights that nothing uses."""
    ends = []
    for devices in (1, 2):
        config = {
            **{key: value for key, value in TOGETHER.items() if key not in ("folds", "params")},
            "devices": devices,
        }
        if kind == "bert":
            made = job(mixed_columns(120), name=str(devices), config={**config, "text_model": FRESH[kind]})
        else:
            config |= {"image_model": FRESH[kind], "image_size": 16, "epochs": 3}
            made = image_job(job, 40, name=str(devices), config=config)
        assert start_engine(made).wait(timeout=240) == 0, read_spool(made)[-3:]
        ends.append(losses(made))
    assert ends[1] == pytest.approx(ends[0], rel=1e-6)


OF_PARTS = {
    "image": {"params": {"image_width": 8}, "image_size": 16, "epochs": 5},
    "text": {
        "text_encoder": "transformer",
        "params": {"text_width": 32, "text_layers": 2, "text_heads": 2},
        "epochs": 5,
    },
    "language": {"params": {"text_width": 32, "text_layers": 2, "text_heads": 2}, "text_length": 16, "epochs": 2},
}


@pytest.mark.parametrize("kind", list(OF_PARTS))
def test_parts_of_every_kind_of_network_end_where_one_process_does(job: Callable[..., Path], kind: str) -> None:
    """FSDP2: and what is written along the way, and which units are silent, is told as by one."""
    ends: list[Path] = []
    for devices in (1, 2):
        plain = {key: value for key, value in TOGETHER.items() if key not in ("folds", "params")}
        config = {**plain, **OF_PARTS[kind], "devices": devices, "strategy": "fsdp"}
        columns = {key: mixed_columns(120)[key] for key in ("note", "y")}
        if kind == "image":
            ends.append(image_job(job, 40, name=str(devices), config=config))
        elif kind == "text":
            ends.append(job(columns, name=str(devices), config=config))
        else:
            table = {"note": columns["note"]}
            ends.append(job(table, name=str(devices), task="language-model", target="note", config=config))
        assert start_engine(ends[-1]).wait(timeout=240) == 0, read_spool(ends[-1])[-3:]
    assert losses(ends[1]) == pytest.approx(losses(ends[0]), rel=1e-6)
    told = [[event["text"] for event in read_spool(each, "sample")] for each in ends]
    assert len(told[1]) == len(told[0]) and bool(told[0]) == (kind == "language")
    assert all(text.partition("⟶")[0] == other.partition("⟶")[0] for text, other in zip(*told, strict=True))


def test_silent_units_of_a_network_in_parts_are_told(job: Callable[..., Path]) -> None:
    columns = {"x": ("number", [float(row % 7) for row in range(120)]), "y": ("category", ["a", "b"] * 60)}
    config = {**TOGETHER, "architecture": "mlp", "folds": 1, "epochs": 6, "learning_rate": 1.0, "max_grad_norm": 0,
              "params": {"layers": 2, "width": 64}}  # fmt: skip
    found = []
    for devices in (1, 2):
        made = job(columns, name=str(devices), config={**config, "devices": devices, "strategy": "fsdp"})
        assert start_engine(made).wait(timeout=240) == 0, read_spool(made)[-3:]
        found.append({event["code"] for event in read_spool(made, "finding")})
    assert "dead_units" in found[0] and found[1] == found[0]


def test_parts_of_the_noise_make_the_whole() -> None:
    import torch

    inputs, layer = torch.ones(2, 3, 12, 5), Dropout(0.5, rows=2)
    torch.manual_seed(0)
    whole = layer(inputs)
    parts = []
    for first, last in ((0, 5), (5, 12)):
        torch.manual_seed(0)
        with sharing(Share(first, last, 12)):
            parts.append(layer(inputs[:, :, first:last]))
    assert torch.equal(torch.cat(parts, 2), whole)


def until(ready: Callable[[], Any], seconds: float = 90) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(0.05)
    return False
