"""Fine-tuning: whole, heads and adapters; new classes; what is frozen stays as it was to the bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dlplatform.engine import package
from dlplatform.engine.adapters import attach, frozen, merged, share_base
from dlplatform.engine.blocks import ANSWERING, block_of, blocks_of, chosen
from dlplatform.engine.config import ConfigError
from dlplatform.engine.errors import PackageError
from dlplatform.engine.finetune_config import FinetuneConfig, parse_finetune, recorded_finetune
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from tests.unit.engine.conftest import mixed_columns, read_spool
from tests.unit.engine.test_modalities import QUICK, image_job, keep_images, last_events, squares, texts

TABLE = {"epochs": 3, "threads": 1, "folds": 2, "params": {"members": 4, "width": 16}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained package of images, of texts and of a table."""
    from tests.unit.engine.conftest import write_job

    root = tmp_path_factory.mktemp("bases")
    images, labels = squares(60)
    names = [hashlib.sha256(content).hexdigest() for content in images]
    jobs = {
        "image": write_job(root / "image", {"image": ("image", names), "y": ("category", labels)}, config=QUICK),
        "text": write_job(root / "text", texts(80), config={**QUICK, "text_encoder": "transformer"}),
        "table": write_job(root / "table", mixed_columns(80), config=TABLE),
    }
    keep_images(jobs["image"], images)
    for made in jobs.values():
        assert run_job(made) == 0, last_events(made)
    return {name: made / "output" for name, made in jobs.items()}


def with_base(made: Path, base: Path) -> Path:
    shutil.copytree(base, made / "base")
    return made


def tune(job: Callable[..., Path], kind: str, base: Path, name: str = "tuned", **finetune: Any) -> Path:
    config = {"epochs": 3, "threads": 1, "batch_size": 16, "checkpoint_seconds": 0.05}
    if kind == "image":
        made = image_job(job, 48, name, config=config, finetune=finetune)
    else:
        columns = texts(64) if kind == "text" else mixed_columns(64, seed=1)
        made = job(columns, name=name, config=config, finetune=finetune)
    return with_base(made, base)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["image", "text", "table"])
@pytest.mark.parametrize("mode", ["full", "head"])
def test_a_base_becomes_another_model(job: Callable[..., Path], bases: dict[str, Path], kind: str, mode: str) -> None:
    made = tune(job, kind, bases[kind], mode=mode)
    assert run_job(made) == 0, last_events(made)
    before, after = load_file(bases[kind] / "model.safetensors"), load_file(made / "output" / "model.safetensors")
    changed = {block_of(name) for name in before if not torch.equal(before[name], after[name])}
    trained = {block for block in changed if block != "inputs"}
    assert trained & {"head", "linear"}
    if mode == "head":
        assert trained <= {"head", "linear"}
    description = Predictor(made / "output").description
    assert description["finetune"]["mode"] == mode
    if kind == "image":  # small steps where all of the base trains
        assert description["config"]["learning_rate"] == pytest.approx(0.0009 if mode == "full" else 0.003)


@pytest.mark.parametrize("kind", ["image", "text", "table"])
@pytest.mark.parametrize(
    ("adapter", "head"), [("lora", "whole"), ("lora", "adapted"), ("dora", "whole"), ("ia3", "adapted")]
)
def test_an_adapter_is_small_and_works_over_its_base(
    job: Callable[..., Path], bases: dict[str, Path], kind: str, adapter: str, head: str
) -> None:
    made = tune(job, kind, bases[kind], mode="lora", adapter=adapter, rank=2, head=head)
    assert run_job(made) == 0, last_events(made)
    output = made / "output"
    assert not (output / "model.safetensors").exists()
    whole = set(json.loads((output / "adapter_config.json").read_text())["modules_to_save"]) & set(ANSWERING)
    assert whole == ({"head", "linear"} & blocks_in(bases[kind]) if head == "whole" else set())
    with pytest.raises(PackageError):
        package.load(output)

    loaded = package.load(with_base(output, bases[kind]))
    if kind == "image":  # and large ones for adapters
        assert loaded.description["config"]["learning_rate"] == pytest.approx(0.009)
    base = load_file(bases[kind] / "model.safetensors")
    kept = frozen(loaded.network)
    buffers = {name for name, _ in loaded.network.named_buffers()}
    for name, tensor in base.items():
        assert name in buffers or torch.equal(kept[name], tensor) != (block_of(name) in whole), name
    changed = merged(loaded.network)
    assert any(not torch.equal(changed[name], base[name]) for name in base)
    of_base = package.load(bases[kind]).network
    changed = {name: tensor.clone() for name, tensor in changed.items()}
    saved = share_base(loaded.network, of_base)
    same = {name: each for name, each in frozen(of_base).items() if block_of(name) not in whole}
    most = sum(tensor.numel() * tensor.element_size() for tensor in same.values())
    assert 0.9 * most < saved <= most, "the base is in memory once"
    ours = {tensor.data_ptr() for tensor in frozen(loaded.network).values()}
    assert {tensor.data_ptr() for tensor in frozen(of_base).values()} & ours
    assert all(torch.equal(tensor, changed[name]) for name, tensor in merged(loaded.network).items())
    plain = package.build_network(loaded.network.shape)
    plain.load_state_dict(changed)
    assert torch.equal(plain.head.weight if hasattr(plain, "head") else plain.linear.weight,
                       loaded.network.head.weight if hasattr(plain, "head") else loaded.network.linear.weight)  # fmt: skip


