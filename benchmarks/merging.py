"""Two versions of a network, fine-tuned to opposite shifts of the images, merged by every method.

A network of the engine learns digits as they are; one copy is fine-tuned on digits a pixel further left, the other a
pixel further right; the methods then merge the two over their common ancestor. Told for each: the share of either
expert's gain that the merge keeps on its shifted digits, and the accuracy on digits as they are. RegMean sees 256
unlabelled images of each parent's own data, of the ancestor's too (the "base as third parent" of arXiv 2212.09849).

    python -m benchmarks.merging [--short]
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch.nn import functional

from dlplatform.engine.dataset import to_tensors
from dlplatform.engine.grams import collect_grams
from dlplatform.engine.merging import Recipe, merge_weights
from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.runners import TorchRunner
from dlplatform.engine.table import Table

from .measuring import arguments, median, report
from .quality import write_job

Array = np.ndarray[Any, Any]
WEIGHTS = "model.safetensors"
INPUTS = 256
LIMIT = 0.8
CLEAN_LOSS = 0.005
CONFIG = {"architecture": "mlp", "epochs": 60, "threads": 1, "importance": False}
METHODS = {
    "average": Recipe("average"),
    "slerp": Recipe("slerp"),
    "ties": Recipe("ties", density=0.2),
    "task-arithmetic": Recipe("task-arithmetic", shares=(0.5, 0.5)),
    "regmean": Recipe("regmean"),
}


@dataclass
class Digits:
    """Images [n, 8, 8] and their classes."""

    images: Array
    classes: Array

    def shifted(self, by: int) -> "Digits":
        return Digits(np.roll(self.images, by, axis=2), self.classes)

    def table(self) -> Table:
        flat = self.images.reshape(len(self.images), -1).astype(np.float64)
        return Table({f"x{index}": flat[:, index] for index in range(flat.shape[1])}, len(flat))


def split(seed: int) -> tuple[Digits, Digits]:
    """Three quarters to learn from, one to measure on."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    cut = len(order) * 3 // 4
    parts = order[:cut], order[cut:]
    learn, measure = (Digits(data.images[part], data.target[part].astype(np.int64)) for part in parts)
    return learn, measure


def train_base(folder: Path, learn: Digits, seed: int) -> Path:
    flat = learn.images.reshape(len(learn.images), -1)
    write_job(folder, flat, learn.classes, "classification", {**CONFIG, "seed": seed})
    if run_job(folder):
        raise SystemExit((folder / "events.jsonl").read_text()[-2000:])
    return folder / "output"


def tune(base: Path, target: Path, data: Digits, seed: int, steps: int) -> Path:
    """A copy of the package whose weights were trained on, by AdamW on all of them."""
    predictor = Predictor(base)
    network = copy.deepcopy(predictor.network).train()
    tensors = to_tensors(predictor._preprocessor.transform(data.table()), data.classes, torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    groups = network.shape.groups
    for _ in range(steps):
        rows = torch.randint(len(data.classes), (64,), generator=generator)
        outputs = network(tensors.batch(rows.expand(groups, -1)))
        wanted = torch.from_numpy(data.classes)[rows].expand(*outputs.shape[:2], -1)
        loss = functional.cross_entropy(outputs.flatten(0, -2), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return write_package(base, target, {name: value.detach() for name, value in network.state_dict().items()})


def write_package(base: Path, target: Path, weights: dict[str, torch.Tensor] | Path) -> Path:
    """The package with other weights."""
    target.mkdir(parents=True)
    for path in base.iterdir():
        if path.name not in (WEIGHTS, "manifest.json"):
            (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(weights) if isinstance(weights, Path) else weights
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, target / WEIGHTS, metadata={"format": "pt"}
    )
    return target


def accuracy(package: Path, data: Digits) -> float:
    predictor = Predictor(package)
    values = np.array(predictor.description["output"]["values"])
    return float((values[predictor.predict_table(data.table()).argmax(1)] == data.classes).mean())


def grams_of(package: Path, data: Digits) -> dict[str, torch.Tensor]:
    predictor = Predictor(package)
    chosen = Digits(data.images[:INPUTS], data.classes[:INPUTS])
    run = TorchRunner(predictor.network)
    return collect_grams(predictor.network, lambda: run(predictor.encode(chosen.table())))


def measure(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """{method: {left, right: share of the expert's gain kept, clean: change of the accuracy}} for one seed."""
    learn, held_out = split(seed)
    sides = {"left": -1, "right": 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = train_base(folder / "job", learn, seed)
        experts = {side: tune(base, folder / side, learn.shifted(by), seed, steps) for side, by in sides.items()}
        clean = accuracy(base, held_out)
        before = {side: accuracy(base, held_out.shifted(by)) for side, by in sides.items()}
        gain = {side: accuracy(experts[side], held_out.shifted(by)) - before[side] for side, by in sides.items()}
        found: dict[str, dict[str, float]] = {"experts": {**gain, "clean": clean}}
        for method, recipe in METHODS.items():
            parents, grams = [experts[side] for side in sides], []
            if method == "regmean":
                parents = [*parents, base]
                data = [*(learn.shifted(by) for by in sides.values()), learn]
                grams = [grams_of(parent, own) for parent, own in zip(parents, data, strict=True)]
            merged = folder / f"{method}.safetensors"
            merge_weights(merged, [parent / WEIGHTS for parent in parents], base / WEIGHTS, recipe, grams)
            package = write_package(base, folder / method, merged)
            kept = {
                side: (accuracy(package, held_out.shifted(by)) - before[side]) / gain[side]
                for side, by in sides.items()
            }
            found[method] = {**kept, "clean": accuracy(package, held_out) - clean}
    return found


def main() -> None:
    short = arguments(__doc__).short
    seeds = range(2 if short else 5)
    measured = [measure(seed, 400) for seed in seeds]
    for method in ("experts", *METHODS):
        figures = {key: median([one[method][key] for one in measured]) for key in ("left", "right", "clean")}
        if method == "experts":
            gains = {"gain_left": figures["left"], "gain_right": figures["right"], "clean_accuracy": figures["clean"]}
            continue
        passes = min(figures["left"], figures["right"]) >= LIMIT and figures["clean"] >= -CLEAN_LOSS
        report(
            "merging", method, seeds=len(seeds), kept_left=figures["left"], kept_right=figures["right"],
            clean_change=figures["clean"], **gains,
            limit=f"regmean keeps {LIMIT} of each gain, clean −{CLEAN_LOSS} at most", passes=passes or method != "regmean",
        )  # fmt: skip


if __name__ == "__main__":
    main()
