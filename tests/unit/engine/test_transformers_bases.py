"""Models of the transformers library as bases: read, fine-tuned in every mode, saved as packages of ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dlplatform.engine import package
from dlplatform.engine.adapters import frozen, merged
from dlplatform.engine.blocks import block_of
from dlplatform.engine.errors import PackageError
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.transformers_config import safe_config
from tests.unit.engine.conftest import ROOT, mixed_columns, read_spool
from tests.unit.engine.test_modalities import last_events
from tests.unit.engine.transformers_bases import TINY, tiny_bert

PREFIX = "encoder.sequences.model."
CONFIG = {"epochs": 2, "threads": 1, "batch_size": 16, "checkpoint_seconds": 0.05}


def notes(rows: int = 64) -> dict[str, tuple[str, list[Any]]]:
    random = np.random.default_rng(0)
    words = random.choice(["good", "bad"], rows).tolist()
    texts = [
        f"the item {number} is very {word}" for number, word in zip(random.integers(0, 50, rows), words, strict=True)
    ]
    return {"note": ("text", [None, *texts[1:]]), "y": ("category", words)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bases") / "bert")


def tune(job: Callable[..., Path], base: Path, name: str = "tuned", table: Any = None, **overrides: Any) -> Path:
    finetune = {
        name: overrides.pop(name)
        for name in ("mode", "adapter", "rank", "blocks", "unfreeze_every")
        if name in overrides
    }
    made = job(table or notes(), name=name, **{"config": CONFIG, "finetune": finetune, **overrides})
    shutil.copytree(base, made / "base")
    return made


def trained(made: Path) -> Path:
    assert run_job(made) == 0, last_events(made)
    return made / "output"


def changed_blocks(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {block_of(name) for name in before if not torch.equal(before[name], after[PREFIX + name])}


def weights_of(bert: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(bert / "model.safetensors").items() if "pooler" not in name}


def test_full_trains_all_and_the_package_stands_alone(job: Callable[..., Path], bert: Path) -> None:
    output = trained(tune(job, bert, mode="full"))
    assert "encoder.layer.0" in changed_blocks(weights_of(bert), load_file(output / "model.safetensors"))
    predictor = Predictor(output)
    assert predictor.description["architecture"]["transformer"]["config"]["model_type"] == "bert"
    answers = predictor.predict([{"note": "the item is good"}, {"note": ""}, {"note": None}])
    assert [set(one["probabilities"]) for one in answers] == [{"good", "bad"}] * 3
    assert {path.name for path in output.iterdir()} >= {"model.json", "model.safetensors", "tokenizer.json"}
    assert "pretrained transformer (bert)" in (output / "README.md").read_text()


def test_head_leaves_the_transformer_alone_until_it_thaws(job: Callable[..., Path], bert: Path) -> None:
    frozen_one = trained(tune(job, bert, mode="head"))
    assert not changed_blocks(weights_of(bert), load_file(frozen_one / "model.safetensors"))
    thawed = trained(tune(job, bert, "thawed", mode="head", unfreeze_every=1))
    changed = changed_blocks(weights_of(bert), load_file(thawed / "model.safetensors"))
    assert changed == {"encoder.layer.1"}


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3"])
def test_an_adapter_of_peft_over_its_base(job: Callable[..., Path], bert: Path, adapter: str) -> None:
    output = trained(tune(job, bert, mode="lora", adapter=adapter, rank=2))
    assert not (output / "model.safetensors").exists()
    with pytest.raises(PackageError):
        package.load(output)
    shutil.copytree(bert, output / "base")
    loaded = package.load(output)
    before, kept, worked = weights_of(bert), frozen(loaded.network), merged(loaded.network)
    assert all(torch.equal(kept[PREFIX + name], tensor) for name, tensor in before.items())
    assert any(not torch.equal(worked[PREFIX + name], tensor) for name, tensor in before.items())
    again = frozen(loaded.network)  # working the adapter in has not touched the base
    assert all(torch.equal(again[PREFIX + name], tensor) for name, tensor in before.items())

    plain = package.build_network(loaded.network.shape)
    plain.load_state_dict(worked)
    codes = torch.tensor([[3, 5, 6, 4], [3, 4, 0, 0]])
    adapted, whole = loaded.network.encoder.sequences(codes), plain.eval().encoder.sequences(codes)
    assert torch.allclose(adapted, whole, atol=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "dora", "ia3"])
def test_peft_itself_reads_the_adapter(job: Callable[..., Path], bert: Path, adapter: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    output = trained(tune(job, bert, mode="lora", adapter=adapter, rank=2))
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(bert), str(output)).eval()
    shutil.copytree(bert, output / "base")
    ours = package.load(output).network.encoder.sequences.model
    codes = torch.tensor([[2, 4, 5, 3]])
    said = theirs(input_ids=codes).last_hidden_state
    assert torch.allclose(said, ours(input_ids=codes).last_hidden_state, atol=1e-6)
    assert not torch.allclose(said, AutoModel.from_pretrained(bert)(input_ids=codes).last_hidden_state, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "target"), [("regression", "z"), ("classification", "y"), ("multilabel", ["flag", "other"])]
)
def test_texts_beside_other_columns(job: Callable[..., Path], bert: Path, task: str, target: Any) -> None:
    table = mixed_columns(80)
    table["flag"] = ("boolean", [row % 2 == 0 for row in range(80)])
    table["other"] = ("boolean", [row % 3 == 0 for row in range(80)])
    output = trained(tune(job, bert, table=table, mode="lora", task=task, target=target, rank=2))
    shutil.copytree(bert, output / "base")
    predictor = Predictor(output)
    assert predictor.predict([{"note": "good", "number": 1.0, **{
        one["name"]: one["example"] for one in predictor.description["inputs"] if one["name"] not in ("note", "number")
    }}])  # fmt: skip


def test_a_tuned_package_is_a_base_in_its_turn(job: Callable[..., Path], bert: Path) -> None:
    first = trained(tune(job, bert, mode="full"))
    for mode in ("full", "head", "lora"):
        output = trained(tune(job, first, f"again-{mode}", mode=mode))
        if mode == "lora":
            shutil.copytree(first, output / "base")
        assert Predictor(output).predict([{"note": "good"}])


def test_a_text_that_is_too_long_is_cut_with_its_end(job: Callable[..., Path], bert: Path) -> None:
    output = trained(tune(job, bert, mode="head"))
    predictor = Predictor(output)
    assert predictor.predict([{"note": "good " * 5000}])
    made = tune(job, bert, "longer", mode="head", config={**CONFIG, "text_length": 63})
    assert run_job(made) == 1
    assert "reads 62 tokens" in read_spool(made, "failed")[-1]["sentence"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "code of its own"),
        ({"model_type": "nobody-knows"}, "unknown"),
        ({"model_type": "../../etc"}, "unknown"),
        ({"model_type": None}, "model_type"),
        ({"vision_config": {}}, "sound or of several senses"),
        ({"is_encoder_decoder": True}, "encoder and a decoder"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_hidden_layers": 10**9}, "at most"),
        ({"text_config": {"auto_map": {}}}, "code of its own"),
    ],
)
def test_configs_that_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(PackageError, match=told):
        safe_config({"model_type": "bert", **TINY, **change})


def test_nothing_that_fetches_code_is_kept() -> None:
    kept = safe_config(
        {"model_type": "bert", "attn_implementation": "kernels-community/flash", "use_kernels": True, **TINY}
    )
    assert kept == {"model_type": "bert", **TINY}


def failed(job: Callable[..., Path], base: Path) -> str:
    made = tune(job, base, mode="full")
    assert run_job(made) == 1
    told = read_spool(made, "failed")[-1]
    assert told["code"] == "bad_config"
    return str(told["sentence"])


def test_bases_that_cannot_be_read_are_named_failures(job: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    base = shutil.copytree(bert, tmp_path / "broken")
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "layer.1" not in name}, base / "model.safetensors")
    assert "do not fit config.json" in failed(job, base)


def test_pickled_weights_are_refused(job: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    base = shutil.copytree(bert, tmp_path / "pickled")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "pickles" in failed(job, base)


def test_a_tokenizer_that_does_not_fit_is_refused(job: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    base = tiny_bert(tmp_path / "small")
    config = (base / "config.json").read_text().replace('"vocab_size": 62', '"vocab_size": 20')
    (base / "config.json").write_text(config)
    assert "tokens, but the model knows" in failed(job, base)


def test_adapters_whose_base_is_another_are_refused(job: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    output = trained(tune(job, bert, mode="lora", rank=2))
    shutil.copytree(tiny_bert(tmp_path / "wide", hidden_size=32), output / "base")
    with pytest.raises(PackageError):
        package.load(output)


def test_shards_are_read_through_their_index(job: Callable[..., Path], bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    base = shutil.copytree(bert, tmp_path / "shards")
    (base / "model.safetensors").unlink()
    AutoModel.from_pretrained(bert).save_pretrained(base, max_shard_size="10KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    trained(tune(job, base, mode="head"))


def test_processes_without_such_a_model_do_without_the_library() -> None:
    """The warm worker imports the engine before it forks; the library would double what it holds."""
    script = (
        "import sys; import dlplatform.engine.run, dlplatform.engine.predict; "
        "sys.exit(bool({'transformers', 'peft'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
