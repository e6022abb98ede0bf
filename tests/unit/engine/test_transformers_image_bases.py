"""Pretrained models of images as bases: seen as their own classifiers see, fine-tuned in every mode, saved as packages."""

from __future__ import annotations

import base64
import hashlib
import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from dlplatform.engine import package
from dlplatform.engine.adapters import frozen
from dlplatform.engine.errors import PackageError
from dlplatform.engine.framing import Framing
from dlplatform.engine.image_arrays import image_array
from dlplatform.engine.images import upright
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.table import Table
from dlplatform.engine.transformers_images import TransformersImages, pretrained
from dlplatform.engine.transformers_models import TransformersBase
from dlplatform.engine.transformers_pixels import read_image_processor
from tests.unit.engine.conftest import read_spool
from tests.unit.engine.test_modalities import image_job, keep_images, last_events, squares
from tests.unit.engine.transformers_bases import IMAGES, PROCESSOR, TINY, tiny_bert, tiny_gpt, tiny_images

PREFIX = "encoder.images.body.model."
CONFIG = {"epochs": 2, "threads": 1, "batch_size": 16, "checkpoint_seconds": 0.05, "importance": False}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("bases"), {}

    def base(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny_images(folder / kind, kind)
        return made[kind]

    return base


def tune(job: Callable[..., Path], base: Path, name: str = "tuned", config: Any = None, **finetune: Any) -> Path:
    made = image_job(job, 40, name, config={**CONFIG, **(config or {})}, finetune=finetune)
    shutil.copytree(base, made / "base")
    return made


def trained(made: Path) -> Path:
    assert run_job(made) == 0, last_events(made)
    return made / "output"


def encoder_of(base: Path) -> TransformersImages:
    read = package.read_base(base)
    assert isinstance(read, TransformersBase) and read.sense == "image"
    images = read.image_processor()
    part = TransformersImages(pretrained(read.transformer.config, images.channels, images.side))
    part.model.load_state_dict(package.transformers_models.read_weights(read, part.model))
    return part.eval()


@pytest.mark.parametrize("kind", [*IMAGES])
@torch.no_grad()
def test_an_image_is_what_the_models_own_classifier_sees(bases: Callable[[str], Path], kind: str) -> None:
    from transformers import AutoModelForImageClassification

    theirs = AutoModelForImageClassification.from_pretrained(bases(kind)).eval()
    classifier = theirs.classifier
    pixels = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ours = encoder_of(bases(kind))
    seen = ours(pixels)
    assert seen.shape == (5, ours.width)
    said = classifier(seen[:, :, None, None] if kind in ("resnet", "regnet") else seen)
    assert torch.allclose(said, theirs(pixel_values=pixels).logits, atol=1e-5)
    assert torch.allclose(ours(pixels[:1]), seen[:1], atol=1e-5)  # whatever the rows beside it


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext"])
def test_full_trains_all_and_the_package_stands_alone(
    job: Callable[..., Path], bases: Callable[[str], Path], kind: str
) -> None:
    output = trained(tune(job, bases(kind), mode="full"))
    before, after = encoder_of(bases(kind)).model.state_dict(), load_file(output / "model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[PREFIX + name])}
    fitted = {name for name in before if "running_" in name}
    assert changed and not changed & fitted and bool(fitted) == (kind == "resnet")
    assert torch.allclose(after["encoder.images.mean"], torch.tensor([127.5, 102.0, 76.5]))
    assert torch.allclose(after["encoder.images.deviation"], torch.tensor([51.0, 76.5, 102.0]))

    predictor = Predictor(output)
    pictures, _ = squares(4, seed=1)
    rows = [{"image": base64.b64encode(content).decode()} for content in pictures]
    together, alone = predictor.predict(rows), predictor.predict(rows[:1])
    assert alone[0]["probabilities"] == pytest.approx(together[0]["probabilities"], abs=1e-6)
    assert f"a pretrained transformer ({kind}) over images" in (output / "README.md").read_text()
    assert predictor.description["architecture"]["inputs"]["image_channels"] == 3


def test_head_leaves_the_base_alone_until_it_thaws(job: Callable[..., Path], bases: Callable[[str], Path]) -> None:
    before = encoder_of(bases("vit")).model.state_dict()

    def changed(output: Path) -> set[str]:
        after = load_file(output / "model.safetensors")
        return {name for name, tensor in before.items() if not torch.equal(tensor, after[PREFIX + name])}

    assert not changed(trained(tune(job, bases("vit"), mode="head")))
    thawed = changed(trained(tune(job, bases("vit"), "thawed", mode="head", unfreeze_every=1)))
    assert thawed and all(name.startswith(("layernorm", "encoder.layer.1", "layers.1")) for name in thawed)


@pytest.mark.parametrize(
    ("kind", "adapter"), [("vit", "lora"), ("vit", "ia3"), ("resnet", "lora"), ("convnext", "dora")]
)
def test_adapters_lie_over_the_base_and_peft_reads_them(
    job: Callable[..., Path], bases: Callable[[str], Path], kind: str, adapter: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    output = trained(tune(job, bases(kind), mode="lora", adapter=adapter, rank=2))
    assert not (output / "model.safetensors").exists()
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(bases(kind)), str(output)).eval()
    shutil.copytree(bases(kind), output / "base")
    loaded = package.load(output)
    kept, before = frozen(loaded.network), encoder_of(bases(kind)).model.state_dict()
    assert all(torch.equal(kept[PREFIX + name], tensor) for name, tensor in before.items())
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        said = theirs(pixel_values=pixels).last_hidden_state
        ours = loaded.network.encoder.images.body.model(pixel_values=pixels).last_hidden_state
        plain = encoder_of(bases(kind)).model(pixel_values=pixels).last_hidden_state
    assert torch.allclose(said, ours, atol=1e-5) and not torch.allclose(said, plain, atol=1e-6)
    assert Predictor(output).predict([{"image": None}])


def test_a_tuned_package_is_a_base_in_its_turn(job: Callable[..., Path], bases: Callable[[str], Path]) -> None:
    first = trained(tune(job, bases("resnet"), mode="full"))
    statistics = {name: tensor for name, tensor in load_file(first / "model.safetensors").items() if "running_" in name}
    for mode in ("full", "head", "lora"):
        output = trained(tune(job, first, f"again-{mode}", mode=mode))
        if mode == "lora":
            shutil.copytree(first, output / "base")
        else:
            after = load_file(output / "model.safetensors")
            assert all(torch.equal(after[name], tensor) for name, tensor in statistics.items())
        assert Predictor(output).predict([{"image": None}])


FRAMING = {"shortest": 22, "resample": 3}  # a side of 20, of which 0.875 are left: a tiny ConvNeXt's own processor


def coding_of(output: Path) -> dict[str, Any]:
    return next(
        one for one in json.loads((output / "model.json").read_text())["preprocessing"] if one["type"] == "image"
    )


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_pixels_are_those_of_the_bases_processor_and_the_version_keeps_them(
    job: Callable[..., Path], bases: Callable[[str], Path], mode: str
) -> None:
    """In training, in prediction and in what is tuned from it; a job that says nothing of pixels letterboxes as all did."""
    made = tune(job, bases("convnext"), mode=mode, pixels="base")
    output = trained(made)
    coding, before = coding_of(output), coding_of(trained(tune(job, bases("convnext"), "before", mode=mode)))
    assert coding["framing"] == FRAMING and coding["side"] == 20
    assert "framing" not in before and before["side"] == 16
    if mode == "lora":
        shutil.copytree(bases("convnext"), output / "base")
    pictures, _ = squares(4, seed=1)
    names = keep_images(made, pictures)
    predictor = Predictor(output, made / "data" / "images")
    rows = [{"image": base64.b64encode(content).decode()} for content in pictures]
    wanted = np.stack([image_array(upright(one), 3, 20, Framing(shortest=22, resample=3)) for one in pictures])
    assert (predictor.read(rows).images[:, 0] == wanted).all()
    table = Table({"image": pa.array(names)}, len(names))
    assert (predictor.encode(table).images[:, 0] == wanted).all()
    assert predictor.predict_table(table).tolist() == [
        pytest.approx(list(each["probabilities"].values()), abs=1e-6) for each in predictor.predict(rows)
    ]
    if mode == "full":
        assert coding_of(trained(tune(job, output, "again", mode="full", pixels="letterbox")))["framing"] == FRAMING


# What a processor's file may say that no framing can, beside the side of the network, which is all that a letterbox needs.
NOT_FRAMED = [
    {"size": 600}, {"size": 5000}, {"resample": "bicubic"}, {"crop_size": "224x224", "do_center_crop": True},
]  # fmt: skip


@pytest.mark.parametrize("processor", NOT_FRAMED, ids=str)
def test_what_no_framing_can_be_read_of_is_letterboxed_as_before(
    job: Callable[..., Path], bases: Callable[[str], Path], processor: dict[str, Any]
) -> None:
    """Runs from before, and those that ask for it, learn and answer; adapters over such a base do too."""
    for name, settings in (("before", {"mode": "lora"}), ("asked", {"mode": "head", "pixels": "letterbox"})):
        made = tune(job, bases("vit"), name, **settings)
        (made / "base" / "preprocessor_config.json").write_text(json.dumps(processor))
        output = trained(made)
        if name == "before":
            shutil.copytree(made / "base", output / "base")
        assert Predictor(output).predict([{"image": None}]) and coding_of(output)["side"] == 16
    now = tune(job, bases("vit"), "now", mode="head", pixels="base")
    (now / "base" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert run_job(now) == 1
    told = read_spool(now, "failed")[-1]
    assert told["code"] == "bad_config" and "preprocessor_config.json" in told["sentence"]


def test_a_dinov2_of_another_size_looks_at_what_its_processor_cuts(job: Callable[..., Path], tmp_path: Path) -> None:
    """It fits its positions to the image: those of the Hub are of 518 pixels, more than any image here, and cut to 224."""
    from transformers import Dinov2Config, Dinov2Model

    base = tmp_path / "dinov2"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **sizes)).save_pretrained(base)
    crop = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}}
    (base / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "BitImageProcessor", **crop}))
    output = trained(tune(job, base, mode="head", pixels="base"))
    assert coding_of(output)["side"] == 28 and Predictor(output).predict([{"image": None}])
    assert run_job(tune(job, base, "before", mode="head")) == 1, "as it was"


