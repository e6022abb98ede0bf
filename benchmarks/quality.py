"""Quality of the defaults on small tables, beside gradient boosting and a linear model.

Held-out 20 % of the rows (stratified), five seeds, default settings, through the engine's real path: a job
directory, `run_job`, the package, `Predictor`. Prints one JSON line a data set and one for the whole.

    python benchmarks/quality.py [--seeds 5] [--threads 1] [--only digits] [--config '{"epochs": 10}']
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
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.table import Table

Array = np.ndarray[Any, Any]
LOADERS = {
    "breast_cancer": load_breast_cancer,
    "digits": load_digits,
    "wine": load_wine,
    "diabetes": load_diabetes,
}
TOLERANCE = 0.005


def write_job(job_dir: Path, features: Array, target: Array, task: str, config: dict[str, Any]) -> None:
    """A job directory as the orchestrator would write it."""
    names = [f"x{index}" for index in range(features.shape[1])]
    columns = {name: pa.array(features[:, index].astype(np.float64)) for index, name in enumerate(names)}
    (job_dir / "data").mkdir(parents=True)
    pq.write_table(pa.table({**columns, "y": pa.array(target)}), job_dir / "data" / "part-00000.parquet")
    kind = "integer" if task == "classification" else "number"
    spec = {
        "format": 1,
        "run": "quality",
        "attempt": 1,
        "task": task,
        "target": "y",
        "columns": [*({"name": name, "type": "number"} for name in names), {"name": "y", "type": kind}],
        "features": None,
        "data": ["data/part-00000.parquet"],
        "config": config,
        "lineage": {},
    }
    (job_dir / "spec.json").write_text(json.dumps(spec))


def engine_score(
    train: Array, target: Array, test: Array, truth: Array, task: str, config: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Train through a job directory and score the package on the held-out rows."""
    with tempfile.TemporaryDirectory() as directory:
        job_dir = Path(directory) / "job"
        write_job(job_dir, train, target, task, config)
        if run_job(job_dir):
            raise SystemExit((job_dir / "events.jsonl").read_text()[-2000:])
        predictor = Predictor(job_dir / "output")
    table = Table({f"x{index}": test[:, index].astype(np.float64) for index in range(test.shape[1])}, len(test))
    predicted = predictor.predict_table(table)
    own = {**predictor.description["metrics"], **predictor.description["training"]}
    if task == "regression":
        return float(r2_score(truth, predicted[:, 0])), own
    values = np.array(predictor.description["output"]["values"])
    return float(accuracy_score(truth, values[predicted.argmax(1)])), own


def reference_scores(train: Array, target: Array, test: Array, truth: Array, task: str, seed: int) -> list[float]:
    """Gradient boosting and the standardised linear model."""
    models: list[Any] = [
        HistGradientBoostingRegressor(random_state=seed),
        make_pipeline(StandardScaler(), Ridge()),
    ]
    if task == "classification":
        models = [
            HistGradientBoostingClassifier(random_state=seed),
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        ]
    return [float(model.fit(train, target).score(test, truth)) for model in models]


def measure(name: str, seeds: int, config: dict[str, Any], references: bool) -> dict[str, Any]:
    """Scores over the seeds for one data set."""
    data = LOADERS[name]()
    task = "regression" if name == "diabetes" else "classification"
    target = data.target.astype(np.float64 if task == "regression" else np.int64)
    ours, others, seconds, owns = [], [], [], []
    for seed in range(seeds):
        stratify = target if task == "classification" else None
        parts = train_test_split(data.data, target, test_size=0.2, random_state=seed, stratify=stratify)
        began = time.perf_counter()
        score, own = engine_score(parts[0], parts[2], parts[1], parts[3], task, config)
        seconds.append(time.perf_counter() - began)
        ours.append(score)
        owns.append(own)
        if references:
            others.append(reference_scores(parts[0], parts[2], parts[1], parts[3], task, seed))
    result: dict[str, Any] = {
        "data": name,
        "metric": "r2" if task == "regression" else "accuracy",
        "seeds": seeds,
        "engine": round(float(np.mean(ours)), 4),
        "engine_each": [round(score, 4) for score in ours],
        "seconds_median": round(float(np.median(seconds)), 1),
        "own_validation": {
            key: round(float(np.mean([own[key] for own in owns])), 4) for key, value in owns[0].items() if value
        },
    }
    if references:
        boosting, linear = np.mean(others, axis=0)
        floor = max(boosting, max(boosting, linear) - TOLERANCE)
        result |= {"boosting": round(boosting, 4), "linear": round(linear, 4)}
        result["passed"] = bool(np.mean(ours) >= floor and (name != "digits" or np.mean(ours) >= 0.98))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", choices=LOADERS, action="append")
    parser.add_argument("--config", type=json.loads, default={})
    parser.add_argument("--no-references", action="store_true")
    arguments = parser.parse_args()
    config = {"threads": arguments.threads, **arguments.config}
    results = []
    for name in arguments.only or LOADERS:
        results.append(measure(name, arguments.seeds, config, not arguments.no_references))
        print(json.dumps(results[-1]), flush=True)
    if not arguments.no_references:
        print(json.dumps({"benchmark": "quality", "passed": all(result["passed"] for result in results)}))


if __name__ == "__main__":
    main()
