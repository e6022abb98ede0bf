"""Training throughput beside the same network in a bare hand-written loop and in two well-known trainers.

An epoch of each in turn (A B A B). Engine and bare loop hold their tensors in memory, index them by a permutation, use
the same optimizer and batch size, and predict the validation rows after the epoch; where a multilayer perceptron is
alone (no cross-fitting), the bare loop has layers and an optimizer as anybody writes them. The engine also follows its
schedule, checks every loss, writes events and metrics to a spool and makes checkpoints. Lightning's and Hugging Face's
trainers get the same small MLP, rows, batch size and validation and keep their optimizer as it comes; everything else is
switched off that can be. They are measured where they are installed (`pip install --target peers lightning`, then `PYTHONPATH=peers`). The last line says
how long a checkpoint holds up training when it is written beside it, and when it is waited for.

    python -m benchmarks.train [--short] [--case digits-mlp] [--threads 1]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from dlplatform.engine.checkpoints import CheckpointStore
from dlplatform.engine.events import SPOOL, EventWriter
from dlplatform.engine.job import read_spec
from dlplatform.engine.learner import RowLearner
from dlplatform.engine.learning import learner_of
from dlplatform.engine.network import RowNetwork, build_network
from dlplatform.engine.reporter import Reporter
from dlplatform.engine.training import Trainer

from .images import digits, write_image_job
from .measuring import median, report, spread

Array = np.ndarray[Any, Any]

LIMIT = 0.95
LIMIT_PEERS = 2.0
LIMIT_STALL = 0.25
ROWS_A_TURN = 3000
STALL_STEPS = 40
ENDLESS = {"epochs": 10_000, "early_stopping": False, "checkpoint_seconds": 3600}


# --- what is learned ----------------------------------------------------------------------------------


def write_job(job: Path, columns: dict[str, Any], types: dict[str, str], config: dict[str, Any]) -> Path:
    (job / "data").mkdir(parents=True)
    pq.write_table(pa.table(columns), job / "data" / "part-00000.parquet")
    spec = {
        "format": 1, "run": "benchmark", "attempt": 1, "task": "classification", "target": "y", "features": None,
        "columns": [{"name": name, "type": types.get(name, "number")} for name in columns],
        "data": ["data/part-00000.parquet"], "config": config, "lineage": {},
    }  # fmt: skip
    (job / "spec.json").write_text(json.dumps(spec))
    return job


def digits_table(job: Path, config: dict[str, Any]) -> Path:
    images, labels = digits()
    pixels = images.reshape(len(images), -1).astype(np.float64)
    columns = {f"x{index}": pixels[:, index] for index in range(pixels.shape[1])}
    return write_job(job, {**columns, "y": labels}, {"y": "integer"}, config)


def large_table(job: Path, config: dict[str, Any]) -> Path:
    """200,000 rows, 32 numbers, a nonlinear yes or no."""
    random = np.random.default_rng(0)
    features = random.normal(size=(200_000, 32))
    score = features[:, 0] * features[:, 1] + np.sin(2 * features[:, 2]) + features[:, 3:8].sum(1)
    target = (score + random.normal(size=len(score)) > 0).astype(np.int64)
    return write_job(job, {**{f"x{i}": features[:, i] for i in range(32)}, "y": target}, {"y": "integer"}, config)


def digit_images(job: Path, config: dict[str, Any]) -> Path:
    return write_image_job(job, *digits(), config)


def sentences(job: Path, config: dict[str, Any]) -> Path:
    """3,000 texts of 24 words; the class is whether one word comes before another."""
    random = np.random.default_rng(0)
    words = random.integers(200, size=(3000, 24))
    target = (words == words.min(1, keepdims=True)).argmax(1) < 12
    texts = [" ".join(f"word{word}" for word in row) for row in words]
    return write_job(job, {"text": texts, "y": target.astype(np.int64)}, {"text": "text", "y": "integer"}, config)


SMALL_TRANSFORMER = {"text_width": 64, "text_layers": 2, "text_heads": 4}
CASES: dict[str, tuple[Callable[[Path, dict[str, Any]], Path], dict[str, Any]]] = {
    "digits-mlp-alone": (digits_table, {"architecture": "mlp", "batch_size": 64, "folds": 1}),
    "large-mlp-alone": (large_table, {"architecture": "mlp", "batch_size": 256, "folds": 1}),
    "digits-mlp": (digits_table, {"architecture": "mlp", "batch_size": 64}),
    "digits-tabm": (digits_table, {"architecture": "tabm"}),
    "large-mlp": (large_table, {"architecture": "mlp"}),
    "large-tabm": (large_table, {"architecture": "tabm"}),
    "digits-cnn": (digit_images, {"augmentation": "none"}),
    "text-transformer": (sentences, {"text_encoder": "transformer", "params": SMALL_TRANSFORMER}),
}


def trainer_of(case: str, folder: Path, threads: int, **more: Any) -> Trainer:
    """A trainer as the engine makes it for a job, its spool and its checkpoints in the job's folder."""
    make, config = CASES[case]
    job = make(folder / "job", {**config, **ENDLESS, "threads": threads, **more})
    reporter = Reporter(EventWriter(job / SPOOL))
    learner, plan = learner_of(job, read_spec(job), reporter, None)
    trainer = Trainer(learner, reporter, CheckpointStore(job / "checkpoints"), plan=plan)
    reporter.begin_training(0, trainer.total_steps)
    return trainer