def blocks_in(directory: Path) -> set[str]:
    return {block_of(name) for name in load_file(directory / "model.safetensors")}


def test_new_classes_keep_the_rows_of_the_old_ones(job: Callable[..., Path], bases: dict[str, Path]) -> None:
    images, labels = squares(60)
    labels = ["middle" if row % 3 == 0 else label for row, label in enumerate(labels)]
    table = {
        "image": ("image", [hashlib.sha256(content).hexdigest() for content in images]),
        "y": ("category", labels),
    }
    for mode in ("head", "lora"):
        config = {"epochs": 1, "threads": 1, "batch_size": 16, "learning_rate": 1e-9, "weight_decay": 0}
        made = job(table, name=mode, config=config, finetune={"mode": mode})
        keep_images(made, images)
        assert run_job(with_base(made, bases["image"])) == 0, last_events(made)
        with_base(made / "output", bases["image"])
        predictor = Predictor(made / "output")
        assert predictor.description["output"]["classes"] == ["left", "right", "middle"]
        old = load_file(bases["image"] / "model.safetensors")["linear.weight"]
        new = merged(predictor.network)["linear.weight"]
        assert torch.allclose(new[..., :2], old, atol=1e-6)
        assert set(predictor.predict([{"image": images[0]}])[0]["probabilities"]) == {"left", "right", "middle"}