def test_a_package_that_lies_about_its_framing_is_refused(
    job: Callable[..., Path], bases: Callable[[str], Path]
) -> None:
    output = trained(tune(job, bases("convnext"), mode="head", pixels="base"))
    described = json.loads((output / "model.json").read_text())
    (output / "manifest.json").unlink()
    for wrong in ({"shortest": 10**6}, {"odd": 1}, [1]):
        described["preprocessing"][0]["framing"] = wrong
        (output / "model.json").write_text(json.dumps(described))
        with pytest.raises(PackageError, match="does not describe"):
            package.verify(output)


def test_sizes_that_the_base_cannot_look_at_are_told(job: Callable[..., Path], bases: Callable[[str], Path]) -> None:
    made = tune(job, bases("vit"), config={"image_size": 32}, mode="head")
    assert run_job(made) == 1
    told = read_spool(made, "failed")[-1]
    assert told["code"] == "bad_config" and "32 pixels" in told["sentence"] and "16" in told["next_step"]
    larger = trained(tune(job, bases("resnet"), "larger", config={"image_size": 32}, mode="head"))
    assert Predictor(larger).description["architecture"]["inputs"]["image_size"] == 32


def test_data_and_settings_that_do_not_go_with_it(job: Callable[..., Path], bases: Callable[[str], Path]) -> None:
    made = job({"x": ("number", [1.0, 2.0] * 20), "y": ("category", ["a", "b"] * 20)}, config=CONFIG, finetune={})
    shutil.copytree(bases("vit"), made / "base")
    assert run_job(made) == 1 and "looks at images" in read_spool(made, "failed")[-1]["sentence"]
    vit = {"model_type": "vit", **TINY, "patch_size": 4}
    other = tune(job, bases("resnet"), "other", config={"image_model": vit, "image_size": 16}, mode="head")
    assert run_job(other) == 1 and "image_model" in read_spool(other, "failed")[-1]["sentence"]
    alone = image_job(job, 40, "alone", config={**CONFIG, "image_encoder": "pretrained"})
    assert run_job(alone) == 1 and "no pretrained model" in read_spool(alone, "failed")[-1]["sentence"]