# --- who learns it ------------------------------------------------------------------------------------


class BareLoop:
    """What one writes by hand for the engine's network and data, with nothing around it."""

    network: nn.Module

    def __init__(self, trainer: Trainer) -> None:
        assert isinstance(trainer.learner, RowLearner)
        self.tensors = trainer.learner.tensors
        self.network = copy_of(trainer)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
        self.train_rows, self.validation_rows = trainer.train_rows, trainer.learner.validation_rows
        self.rows = trainer.rows_per_epoch
        self.batch_size = -(-self.rows // trainer.steps_per_epoch)

    def run_epoch(self) -> float:
        self.network.train()
        order = torch.stack([rows[torch.randperm(len(rows))[: self.rows]] for rows in self.train_rows])
        total = torch.zeros(())
        for first in range(0, self.rows, self.batch_size):
            loss = self.loss(order[:, first : first + self.batch_size])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return float(total) + self._accuracy()

    def loss(self, rows: Tensor) -> Tensor:
        outputs = self.network(self.tensors.batch(rows))
        target = self.tensors.target[rows].unsqueeze(1).expand(outputs.shape[:3])
        return nn.functional.cross_entropy(outputs.flatten(0, 2), target.reshape(-1))

    def predicted(self, rows: Tensor) -> Tensor:
        classes: Tensor = self.network(self.tensors.batch(rows)).softmax(-1).mean(1).argmax(-1)
        return classes

    @torch.no_grad()
    def _accuracy(self) -> float:
        self.network.eval()
        parts = torch.split(self.validation_rows, 1024, dim=1)
        hits = [self.predicted(rows) == self.tensors.target[rows] for rows in parts]
        return float(torch.cat(hits, 1).float().mean())


class PlainLoop(BareLoop):
    """A plain multilayer perceptron and the optimizer as anybody would write them, on numbers that are normalised."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer)
        self.network = Plain(trainer)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=0.01)

    def loss(self, rows: Tensor) -> Tensor:
        loss: Tensor = self.network(self.tensors.numbers[rows[0]], self.tensors.target[rows[0]])["loss"]
        return loss

    def predicted(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.network(self.tensors.numbers[rows[0]], self.tensors.target[rows[0]])["logits"]
        return logits.argmax(-1).unsqueeze(0)


def copy_of(trainer: Trainer) -> RowNetwork:
    assert isinstance(trainer.network, RowNetwork)
    network = build_network(trainer.network.shape)
    network.load_state_dict(trainer.network.state_dict())
    return network


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows one by one, as both other trainers are usually fed."""

    def __init__(self, trainer: Trainer, rows: Tensor) -> None:
        assert isinstance(trainer.learner, RowLearner)
        self.numbers, self.labels = trainer.learner.tensors.numbers[rows], trainer.learner.tensors.target[rows]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"numbers": self.numbers[index], "labels": self.labels[index]}


def rows_of(trainer: Trainer) -> tuple[Rows, Rows]:
    """Those that the first group learns from, and those that it is judged by."""
    assert isinstance(trainer.learner, RowLearner)
    return Rows(trainer, trainer.train_rows[0]), Rows(trainer, trainer.learner.validation_rows[0])