def test_blocks_thaw_from_the_top(job: Callable[..., Path], bases: dict[str, Path]) -> None:
    made = tune(job, "text", bases["text"], mode="head", unfreeze_every=1, layer_decay=0.5)
    assert run_job(made) == 0, last_events(made)
    before, after = load_file(bases["text"] / "model.safetensors"), load_file(made / "output" / "model.safetensors")
    changed = {block_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert "encoder.sequences.norm" in changed
    assert "encoder.sequences.tokens" not in changed


@pytest.mark.parametrize("mode", ["full", "head", "lora"])
def test_a_language_model_goes_on_from_another(job: Callable[..., Path], mode: str) -> None:
    config = {
        "epochs": 2,
        "threads": 1,
        "text_length": 16,
        "params": {"text_width": 16, "text_layers": 2, "text_heads": 2},
    }
    said = {"text": ("text", [f"the {word} is here" for word in ["cat", "dog", "bird", "fish"] * 8])}
    base = job(said, name="base", task="language-model", target="text", config=config)
    assert run_job(base) == 0, last_events(base)
    more = {"text": ("text", [f"a {word} was there" for word in ["cow", "dog"] * 12])}
    made = job(more, task="language-model", target="text", config={"epochs": 3, "threads": 1}, finetune={"mode": mode})
    assert run_job(with_base(made, base / "output")) == 0, last_events(made)
    output = made / "output"
    loaded = package.load(with_base(output, base / "output") if mode == "lora" else output)
    before, after = load_file(base / "output" / "model.safetensors"), package.merged_tensors(loaded)
    changed = {block_of(name) for name in before if not torch.equal(before[name], after[name])}
    everything = {block_of(name) for name in before}
    assert changed == {"full": everything, "head": {"blocks.1", "norm"}, "lora": {"blocks.0", "blocks.1"}}[mode]
    assert Predictor(output).predict([{"prompt": "a", "max_tokens": 3}])[0]["text"] is not None


def test_an_unknown_block_is_named(job: Callable[..., Path], bases: dict[str, Path]) -> None:
    made = tune(job, "text", bases["text"], mode="head", blocks=["nowhere"])
    assert run_job(made) == 1
    failed = read_spool(made, "failed")[0]
    assert failed["code"] == "bad_config" and "encoder.sequences" in failed["next_step"]


def test_data_of_another_kind_do_not_fit_a_base(job: Callable[..., Path], bases: dict[str, Path]) -> None:
    table = {"x": ("number", [float(n) for n in range(20)]), "y": ("category", ["a", "b"] * 10)}
    made = with_base(job(table, config={}, finetune={"mode": "full"}), bases["table"])
    assert run_job(made) == 1
    assert read_spool(made, "failed")[0]["code"] == "bad_data"


def test_an_adapter_of_another_base_is_refused(job: Callable[..., Path], bases: dict[str, Path]) -> None:
    made = tune(job, "image", bases["image"], mode="lora", rank=2)
    assert run_job(made) == 0
    with pytest.raises(PackageError):
        package.load(with_base(made / "output", bases["text"]))


def test_settings_are_checked() -> None:
    assert parse_finetune({}) == FinetuneConfig()
    config = parse_finetune({"mode": "lora", "rank": 4, "blocks": ["hidden.*"]})
    assert parse_finetune(config.to_dict()) == config
    for raw in (
        {"mode": "half"},
        {"rank": 0},
        {"blocks": "head"},
        {"colour": 1},
        {"mode": "full", "unfreeze_every": 2},
        {"chat_template": "king"},
        {"chat_template": 3},
        {"chat_template": "{% include 'x' %}"},
        [],
    ):
        with pytest.raises(ConfigError):
            parse_finetune(raw)


def test_what_recorded_nothing_of_its_head_had_it_adapted() -> None:
    recorded = {name: value for name, value in FinetuneConfig("lora").to_dict().items() if name != "head"}
    assert recorded_finetune(recorded) == FinetuneConfig("lora", head="adapted")
    assert recorded_finetune({"mode": "lora"}).chat_template == "usual"
    assert recorded_finetune(FinetuneConfig("lora").to_dict()) == FinetuneConfig("lora")
    with pytest.raises(ConfigError):
        recorded_finetune([])


def test_the_head_trains_whole_beside_adapters_where_both_were_chosen() -> None:
    blocks = ["hidden.0", "linear", "head"]
    assert FinetuneConfig("lora").beside_adapters(blocks) == ["linear", "head"]
    assert FinetuneConfig("lora", blocks=("hidden.*", "head")).beside_adapters(blocks) == ["head"]
    assert FinetuneConfig("lora", blocks=("hidden.*",)).beside_adapters(blocks) == []
    assert FinetuneConfig("lora", blocks=("head",)).beside_adapters(blocks) == []
    assert FinetuneConfig("lora", head="adapted").beside_adapters(blocks) == []


def test_blocks_are_named_by_the_tensors() -> None:
    shapes = {
        "hidden.0.weight": [2, 3],
        "hidden.0.bias": [3],
        "head.weight": [3, 2],
        "encoder.a.blocks.1.x.weight": [4],
    }
    assert blocks_of(shapes) == {"hidden.0": 9, "head": 6, "encoder.a.blocks.1": 4}
    assert chosen(blocks_of(shapes), ["hidden", "*blocks*"]) == ["hidden.0", "encoder.a.blocks.1"]


def test_an_adapter_changes_nothing_until_it_has_learnt(bases: dict[str, Path]) -> None:
    for adapter in ("lora", "dora", "ia3"):
        network = package.load(bases["table"]).network
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        attach(network, FinetuneConfig("lora", adapter, 2), {"hidden.0", "head"}, 0)
        for name, tensor in merged(network).items():
            assert torch.allclose(tensor, before[name], rtol=1e-5, atol=1e-7), (adapter, name)
        assert all(torch.equal(frozen(network)[name], tensor) for name, tensor in before.items())
