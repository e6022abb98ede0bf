"""Architectures of the transformers library that start from nothing: trained, resumed, saved, asked, tuned, refused."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlplatform.engine import package, safetensors_header
from dlplatform.engine.config import ConfigError, parse_config
from dlplatform.engine.errors import PackageError
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.transformers_settings import PRESETS, faults, known_names
from tests.unit.engine.conftest import read_spool
from tests.unit.engine.test_modalities import image_job, last_events, squares
from tests.unit.engine.test_transformers_bases import notes

TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
QUICK = {"epochs": 2, "threads": 1, "batch_size": 16, "checkpoint_seconds": 0.05, "importance": False}
TEXTS = [
    {"model_type": "bert", **TEXT},
    {"model_type": "roberta", **TEXT},
    {"model_type": "modernbert", **TEXT},
    {"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    {"model_type": "deberta-v2", **TEXT},
    {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2},
    {"model_type": "llama", **TEXT},
    {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2},
]
WRITERS = [
    {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2},
    {"model_type": "llama", **TEXT},
    {"model_type": "gpt_neox", **TEXT},
    {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 2},
]
VIT = {"model_type": "vit", **TEXT, "patch_size": 4}
RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
}  # fmt: skip
IMAGES = [
    VIT,
    {"model_type": "deit", **TEXT, "patch_size": 4},
    {"model_type": "beit", **TEXT, "patch_size": 4},
    {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4},
    {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    {"model_type": "convnextv2", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
    {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 2},
    {"model_type": "regnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    RESNET,
]


def named(config: dict[str, Any]) -> str:
    return str(config["model_type"])


def trained(made: Path) -> Path:
    assert run_job(made) == 0, last_events(made)
    return made / "output"


def ask_images(output: Path) -> list[dict[str, Any]]:
    images, _ = squares(4, seed=1)
    return Predictor(output).predict([{"image": base64.b64encode(content).decode()} for content in images])


def text_job(job: Callable[..., Path], model: dict[str, Any], name: str = "job", **overrides: Any) -> Path:
    config = {**QUICK, "text_model": model, **overrides.pop("config", {})}
    return job(notes(), name=name, config=config, **overrides)


@pytest.mark.parametrize("model", TEXTS, ids=named)
def test_texts_are_read_by_any_architecture(job: Callable[..., Path], model: dict[str, Any]) -> None:
    output = trained(text_job(job, model))
    predictor = Predictor(output)
    described = predictor.description["architecture"]["transformer"]
    assert described["config"]["model_type"] == model["model_type"] and described["fresh"] is True
    answers = predictor.predict([{"note": "the item is good"}, {"note": ""}, {"note": None}])
    assert [set(one["probabilities"]) for one in answers] == [{"good", "bad"}] * 3
    assert f"a transformer ({model['model_type']}) over texts" in (output / "README.md").read_text()


def test_the_texts_are_learnt(job: Callable[..., Path]) -> None:
    made = text_job(job, {"model_type": "bert", **TEXT}, config={"epochs": 20, "learning_rate": 0.005})
    told = Predictor(trained(made)).predict([{"note": "the item 3 is very good"}, {"note": "the item 7 is very bad"}])
    assert [one["label"] for one in told] == ["good", "bad"]


@pytest.mark.parametrize("model", IMAGES, ids=named)
def test_images_are_looked_at_by_any_architecture(job: Callable[..., Path], model: dict[str, Any]) -> None:
    output = trained(image_job(job, 40, config={**QUICK, "image_model": model, "image_size": 16}))
    assert {one["label"] for one in ask_images(output)} <= {"left", "right"}
    described = json.loads((output / "model.json").read_text())["architecture"]
    assert described["image_encoder"] == "transformers"
    assert described["image_transformer"]["config"]["image_size"] == 16
    assert "running_mean" not in str(sorted(safetensors_header.read_header(output / "model.safetensors")))


def test_images_are_learnt(job: Callable[..., Path]) -> None:
    config = {**QUICK, "image_model": RESNET, "image_size": 16, "epochs": 10, "learning_rate": 0.003}
    told = ask_images(trained(image_job(job, 80, config=config)))
    assert [one["label"] for one in told] == squares(4, seed=1)[1]


@pytest.mark.parametrize("model", WRITERS, ids=named)
def test_language_models_start_from_nothing(job: Callable[..., Path], model: dict[str, Any]) -> None:
    made = job(
        {"note": notes()["note"]}, task="language-model", target="note",
        config={**QUICK, "text_model": model, "text_length": 16},
    )  # fmt: skip
    predictor = Predictor(trained(made))
    assert predictor.description["architecture"]["architecture"] == "transformers"
    assert isinstance(predictor.predict([{"prompt": "the item", "max_tokens": 4}])[0]["text"], str)
    points = [one["values"] for one in read_spool(made, "metric") if "validation/loss" in one["values"]]
    assert points[-1]["validation/loss"] < points[0]["validation/loss"]


def test_a_chat_has_marks_of_its_own(job: Callable[..., Path]) -> None:
    chats = [
        json.dumps([{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}])
        for word in ["yes", "no"] * 20
    ]
    made = job(
        {"messages": ("text", chats)}, task="language-model", target="messages",
        config={**QUICK, "text_model": WRITERS[0], "text_length": 16},
    )  # fmt: skip
    tokenizer = package.load(trained(made)).preprocessor.tokenizer
    assert tokenizer is not None and tokenizer.marked and tokenizer.decode(tokenizer.closing()).strip() == ""


@pytest.mark.parametrize("mode", ["full", "head", "lora"])
@pytest.mark.parametrize("kind", ["text", "vit", "resnet"])
def test_such_a_version_is_tuned_like_any_other(job: Callable[..., Path], kind: str, mode: str) -> None:
    if kind == "text":

        def make(name: str, **more: Any) -> Path:
            config = {**QUICK} if more else {**QUICK, "text_model": TEXTS[0]}
            return job(notes(), name=name, config=config, **more)
    else:

        def make(name: str, **more: Any) -> Path:
            model = {"image_model": VIT if kind == "vit" else RESNET, "image_size": 16}
            return image_job(job, 40, name=name, config={**QUICK, **({} if more else model)}, **more)

    base = trained(make("base"))
    made = make("tuned", finetune={"mode": mode})
    shutil.copytree(base, made / "base")
    output = trained(made)
    if mode == "lora":
        assert not (output / "model.safetensors").exists()
        shutil.copytree(base, output / "base")
    assert package.load(output)
    assert len(ask_images(output) if kind != "text" else Predictor(output).predict([{"note": "good"}])) >= 1


def test_a_base_keeps_its_network(job: Callable[..., Path]) -> None:
    base = trained(text_job(job, TEXTS[0], "base"))
    made = text_job(job, TEXTS[0], "tuned", finetune={"mode": "full"})
    shutil.copytree(base, made / "base")
    assert run_job(made) == 1
    assert "brings its own network" in read_spool(made, "failed")[-1]["sentence"]


def test_a_stopped_run_ends_with_the_same_bytes(job: Callable[..., Path]) -> None:
    def make(name: str, **more: Any) -> Path:
        table = {**notes(), "z": ("number", [float(row) for row in range(64)])}
        config = {**QUICK, "text_model": TEXTS[0], "epochs": 4, "tokenizer": "byte", "early_stopping": False}
        return job(table, name=name, config=config, **more)

    whole, parts = trained(make("whole")), make("parts", stop_after_epoch=2)
    assert run_job(parts) == 75
    spec = json.loads((parts / "spec.json").read_text())
    (parts / "spec.json").write_text(json.dumps({**spec, "stop_after_epoch": None}))
    assert run_job(parts) == 0
    for path in whole.iterdir():
        assert (parts / "output" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("setting", "model", "field", "code"),
    [
        ("text_model", {"model_type": "bert", "hiden_size": 8}, "text_model.hiden_size", "unknown_field"),
        ("text_model", {"model_type": "bert", "vocab_size": 8}, "text_model.vocab_size", "not_for_model"),
        ("text_model", {"model_type": "nobody-knows"}, "text_model", "invalid"),
        ("text_model", {"model_type": "../bert"}, "text_model", "invalid"),
        ("text_model", {"hidden_size": 8}, "text_model", "invalid"),
        ("text_model", {"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}, "text_model", "invalid"),
        ("text_model", {"model_type": "bert", "hidden_size": 1 << 40}, "text_model", "invalid"),
        ("text_model", {"model_type": "bert", "num_hidden_layers": 10**6}, "text_model", "invalid"),
        ("text_model", {"model_type": "vit"}, "text_model.model_type", "not_for_model"),
        ("text_model", {"model_type": "t5", "is_encoder_decoder": True}, "text_model", "invalid"),
        ("text_model", {"model_type": "bert", "hidden_size": -5}, "text_model.hidden_size", "out_of_range"),
        ("text_model", {"model_type": "bert", "num_attention_heads": 0}, "text_model.num_attention_heads", "out_of_range"),
        ("image_model", {"model_type": "resnet", "depths": []}, "image_model.depths", "out_of_range"),
        ("image_model", {"model_type": "resnet", "hidden_sizes": [8, 0]}, "image_model.hidden_sizes", "out_of_range"),
        ("text_model", "bert", "text_model", "wrong_type"),
        ("text_model", {"model_type": "bert", "hidden_act": "x" * 30_000}, "text_model", "out_of_range"),
        ("image_model", {"model_type": "bert"}, "image_model.model_type", "not_for_model"),
        ("image_model", {**VIT, "image_size": 16}, "image_model.image_size", "not_for_model"),
        ("image_model", {"model_type": "resnet", "depths": [1] * 100}, "image_model.depths", "out_of_range"),
        ("image_model", {"model_type": "detr", "backbone": "resnet50"}, "image_model", "invalid"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_it_is_queued(setting: str, model: Any, field: str, code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({setting: model}, "classification")
    assert (field, code) in [(one[0], one[1]) for one in refused.value.problems], refused.value.problems


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"text_model": TEXTS[0], "text_encoder": "hashed"}, "text_encoder"),
        ({"text_model": TEXTS[0], "text_encoder": "pretrained"}, "text_encoder"),
        ({"text_model": TEXTS[0], "params": {"text_width": 32}}, "params.text_width"),
        ({"text_model": {**TEXTS[0], "max_position_embeddings": 34}, "text_length": 33}, "text_length"),
        ({"image_model": VIT, "image_encoder": "resnet"}, "image_encoder"),
        ({"image_encoder": "transformers"}, "image_encoder"),
        ({"text_model": TEXTS[0], "architecture": "code"}, "text_model"),
    ],
)
def test_settings_that_do_not_go_together(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(config, "classification")
    assert field in [one[0] for one in refused.value.problems]
    assert parse_config({"text_model": None, "image_model": None}, "classification").text_model is None


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"model_type": "bert", "hidden_size": 3 << 18}, "GB"),
        ({"model_type": "bert", "hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}, "attention heads"),
    ],
)
def test_a_network_that_cannot_be_built_is_a_named_failure(
    job: Callable[..., Path], model: dict[str, Any], told: str
) -> None:
    made = text_job(job, model)
    assert run_job(made) == 1
    failed = read_spool(made, "failed")[-1]
    assert failed["code"] == "bad_config" and "text_model" in failed["sentence"] and told in failed["sentence"]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({**VIT, "patch_size": 64}, "image_model"),
        ({"model_type": "vit_mae", **TEXT, "patch_size": 4}, "random numbers"),
    ],
)
def test_an_architecture_that_sees_nothing_is_a_named_failure(
    job: Callable[..., Path], model: dict[str, Any], told: str
) -> None:
    made = image_job(job, 40, config={**QUICK, "image_model": model, "image_size": 16})
    assert run_job(made) == 1
    failed = read_spool(made, "failed")[-1]
    assert failed["code"] == "bad_config" and told in failed["sentence"], failed


def test_texts_are_cut_to_what_the_network_reads(job: Callable[..., Path]) -> None:
    made = text_job(job, {**TEXTS[0], "max_position_embeddings": 6})
    assert Predictor(trained(made)).predict([{"note": "good " * 100}])
    assert json.loads((made / "output/model.json").read_text())["preprocessing"][0]["length"] == 4


def test_columns_that_nothing_reads_are_told(job: Callable[..., Path]) -> None:
    made = job(
        {"x": ("number", list(range(40))), "y": ("category", ["a", "b"] * 20)}, config={**QUICK, "text_model": TEXTS[0]}
    )
    assert run_job(made) == 1
    assert "none of the features is a text" in read_spool(made, "failed")[-1]["sentence"]


def test_a_package_that_lies_about_its_network_is_refused(job: Callable[..., Path]) -> None:
    output = trained(image_job(job, 40, config={**QUICK, "image_model": VIT, "image_size": 16}))
    (output / "manifest.json").unlink()
    described = json.loads((output / "model.json").read_text())
    for change in ({"width": 17}, {"width": 0}, {"config": {"model_type": "vit", "auto_map": {}}}):
        lying = json.loads(json.dumps(described))
        lying["architecture"]["image_transformer"] |= change
        (output / "model.json").write_text(json.dumps(lying))
        with pytest.raises(PackageError):
            package.load(output)


def test_presets_are_sound_and_names_are_known_without_the_library() -> None:
    for preset in PRESETS:
        assert not list(faults(preset.setting, preset.config)), preset
    assert {"hidden_size", "n_embd"} <= known_names("gpt2") and "rope_theta" in known_names("llama")


def test_the_random_state_outside_stays(job: Callable[..., Path]) -> None:
    from dlplatform.engine.preprocessing import InputSizes
    from dlplatform.engine.transformers_fresh import looks_at_images

    sizes = InputSizes(0, (), (), 0, images=1, image_channels=1, image_size=16)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert looks_at_images(parse_config({"image_model": VIT}, "classification"), sizes)["width"] == 16
    assert torch.equal(torch.get_rng_state(), before)