class Plain(nn.Module):
    """The same multilayer perceptron as anybody would write it."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        assert isinstance(trainer.network, RowNetwork)
        shape = trainer.network.shape
        widths = [shape.inputs.numbers, *[shape.width] * shape.layers]
        hidden = [
            layer
            for inputs, outputs in itertools.pairwise(widths)
            for layer in (nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(shape.dropout))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], shape.outputs))

    def forward(self, numbers: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(numbers)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def lightning_epochs(trainer: Trainer, epochs: int, folder: Path) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Plain(trainer)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.network(**batch)["loss"]  # type: ignore[no-any-return]

        def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
            logits = self.network(**batch)["logits"]
            self.log("accuracy", (logits.argmax(-1) == batch["labels"]).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)

    rows, held_out = rows_of(trainer)
    loader = torch.utils.data.DataLoader(rows, batch_size=int(trainer.config.batch_size), shuffle=True)
    judge = torch.utils.data.DataLoader(held_out, batch_size=1024)
    lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0,
    ).fit(Module(), loader, judge)  # fmt: skip


def hugging_face_epochs(trainer: Trainer, epochs: int, folder: Path) -> None:
    import transformers
    import transformers.trainer

    transformers.trainer.is_datasets_available = lambda: False  # our application has the name of their library
    settings = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=int(trainer.config.batch_size), num_train_epochs=epochs,
        per_device_eval_batch_size=1024, eval_strategy="epoch", report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    rows, held_out = rows_of(trainer)
    transformers.Trainer(model=Plain(trainer), args=settings, train_dataset=rows, eval_dataset=held_out).train()


PEERS = {"lightning": lightning_epochs, "transformers": hugging_face_epochs}


# --- how fast -----------------------------------------------------------------------------------------


def compare(case: str, repetitions: int, threads: int, folder: Path) -> None:
    """Rows per second of the engine and the bare loop, and the median of the ratios of neighbours."""
    trainer = trainer_of(case, folder, threads)
    bare = PlainLoop(trainer) if case.endswith("alone") else BareLoop(trainer)
    epochs = max(1, round(ROWS_A_TURN / trainer.rows_per_epoch))
    seconds: dict[str, list[float]] = {"bare": [], "engine": []}
    for repetition in range(repetitions + 1):
        for kind, loop in (("bare", bare), ("engine", trainer)):
            began = time.perf_counter()
            for _ in range(epochs):
                loop.run_epoch()
            if repetition:
                seconds[kind].append((time.perf_counter() - began) / epochs)
    trainer.store.wait()  # type: ignore[union-attr] # it may be on its way into the folder that goes away
    ratios = [one / other for one, other in zip(seconds["bare"], seconds["engine"], strict=True)]
    report(
        "train", case, threads=threads, repetitions=repetitions, epochs_each=epochs,
        parameters=sum(each.numel() for each in trainer.network.parameters()), batch_size=trainer.config.batch_size,
        bare_rows_per_second=median([trainer.rows_per_epoch / each for each in seconds["bare"]], 0),
        engine_rows_per_second=median([trainer.rows_per_epoch / each for each in seconds["engine"]], 0),
        ratio=median(ratios), spread=spread(ratios), limit=f"ratio {LIMIT}", passes=median(ratios) >= LIMIT,
    )  # fmt: skip


def beside_trainers(repetitions: int, threads: int, folder: Path) -> None:
    """Digits by a small MLP: epochs a second of the engine and of each of the trainers that are installed."""
    trainer = trainer_of("digits-mlp", folder, threads, folds=1)
    found = {name: run for name, run in PEERS.items() if importlib.util.find_spec(name)}
    epochs = 10
    seconds: dict[str, list[float]] = {"engine": [], **{name: [] for name in found}}
    for repetition in range(repetitions + 1):
        for kind, taken in seconds.items():
            began = time.perf_counter()
            if kind == "engine":
                for _ in range(epochs):
                    trainer.run_epoch()
            else:
                found[kind](trainer, epochs, folder)
            if repetition:
                taken.append((time.perf_counter() - began) / epochs)
    trainer.store.wait()  # type: ignore[union-attr]
    times = {
        name: median([other / one for one, other in zip(seconds["engine"], seconds[name], strict=True)])
        for name in found
    }
    report(
        "train", "digits-mlp beside other trainers", threads=threads, repetitions=repetitions, epochs_each=epochs,
        rows_per_second={kind: round(trainer.rows_per_epoch / median(taken, 6)) for kind, taken in seconds.items()},
        times_as_fast_as=times, limit=f"{LIMIT_PEERS} × both", missing=sorted(PEERS.keys() - found.keys()),
        passes=len(found) == len(PEERS) and min(times.values()) >= LIMIT_PEERS,
    )  # fmt: skip


def stall(repetitions: int, threads: int, folder: Path) -> None:
    """What a checkpoint adds to an epoch: waited for, and written beside it."""
    trainer = trainer_of("large-mlp", folder, threads, params={"width": 1024, "layers": 3}, batch_size=256)
    store = trainer.store
    assert store is not None
    trainer.store = None  # none but those that are measured
    seconds: dict[str, list[float]] = {"none": [], "beside": [], "waited": []}
    for repetition in range(repetitions + 1):
        for kind, taken in seconds.items():
            began = time.perf_counter()
            if kind != "none":
                trainer.store = store
                trainer.checkpoint()
                trainer.store = None
            if kind == "waited":
                store.wait()
            trainer.try_steps(STALL_STEPS)
            store.wait()
            if repetition:
                taken.append(time.perf_counter() - began)
    size = sum(each.numel() * each.element_size() for each in trainer.trained.tensors().values())
    added = {
        kind: [one - other for one, other in zip(seconds[kind], seconds["none"], strict=True)]
        for kind in ("beside", "waited")
    }
    share = median(added["beside"]) / median(added["waited"])
    report(
        "train", "stall of a checkpoint", threads=threads, repetitions=repetitions, megabytes=round(size / 1e6),
        steps_seconds=median(seconds["none"]), added_seconds={kind: median(taken) for kind, taken in added.items()},
        share=round(share, 3), limit=f"{LIMIT_STALL} of the one that is waited for", passes=share <= LIMIT_STALL,
    )  # fmt: skip


OTHERS = {"trainers": beside_trainers, "stall": stall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="three repetitions instead of nine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=[*CASES, *OTHERS], action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    repetitions = 3 if arguments.short else 9
    for name in arguments.case or [*CASES, *OTHERS]:
        with tempfile.TemporaryDirectory() as folder:
            if name in CASES:
                compare(name, repetitions, arguments.threads, Path(folder))
            else:
                OTHERS[name](repetitions, arguments.threads, Path(folder))


if __name__ == "__main__":
    main()
