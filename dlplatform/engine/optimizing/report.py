"""What a variant is worth beside its parent, measured here, and what speaks against deploying it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dlplatform.engine.compiling import Compiler
from dlplatform.engine.dataset import Dataset
from dlplatform.engine.environment import choose_device, describe, serving_threads
from dlplatform.engine.optimizing.measuring import latencies, load_seconds, sizes
from dlplatform.engine.optimizing.rows import actual, held_out, held_out_answers, inputs_at
from dlplatform.engine.optimizing.verifying import agreement
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import Array

TOLERANCE: Final = 0.5  # points, of a hundred, that the quality may fall by
SLOWER: Final = 1.05  # times its parent's latency and processor time, of which the whole intervals must be sure
BIGGER: Final = 1.05
SLACK: Final = 64 << 10  # bytes of a graph's own, which only matter beside a tiny network
Z: Final = 1.959964
QUALITY: Final = {"class": "accuracy", "labels": "right labels", "number": "R²", "numbers": "R²"}


def report(
    parent: Path, variant: Path, dataset: Dataset, tolerance: float, beat: Callable[[float], None] = lambda _: None,
    compiler: Compiler | None = None, processes: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """JSON: rows, quality, agreement, difference, latency (seconds), load (seconds), size (bytes), machine, problems, notes;
    of what ``compiler`` compiles also compile: {seconds, bytes}.

    ``problems`` are [{code: slower·bigger·worse, sentence}]; without any nothing speaks against the variant. Measured
    in turns with the parent. ``tolerance``: points that the quality may fall by. ``processes``: that answer side by side here.
    """
    with threads(serving_threads(processes)):
        return _report(parent, variant, dataset, tolerance, beat, compiler)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for torch, and for graphs that are opened meanwhile."""
    kept = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(kept)


def _report(
    parent: Path, variant: Path, dataset: Dataset, tolerance: float, beat: Callable[[float], None],
    compiler: Compiler | None,
) -> dict[str, Any]:  # fmt: skip
    opened = compiler.predictor if compiler else Predictor
    before, after = Predictor(parent), opened(variant)
    beat(0.1)
    found: dict[str, Any] = {
        "tolerance": tolerance,
        "rows": {"held_out": len(held_out(dataset)), "train": len(np.unique(np.concatenate(dataset.split.train)))},
        **_told(before, after, dataset),
        "size": {"parent": sizes(parent), "variant": sizes(variant)},
        "machine": {**describe(choose_device()), "threads": torch.get_num_threads()},
    }
    beat(0.3)
    found["load"] = load_seconds(parent, variant, opened)
    if compiler and after.compiles:
        found["compile"] = compiler.told(variant)
    beat(0.4)
    found["latency"] = latencies(before, after, dataset, lambda: beat(0.5))
    return found | {"problems": problems(found), "notes": notes(found)}


def _told(before: Predictor, after: Predictor, dataset: Dataset) -> dict[str, Any]:
    """What both say about the held-out rows."""
    truth = actual(dataset)
    answers = [held_out_answers(each.run, dataset) for each in (before, after)]
    scores = [row_scores(truth, each, dataset.target.kind) for each in answers]
    rows = inputs_at(dataset.inputs, held_out(dataset))
    whole = [each.run(rows).mean(0) for each in (before, after)]
    return {
        "quality": quality(scores[0], scores[1], dataset.target.kind),
        "agreement": agreement(whole[0], whole[1], dataset),
        "difference": float(np.abs(whole[0] - whole[1]).max()),
    }


def row_scores(truth: Array, answers: Array, kind: str) -> Array:
    """(n,) of each row, whose mean is the quality: 1 for right and 0 for wrong, the share of right labels, or what is
    left of the target's variance."""
    if kind == "class":
        right: Array = answers.argmax(1) == truth
        return right.astype(np.float64)
    if kind == "labels":
        shares: Array = ((answers >= 0.5) == (truth > 0.5)).mean(1)
        return shares
    wanted = truth if truth.ndim > 1 else truth[:, None]
    spread = wanted.var(0)
    left: Array = 1 - ((wanted - answers) ** 2 / np.where(spread > 0, spread, 1.0)).mean(1)
    return left


