"""What every pass must hold before its result is kept: it is read again from its files and asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from dlplatform.engine.dataset import Dataset
from dlplatform.engine.description import read_description
from dlplatform.engine.errors import PackageError
from dlplatform.engine.evaluation import baseline, measure
from dlplatform.engine.optimizing.plan import COMPILE, EXACTLY, EXPORT, GRAPHS, KEEPING, Plan
from dlplatform.engine.optimizing.rows import actual, held_out, held_out_answers, inputs_at
from dlplatform.engine.package import weights_file
from dlplatform.engine.predict import Predictor
from dlplatform.engine.preprocessing import Inputs
from dlplatform.engine.runners import Array, Runner
from dlplatform.engine.runtime import COMPILED, EXPORTED, ONNX, TORCH, runtime_of

EXACT: Final = 1e-4  # how far answers of a graph may be from PyTorch's
LEAST_AGREEMENT: Final = 0.9  # of answers after fewer bits with those before
FAR: Final = 0.35  # by which the answer to a row may depend on the rows beside it, where these share a scale
PROBE: Final = 64  # rows for the dearer checks
GROWTH: Final = 1.5  # of the file, beyond which something was stored that should not be
SMALL: Final = 256 << 10
# What a pass must not change of a description. The architecture is checked by the package itself.
_SAME: Final = ("format", "task", "target", "targets", "inputs", "output", "preprocessing")


Opened = Callable[[Path], Predictor]


class BrokenPass(Exception):
    """A pass whose result is not kept: a sentence says what is wrong with it."""


def verified(
    parent: Path, variant: Path, plan: Plan, dataset: Dataset, before: Runner, opened: Opened = Predictor
) -> Predictor:
    """The variant, read again from its files and found to answer as it must. Raises BrokenPass.

    ``before`` is the network in float32 that was to be kept otherwise: the parent, or what a cut made of it. ``opened``: what answers from a package; it may raise EngineError.
    """
    _check_description(read_description(parent), variant, plan)
    _check_size(parent, variant)
    try:
        predictor = opened(variant)
    except PackageError as error:
        raise BrokenPass(f"The result cannot be read again: {error}") from error
    rows = held_out(dataset)
    answers = _answers(predictor.run, inputs_at(dataset.inputs, rows))
    _check_numbers(answers, dataset)
    _check_likeness(before(inputs_at(dataset.inputs, rows)), answers, plan, dataset)
    probe = inputs_at(dataset.inputs, rows[:PROBE])
    _check_alone(predictor.run, probe, answers[:, :PROBE], plan)
    _check_empty(predictor.run, probe, dataset)
    if plan.shaping is not None:
        _check_sense(predictor.run, dataset)
    return predictor


def _check_description(parent: dict[str, Any], variant: Path, plan: Plan) -> None:
    try:
        described = read_description(variant)
        runtime = runtime_of(described)
    except PackageError as error:
        raise BrokenPass(f"The result cannot be read again: {error}") from error
    for name in _SAME:
        if described.get(name) != parent.get(name):
            raise BrokenPass(f"The result says something else than its parent about {name}.")
    wanted = GRAPHS.get(plan.keeping or "", "")
    kept = "float32" if wanted or plan.keeping in (None, EXPORT, COMPILE) else plan.keeping
    by_torch = {EXPORT: EXPORTED, COMPILE: COMPILED}.get(plan.keeping or "", TORCH)
    if (runtime.precision, runtime.weights, runtime.kind) != (wanted, kept, ONNX if wanted else by_torch):
        raise BrokenPass("The result is not kept as the pass should keep it.")


def _check_size(parent: Path, variant: Path) -> None:
    sizes = [(each / weights_file(read_description(each))) for each in (parent, variant)]
    if not sizes[1].is_file():
        raise BrokenPass(f"The result has no {sizes[1].name}.")
    before, after = (each.stat().st_size if each.is_file() else 0 for each in sizes)
    if before and after > before * GROWTH + SMALL:
        raise BrokenPass(f"The result is {after:,} bytes where its parent is {before:,}: something was stored twice.")


def _answers(run: Runner, inputs: Inputs) -> Array:
    try:
        return run(inputs)
    except Exception as error:  # of torch or of onnxruntime, which has classes of its own
        raise BrokenPass(f"The result cannot answer: {type(error).__name__}: {error}"[:400]) from error


def _check_numbers(answers: Array, dataset: Dataset) -> None:
    groups, outputs = dataset.split.groups, dataset.target.outputs
    if answers.shape != (groups, len(held_out(dataset)), outputs):
        raise BrokenPass(f"The result answers {list(answers.shape)} numbers where {outputs} for each row are due.")
    if not np.isfinite(answers).all():
        raise BrokenPass("The result answers with infinite or undefined numbers.")
    if dataset.target.kind == "class" and np.abs(answers.sum(-1) - 1).max() > 1e-3:
        raise BrokenPass("The probabilities that the result answers with do not add up to one.")
    if dataset.target.kind == "labels" and not ((answers >= 0) & (answers <= 1)).all():
        raise BrokenPass("The result answers with probabilities outside 0 to 1.")


def _check_likeness(before: Array, after: Array, plan: Plan, dataset: Dataset) -> None:
    """A graph in float32 computes the same; fewer bits say the same about almost all rows."""
    if plan.keeping is None:
        return
    far = float(np.abs(before - after).max())
    agreed = agreement(before.mean(0), after.mean(0), dataset)
    if plan.keeping in EXACTLY and (far > EXACT or (dataset.target.is_class and agreed < 1)):
        raise BrokenPass(f"The graph's answers are up to {far:.2g} from PyTorch's; {EXACT:g} are allowed.")
    if agreed < LEAST_AGREEMENT:
        raise BrokenPass(f"The result agrees with what it was made from on {agreed:.1%} of the rows only.")


def agreement(before: Array, after: Array, dataset: Dataset) -> float:
    """From 0 to 1: the share of rows (n, K) with the same class or labels; of numbers, what of the one's spread the
    other explains."""
    if dataset.target.kind == "class":
        return float((before.argmax(1) == after.argmax(1)).mean())
    if dataset.target.kind == "labels":
        return float(((before >= 0.5) == (after >= 0.5)).all(1).mean())
    spread = before.var(0).mean() or 1.0
    return float(max(0.0, 1 - ((before - after) ** 2).mean() / spread))


def _check_alone(run: Runner, probe: Inputs, together: Array, plan: Plan) -> None:
    """A row's answer must not depend on the rows beside it, but for a scale that they share."""
    rows = np.arange(len(probe.numbers))
    alone = np.concatenate([_answers(run, inputs_at(probe, rows[row : row + 1])) for row in rows], axis=1)
    shared = plan.keeping in KEEPING and plan.keeping not in EXACTLY
    spread = max(1.0, float(np.abs(together).max()))
    if np.abs(alone - together).max() > (FAR if shared else EXACT) * spread:
        raise BrokenPass("What the result answers for a row depends on the rows beside it.")


def _check_empty(run: Runner, probe: Inputs, dataset: Dataset) -> None:
    """Missing numbers, unknown categories, no text and black images are answered too."""
    blank = Inputs(
        np.full_like(probe.numbers, np.nan), np.zeros_like(probe.categories), np.zeros_like(probe.tokens),
        np.zeros_like(probe.sequences), np.zeros_like(probe.images),
    )  # fmt: skip
    if not np.isfinite(_answers(run, blank)).all():
        raise BrokenPass("The result answers rows without values with infinite or undefined numbers.")


def _check_sense(run: Runner, dataset: Dataset) -> None:
    """A network that was cut or taught must know more than the shares of the classes, or the mean, alone."""
    truth = actual(dataset)
    name = {"class": "accuracy", "labels": "f1_micro"}.get(dataset.target.kind, "r2")
    found = measure(dataset, truth, held_out_answers(run, dataset)).get(name)
    guessed = baseline(dataset, truth)["metrics"].get(name)
    if found is None or (guessed is not None and found <= guessed):
        raise BrokenPass(
            "The result knows no more than a model without inputs would; cut less, or learn on for longer."
        )