def test_texts_beside_the_images_are_read_by_a_network_of_their_own(
    job: Callable[..., Path], bases: Callable[[str], Path]
) -> None:
    pictures, labels = squares(40)
    names = [hashlib.sha256(content).hexdigest() for content in pictures]
    table = {
        "image": ("image", names), "note": ("text", [f"the {label} one of many" for label in labels]),
        "y": ("category", labels),
    }  # fmt: skip
    config = {**CONFIG, "text_model": {"model_type": "bert", **TINY}, "vocabulary": 300}
    made = job(table, config=config, finetune={"mode": "full"})
    keep_images(made, pictures)
    shutil.copytree(bases("resnet"), made / "base")
    architecture = Predictor(trained(made)).description["architecture"]
    assert architecture["transformer"]["fresh"] and "fresh" not in architecture["image_transformer"]


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (
            lambda folder: tiny_images(folder, "vit"),
            {"num_hidden_layers": 12, "hidden_size": 65536, "num_attention_heads": 2},
        ),
        (tiny_bert, {"num_hidden_layers": 12, "hidden_size": 65536, "num_attention_heads": 2}),
        (tiny_gpt, {"n_layer": 12, "n_embd": 65536}),
    ],
    ids=["images", "texts", "language"],
)
def test_what_no_weights_could_fill_is_never_built(
    tmp_path: Path, make: Callable[[Path], Path], change: dict[str, int]
) -> None:
    base = make(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **change}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PackageError, match="The weights of the base do not fit"):
        package.read_base(base)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KB: far below what it describes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": ["a", 1, 1]}, "image_mean"),
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std"),
        ({"image_std": [1e300, 1.0, 1.0]}, "image_std"),
        ({"image_std": 1e-320}, "image_std"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"crop_size": {"height": 16, "width": 20}}, "square"),
        ({"crop_size": 5000}, "5000 pixels"),
        ({"crop_size": {"depth": 16}}, "square"),
        ({"crop_size": True}, "square"),
    ],
)
def test_processors_that_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **change}))
    with pytest.raises(PackageError, match=told):
        read_image_processor(tmp_path, {})


def test_what_a_directory_does_not_say_is_that_of_imagenet(tmp_path: Path) -> None:
    usual = read_image_processor(tmp_path, {"num_channels": 3})
    assert (usual.channels, usual.side) == (3, 224) and usual.mean[0] == pytest.approx(0.485 * 255)
    grey = read_image_processor(tmp_path, {"num_channels": 1, "image_size": [64, 64]})
    assert (grey.channels, grey.side, len(grey.mean)) == (1, 64, 1)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false, "size": 32}')
    plain = read_image_processor(tmp_path, {})
    assert plain.side == 32 and plain.mean == (0.0,) * 3 and plain.deviation[0] == pytest.approx(255)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(PackageError, match="JSON object"):
        read_image_processor(tmp_path, {})
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(PackageError, match="channels"):
        read_image_processor(tmp_path, {"num_channels": 4})
    with pytest.raises(PackageError, match="channels"):
        read_image_processor(tmp_path, {"num_channels": 3.0})
    with pytest.raises(PackageError, match="262,144 patches"):
        read_image_processor(tmp_path, {"image_size": 512, "patch_size": 1})
