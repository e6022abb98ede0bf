"""Training throughput of the engine beside the same network in a bare hand-written loop.

One epoch of each in turn (A B A B). Both hold their tensors in memory, index them by a permutation, use the
same fused optimizer and batch size, and predict the validation rows after the epoch. The engine also
follows its schedule, checks every loss, writes events and metrics to a spool and makes checkpoints.
Prints one JSON line; ``ratio`` is engine / bare, 1.0 being the limit.

    python benchmarks/training_throughput.py [--repetitions 7] [--threads 1] [--case digits-tabm]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dlplatform.engine.checkpoints import CheckpointStore
from dlplatform.engine.network import Batch, RowNetwork, build_network
from dlplatform.engine.run import prepare_arrays
from dlplatform.engine.training import Trainer

Array = np.ndarray[Any, Any]


def large_table() -> tuple[Array, Array]:
    """200,000 rows, 32 numbers, a nonlinear yes or no."""
    random = np.random.default_rng(0)
    features = random.normal(size=(200_000, 32))
    score = features[:, 0] * features[:, 1] + np.sin(2 * features[:, 2]) + features[:, 3:8].sum(1)
    return features, (score + random.normal(size=len(score)) > 0).astype(np.int64)


def digits_table() -> tuple[Array, Array]:
    data = load_digits()
    return data.data, data.target


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "digits-mlp": (digits_table, {"architecture": "mlp", "batch_size": 64}),
    "digits-tabm": (digits_table, {"architecture": "tabm"}),
    "large-mlp": (large_table, {"architecture": "mlp"}),
    "large-tabm": (large_table, {"architecture": "tabm"}),
}


class BareLoop:
    """What one writes by hand for this one network and data, with nothing around it."""

    def __init__(self, trainer: Trainer) -> None:
        self.network: RowNetwork = build_network(trainer.network.shape)
        self.network.load_state_dict(trainer.network.state_dict())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
        self.numbers, self.target = trainer.learner.tensors.numbers, trainer.learner.tensors.target
        self.categories, self.tokens = trainer.learner.tensors.categories, trainer.learner.tensors.tokens
        self.train_rows, self.validation_rows = trainer.train_rows, trainer.learner.validation_rows
        self.rows = trainer.rows_per_epoch
        self.batch_size = -(-self.rows // trainer.steps_per_epoch)

    def batch(self, rows: Tensor) -> Batch:
        return Batch(self.numbers[rows], self.categories[rows], self.tokens[rows])

    def run_epoch(self) -> float:
        self.network.train()
        order = torch.stack([rows[torch.randperm(len(rows))[: self.rows]] for rows in self.train_rows])
        total = torch.zeros(())
        for first in range(0, self.rows, self.batch_size):
            rows = order[:, first : first + self.batch_size]
            outputs = self.network(self.batch(rows))
            target = self.target[rows].unsqueeze(1).expand(outputs.shape[:3])
            loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 2), target.reshape(-1))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        self.network.eval()
        with torch.no_grad():
            parts = torch.split(self.validation_rows, 1024, dim=1)
            hits = [
                self.network(self.batch(rows)).softmax(-1).mean(1).argmax(-1) == self.target[rows] for rows in parts
            ]
        return float(total) + float(torch.cat(hits, 1).float().mean())


def compare(name: str, repetitions: int, threads: int, job_dir: Path) -> dict[str, Any]:
    """Rows per second of both, and the median of the ratios of neighbours."""
    make, config = CASES[name]
    features, target = make()
    config = {**config, "epochs": 1000, "early_stopping": False, "threads": threads}
    trainer = prepare_arrays(features, target, "classification", job_dir, CheckpointStore(job_dir / "c"), **config)
    trainer.reporter.begin_training(0, trainer.total_steps)
    bare = BareLoop(trainer)
    epochs = max(1, round(3000 / trainer.rows_per_epoch))
    seconds: dict[str, list[float]] = {"bare": [], "engine": []}
    for repetition in range(repetitions + 1):
        for kind, loop in (("bare", bare), ("engine", trainer)):
            began = time.perf_counter()
            for _ in range(epochs):
                loop.run_epoch()
            if repetition:
                seconds[kind].append((time.perf_counter() - began) / epochs)
    trainer.store.wait()  # a checkpoint may still be on its way into the folder that goes away
    ratios = np.array(seconds["bare"]) / np.array(seconds["engine"])
    groups = trainer.network.shape.groups
    return {
        "case": name,
        "rows": len(features),
        "columns": features.shape[1],
        "groups": groups,
        "members": groups * trainer.network.shape.members,
        "parameters": sum(each.numel() for each in trainer.network.parameters()),
        "batch_size": trainer.config.batch_size,
        "repetitions": repetitions,
        "epochs_each": epochs,
        "bare_rows_per_second": round(trainer.rows_per_epoch / float(np.median(seconds["bare"]))),
        "engine_rows_per_second": round(trainer.rows_per_epoch / float(np.median(seconds["engine"]))),
        "ratio": round(float(np.median(ratios)), 3),
        "ratio_spread": [round(float(each), 3) for each in np.quantile(ratios, [0.1, 0.9])],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for name in arguments.case or CASES:
        with tempfile.TemporaryDirectory() as directory:
            results.append(compare(name, arguments.repetitions, arguments.threads, Path(directory)))
    passed = all(result["ratio"] >= 0.9 for result in results)
    print(json.dumps({"benchmark": "training_throughput", "threads": arguments.threads, "cases": results,
                      "limit": "bare loop = 1.0", "passed": passed}))  # fmt: skip


if __name__ == "__main__":
    main()
