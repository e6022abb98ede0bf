"""What checkpoints hold where only a part of a network trains: nothing that lies in the base, and all that does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors.torch import load_file

from dlplatform.engine import safetensors_header
from dlplatform.engine.durable import commit_directory, to_json
from dlplatform.engine.run import run_job
from tests.unit.engine.conftest import mixed_columns, read_spool
from tests.unit.engine.test_exactness import DEEP, texts
from tests.unit.engine.transformers_bases import tiny_bert

CONFIG = {**{key: value for key, value in DEEP.items() if key != "params"}, "epochs": 4}
TABLE = {**CONFIG, "folds": 2, "params": {"members": 4, "width": 32}}
FROZEN = {
    "lora": {"mode": "lora", "rank": 2},
    "head": {"mode": "head"},
    "blocks": {"mode": "head", "blocks": ["hidden.1"]},
}


@pytest.fixture
def tuned(job: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A fine-tuning job on a base of the given kind."""

    def base_of(kind: str) -> Path:
        if kind == "bert":
            return tiny_bert(tmp_path / "bert") if not (tmp_path / "bert").exists() else tmp_path / "bert"
        made = tmp_path / "base"
        if not made.exists():
            assert run_job(job(mixed_columns(60), name="base", config=TABLE)) == 0
        return made / "output"

    def make(name: str, kind: str, finetune: dict[str, Any], **more: Any) -> Path:
        table = texts(40) if kind == "bert" else mixed_columns(60)
        base, made = base_of(kind), job(table, name=name, config=CONFIG, finetune=finetune, **more)
        shutil.copytree(base, made / "base")
        return made

    return make


def go_on(made: Path) -> int:
    spec = json.loads((made / "spec.json").read_text())
    (made / "spec.json").write_text(json.dumps({**spec, "stop_after_epoch": None}))
    return run_job(made)


def newest(made: Path) -> Path:
    return sorted((made / "checkpoints").iterdir())[-1]


def stopped(make: Callable[..., Path], kind: str, finetune: dict[str, Any]) -> Path:
    made = make("parts", kind, finetune, stop_after_epoch=2)
    assert run_job(made) == 75, read_spool(made)[-2:]
    return made


def same_output(one: Path, other: Path) -> None:
    for path in (one / "output").iterdir():
        assert (other / "output" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("kind", "how"), [("table", "lora"), ("table", "head"), ("table", "blocks"), ("bert", "lora"), ("bert", "head")]
)
def test_frozen_weights_stay_in_the_base(tuned: Callable[..., Path], kind: str, how: str) -> None:
    whole = tuned("whole", kind, FROZEN[how])
    assert run_job(whole) == 0
    parts = stopped(tuned, kind, FROZEN[how])
    held = load_file(newest(parts) / "state.safetensors")
    weights = {name.partition("/")[2] for name in held if name.startswith(("model/", "average/", "best/"))}
    blocks = {"lora": "lora_", "head": ("head", "linear"), "blocks": "hidden.1"}[how]
    trained = [
        name for name in weights if any(word in name for word in ([blocks] if isinstance(blocks, str) else blocks))
    ]
    assert trained and not any("embeddings.word" in name or name.startswith("encoder.categories") for name in weights)
    if how == "lora":
        assert not any(name.endswith(("original", "base_layer.weight")) for name in weights)
    assert json.loads((newest(parts) / "state.json").read_text())["frozen"]

    assert go_on(parts) == 0, read_spool(parts, "failed")
    same_output(whole, parts)


def test_a_checkpoint_of_an_adapter_is_small(tuned: Callable[..., Path]) -> None:
    parts = stopped(tuned, "bert", {"mode": "lora", "rank": 1})
    base = (parts / "base" / "model.safetensors").stat().st_size
    kept = sum(
        each.numel() * 4 for name, each in load_file(newest(parts) / "state.safetensors").items() if "model/" in name
    )
    assert kept < base / 8


@pytest.mark.parametrize("finetune", [{"mode": "full"}, {"mode": "head", "unfreeze_every": 1}])
def test_what_trains_at_some_time_is_kept_whole(tuned: Callable[..., Path], finetune: dict[str, Any]) -> None:
    parts = stopped(tuned, "table", finetune)
    held = load_file(newest(parts) / "state.safetensors")
    names = {name.removeprefix("model/") for name in held if name.startswith("model/")}
    assert names == set(safetensors_header.read_header(parts / "base" / "model.safetensors"))
    assert json.loads((newest(parts) / "state.json").read_text())["frozen"] == ""


@pytest.mark.parametrize(("kind", "how"), [("table", "lora"), ("table", "blocks"), ("bert", "lora")])
def test_a_checkpoint_from_before_still_loads(tuned: Callable[..., Path], kind: str, how: str) -> None:
    """Earlier ones held the frozen weights too, three times, and said nothing of them."""
    whole = tuned("whole", kind, FROZEN[how])
    assert run_job(whole) == 0
    parts = stopped(tuned, kind, FROZEN[how])
    made_old(newest(parts), frozen_of(parts))
    assert go_on(parts) == 0, read_spool(parts, "failed")
    assert read_spool(parts, "started")[-1]["resumed_from"]
    same_output(whole, parts)


def frozen_of(made: Path) -> dict[str, Any]:
    """The weights that a checkpoint leaves out, as the network names them."""
    from dlplatform.engine.events import SilentWriter
    from dlplatform.engine.job import read_spec
    from dlplatform.engine.learning import learner_of
    from dlplatform.engine.reporter import Reporter
    from dlplatform.engine.training_state import Frozen

    learner, plan = learner_of(made, read_spec(made), Reporter(SilentWriter()), None)
    found = Frozen(learner.network, plan).beside({})
    assert found
    return {name: tensor.clone() for name, tensor in found.items()}


def made_old(folder: Path, frozen: dict[str, Any]) -> None:
    tensors = load_file(folder / "state.safetensors")
    for part in ("model", "average", "best"):
        tensors |= {f"{part}/{name}": tensor.clone() for name, tensor in frozen.items()}
    state = json.loads((folder / "state.json").read_text())
    state.pop("frozen")
    manifest = json.loads((folder / "manifest.json").read_text())
    extra = {name: manifest[name] for name in ("step", "best", "environment")}
    shutil.rmtree(folder)
    commit_directory(
        folder, {"state.safetensors": safetensors.torch.save(tensors), "state.json": to_json(state)}, extra
    )


def test_another_base_is_noticed(tuned: Callable[..., Path]) -> None:
    parts = stopped(tuned, "bert", FROZEN["lora"])
    weights = load_file(parts / "base" / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name] += 1
    safetensors.torch.save_file(weights, parts / "base" / "model.safetensors", metadata={"format": "pt"})
    assert go_on(parts) == 1
    assert read_spool(parts, "failed")[-1]["code"] == "checkpoint_corrupt"
