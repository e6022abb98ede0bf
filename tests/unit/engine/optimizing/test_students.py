"""Students of networks that look at images: taught with batch normalisation, kept as convolutions alone."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dlplatform.engine import package
from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.image_arrays import source_in
from dlplatform.engine.optimizing.folding import Normalised, fold, normalise
from dlplatform.engine.optimizing.learning import _epoch
from dlplatform.engine.optimizing.plan import Plan
from dlplatform.engine.optimizing.rows import split_again, targets_of
from dlplatform.engine.optimizing.work import make_variant
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.schema import Column
from dlplatform.engine.table import read_table
from dlplatform.engine.vision import FOLDED, FoldedResNet
from tests.unit.engine.conftest import write_job
from tests.unit.engine.optimizing.conftest import Trained, described
from tests.unit.engine.test_finetuning import tune
from tests.unit.engine.test_modalities import QUICK, keep_images, last_events, squares

TAUGHT = {"keep": 0.5, "epochs": 12}


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A ResNet of grey squares, bright on the left or on the right."""
    images, labels = squares(120)
    names = [hashlib.sha256(content).hexdigest() for content in images]
    config = {**QUICK, "epochs": 8, "validation_fraction": 0.25, "params": {**QUICK["params"], "image_width": 16}}
    made = write_job(
        tmp_path_factory.mktemp("looking") / "job",
        {"image": ("image", names), "y": ("category", labels)},
        config=config,
    )
    keep_images(made, images)
    assert run_job(made) == 0, last_events(made)
    loaded = package.load(made / "output")
    columns = {column["name"]: Column(column["name"], column["type"]) for column in _columns(made)}
    table = read_table([made / "data" / "part-00000.parquet"], list(columns.values()))
    targets = targets_of(loaded.description, {name: column.type for name, column in columns.items()})
    source = source_in(made / "data" / "images")
    return Trained(
        made / "output", loaded, split_again(loaded.description, loaded.preprocessor, table, targets, source)
    )


def _columns(made: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((made / "spec.json").read_text())["columns"]
    return found


def asked(count: int) -> tuple[list[dict[str, str]], list[str]]:
    images, labels = squares(count, seed=3)
    return [{"image": base64.b64encode(content).decode()} for content in images], labels


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (100, 3), (200, 3)])
def test_what_was_normalised_by_batches_is_worked_into_the_convolutions(size: int, channels: int) -> None:
    body = FoldedResNet(channels, size, width=8, depth=2)
    names = set(body.state_dict())
    with torch.no_grad():
        body.initialise(torch.Generator().manual_seed(1))
    normalise(body)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        body.train()(torch.randn(6, channels, size, size, generator=generator) * 3 + 1)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0, generator=generator)
            nn.init.uniform_(module.bias, -1.0, 1.0, generator=generator)
    pixels = torch.randn(4, channels, size, size, generator=generator)
    with torch.inference_mode():
        before = body.eval()(pixels)
    fold(body)
    with torch.inference_mode():
        after = body(pixels)
        alone = torch.cat([body(each.unsqueeze(0)) for each in pixels])
    assert not any(isinstance(module, nn.BatchNorm2d | Normalised) for module in body.modules())
    assert set(body.state_dict()) == names
    assert after.shape == (4, body.width)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert torch.allclose(alone, after, rtol=1e-4, atol=1e-4 * float(after.abs().max()))


@pytest.mark.parametrize("size", [8, 28, 64, 68, 128, 132, 224])
def test_every_pixel_is_looked_at(size: int) -> None:
    body = FoldedResNet(1, size, width=8, depth=1)
    pixels = torch.zeros(1, 1, size, size, requires_grad=True)
    body.stem(pixels).square().sum().add(body.stem(pixels).sum()).backward()
    assert pixels.grad is not None
    assert bool((pixels.grad != 0).all())


@pytest.mark.parametrize(("rows", "size"), [(65, 64), (129, 64), (64, 64), (10, 64), (1, 64), (200, 64)])
def test_batches_of_an_epoch_are_of_nearly_one_size(rows: int, size: int) -> None:
    class Learner:
        config = TrainingConfig(batch_size=size)
        train_rows = [torch.arange(rows)]

    found = _epoch(Learner, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    sizes = [batch.shape[1] for batch in found]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert sorted(torch.cat(found, 1)[0].tolist()) == list(range(rows))


@pytest.mark.parametrize("kept", ["", "onnx", "onnx-int8-static", "int8", "torch-export"])
def test_a_student_of_a_resnet_has_no_normalisation_and_answers(looking: Trained, kept: str, tmp_path: Path) -> None:
    found = looking.variant(tmp_path / "made", *filter(None, ("distil", kept)), **TAUGHT)
    shape = found.description["architecture"]
    assert (shape["image_encoder"], shape["image_width"]) == (FOLDED, 8)
    assert looking.loaded.description["architecture"]["image_encoder"] == "resnet"
    instances, labels = asked(40)
    answers = Predictor(tmp_path / "made").predict(instances)
    assert np.mean([one["label"] == label for one, label in zip(answers, labels, strict=True)]) >= 0.9
    card = (tmp_path / "made" / "README.md").read_text()
    assert "without normalisations" in card
    assert "- optimised: passes distil" in card
    assert "{" not in card.split("## Data")[1].split("## Quality")[0]
    if not kept:
        sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "made", looking.package)]
        assert sizes[0] < sizes[1] / 3
        names = package.load(tmp_path / "made").network.state_dict()
        assert not any("norm" in name for name in names)


def test_a_student_is_taught_the_same_each_time_and_can_teach(looking: Trained, tmp_path: Path) -> None:
    for name in ("one", "two"):
        looking.variant(tmp_path / name, "distil", **TAUGHT)
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert contents[0] == contents[1]
    again = package.load(tmp_path / "one")
    third = make_variant(
        tmp_path / "one", again, Plan(("distil",), keep=0.3, epochs=12), looking.rows, tmp_path / "three"
    )
    assert third.description["architecture"]["image_encoder"] == FOLDED
    with pytest.raises(EngineError) as refused:
        make_variant(tmp_path / "one", again, Plan(("structured",), **TAUGHT), looking.rows, tmp_path / "four")
    assert refused.value.code == "nothing_to_cut"


@pytest.mark.parametrize("finetune", [{"mode": "full"}, {"mode": "head"}, {"mode": "lora", "rank": 2}])
def test_a_student_is_a_base_like_any_other(
    looking: Trained, job: Callable[..., Path], finetune: dict[str, object], tmp_path: Path
) -> None:
    looking.variant(tmp_path / "student", "distil", **TAUGHT)
    made = tune(job, "image", tmp_path / "student", **finetune)
    assert run_job(made) == 0, last_events(made)
    if finetune["mode"] != "lora":
        assert json.loads((made / "output" / "model.json").read_text())["architecture"]["image_encoder"] == FOLDED


def test_a_package_of_a_student_that_is_also_cut_is_refused(looking: Trained, tmp_path: Path) -> None:
    looking.variant(tmp_path / "made", "distil", **TAUGHT)
    for number, cut in enumerate(
        ({"image_stages": [8, 8, 8]}, {"image_inner": [8, 8, 8]}, {"image_encoder": "resnet"})
    ):
        copied = tmp_path / str(number)
        shutil.copytree(tmp_path / "made", copied)
        described(copied, lambda told, cut=cut: told["architecture"].update(cut))  # type: ignore[misc]
        with pytest.raises(PackageError):
            package.load(copied)