def quality(before: Array, after: Array, kind: str) -> dict[str, Any]:
    """{name, parent, variant: [low, middle, high], change: [low, middle, high] in points of a hundred}."""
    whole = kind == "class"
    return {
        "name": QUALITY[kind],
        "parent": wilson(before) if whole else normal(before),
        "variant": wilson(after) if whole else normal(after),
        "change": [100 * each for each in (paired(before, after) if whole else normal(after - before))],
    }


def wilson(right: Array) -> list[float]:
    """[low, share, high]: a 95 % interval of a share (Wilson, 1927)."""
    count, share = len(right), float(right.mean())
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return [max(0.0, middle - half), share, min(1.0, middle + half)]


def paired(before: Array, after: Array) -> list[float]:
    """[low, change, high] of a share on the same rows: half a row added to each kind of row, so that no flipped row does
    not mean certainty (Agresti & Min, 2005)."""
    count = len(before)
    lost, won = float(((before == 1) & (after == 0)).sum()), float(((before == 0) & (after == 1)).sum())
    lost_more, won_more, more = lost + 0.5, won + 0.5, count + 2
    middle = (won_more - lost_more) / more
    half = Z * math.sqrt(max(lost_more + won_more - (won_more - lost_more) ** 2 / more, 0.0)) / more
    return [middle - half, (won - lost) / count, middle + half]


def normal(values: Array) -> list[float]:
    """[low, mean, high]: a 95 % interval of a mean of many rows."""
    half = Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return [float(values.mean()) - half, float(values.mean()), float(values.mean()) + half]


def problems(found: dict[str, Any]) -> list[dict[str, str]]:
    """What speaks against deploying it: [{code, sentence}]."""
    told = []
    for size, each in found["latency"].items():
        if min(each["ratio"][0], each["work"][0]) > SLOWER:
            sentence = f"Slower: it takes {each['ratio'][1]:.2f} times as long for {_rows(size)}."
            told.append({"code": "slower", "sentence": sentence})
    before, after = (found["size"][name] for name in ("parent", "variant"))
    if after["bytes"] > before["bytes"] * BIGGER + SLACK:
        sentence = f"Bigger: {after['bytes']:,} bytes where its parent has {before['bytes']:,}."
        told.append({"code": "bigger", "sentence": sentence})
    change = found["quality"]["change"][1]
    if change < -found["tolerance"]:
        sentence = (
            f"Worse: its {found['quality']['name']} is {-change:.2f} points lower on rows that neither has learned from; "
            f"{found['tolerance']:g} are tolerated."
        )
        told.append({"code": "worse", "sentence": sentence})
    return told


def notes(found: dict[str, Any]) -> list[str]:
    """What should be known besides."""
    told = []
    if made := found.get("compile"):
        told.append(
            f"Compiling took {made.get('seconds', 0):.0f} s and gave {made['bytes']:,} bytes. Each machine that answers does it once, "
            "beside, and answers as the parent does until then."
        )
    low, change, _ = found["quality"]["change"]
    if low < -found["tolerance"] <= change:
        told.append(
            f"With {found['rows']['held_out']:,} held-out rows a loss of up to {-low:.2f} points cannot be ruled out."
        )
    gains = [max(each["ratio"][2], each["work"][2]) < 1 / SLOWER for each in found["latency"].values()]
    smaller = any(
        found["size"]["variant"][name] * BIGGER < found["size"]["parent"][name] for name in ("bytes", "compressed")
    )
    if not any(gains) and not smaller:
        told.append("It is neither faster nor smaller than its parent.")
    elif not any(gains):
        told.append("It is smaller, not faster.")
    return told


def _rows(size: str) -> str:
    return "one row" if size == "1" else f"{size} rows"
