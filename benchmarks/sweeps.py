"""Epochs that a search costs until it has a model within a point of the best: ASHA beside random search.

A grid of 81 configurations on digits is trained once, 27 epochs each, with the engine; then 500 orders of it are
replayed, with ASHA as `training.sweeps.rungs` decides and without. An epoch counts wherever it is spent.

    python -m benchmarks.sweeps [--short]
"""

import itertools
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits

from dlplatform.engine.events import SPOOL
from dlplatform.engine.run import train_arrays
from training.sweeps.rungs import Standing, promotable, rung_epochs

from .measuring import arguments, median, quantile, report

LIMIT = 4.0
EPOCHS, ETA, LEAST = 27, 3, 1
WITHIN = 0.01
# Few of the configurations are good, as in the table that the limit was taken from: where many are, chance finds one
# soon, and there is little to save.
GRID = {
    "learning_rate": (1e-5, 1e-4, 1e-3), "batch_size": (64, 256, 1024), "width": (8, 32, 128), "layers": (1, 2, 4),
}  # fmt: skip


def configurations() -> list[dict[str, Any]]:
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def curve(configuration: dict[str, Any]) -> list[float]:
    """Validation accuracy after every epoch, best so far: what the engine would keep."""
    data = load_digits()
    chosen = {name: configuration[name] for name in ("learning_rate", "batch_size")}
    params = {name: configuration[name] for name in ("width", "layers")}
    with tempfile.TemporaryDirectory() as folder:
        train_arrays(
            data.data, data.target, "classification", Path(folder), architecture="mlp", epochs=EPOCHS, params=params,
            early_stopping=False, threads=1, folds=1, **chosen,
        )  # fmt: skip
        lines = [json.loads(line) for line in (Path(folder) / SPOOL).read_text().splitlines()]
    seen = [line["values"] for line in lines if line["type"] == "metric"]
    values = [one["validation/accuracy"] for one in seen if "validation/accuracy" in one]
    return list(itertools.accumulate(values, max))


def random_search(order: Sequence[list[float]], wanted: float) -> int:
    """Epochs until one configuration after the other, each trained to its end, has given the wanted accuracy."""
    spent = 0
    for found in order:
        for value in found:
            spent += 1
            if value >= wanted:
                return spent
    return spent


def asha(order: Sequence[list[float]], wanted: float) -> int:
    """The same with one trial at a time, which stops at every rung and goes on when it is promoted."""
    rungs = [*rung_epochs("asha", LEAST, EPOCHS, ETA), EPOCHS]
    standings: list[Standing] = []
    spent = 0
    while True:
        promoted = promotable(standings, len(rungs) - 1, ETA)
        if promoted is None and len(standings) == len(order):
            return spent
        number = len(standings) if promoted is None else promoted.number
        rung = 0 if promoted is None else len(promoted.values)
        found = order[number][: rungs[rung]]
        for value in found[rungs[rung - 1] if rung else 0 :]:
            spent += 1
            if value >= wanted:
                return spent
        earlier = () if promoted is None else promoted.values
        now = Standing(number, (*earlier, -found[-1]), rung < len(rungs) - 1)
        standings[number : number + 1] = [now]


def main() -> None:
    short = arguments(__doc__).short
    torch.set_num_threads(1)
    found = [curve(configuration) for configuration in configurations()]
    best = max(one[-1] for one in found)
    spent: dict[str, list[float]] = {"random": [], "asha": []}
    for seed in range(100 if short else 500):
        order = random.Random(seed).sample(found, len(found))
        spent["random"].append(random_search(order, best - WITHIN))
        spent["asha"].append(asha(order, best - WITHIN))
    ratio = median(spent["random"], 0) / median(spent["asha"], 0)
    report(
        "sweeps", f"digits, {len(found)} configurations × {EPOCHS} epochs, to {best - WITHIN:.3f}",
        orders=len(spent["asha"]), best=round(best, 4), median_of_all=median([one[-1] for one in found]),
        random_epochs=median(spent["random"], 0), random_p90=quantile(spent["random"], 0.9),
        asha_epochs=median(spent["asha"], 0), asha_p90=quantile(spent["asha"], 0.9), ratio=round(ratio, 2),
        good_configurations=sum(one[-1] >= best - WITHIN for one in found), limit=f"ratio {LIMIT}", passes=ratio >= LIMIT,
    )  # fmt: skip


if __name__ == "__main__":
    main()
