"""How fast two networks answer on this machine: in turns, so that whatever else it does hits both alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard

from dlplatform.engine.dataset import Dataset
from dlplatform.engine.description import MODEL, read_description
from dlplatform.engine.optimizing.rows import held_out, inputs_at
from dlplatform.engine.package import weights_file
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import Array
from dlplatform.engine.tokens import FILE as TOKENIZER

BATCHES: Final = (1, 32, 64)
WARM_UP: Final = 10
LEAST: Final = 60  # measurements of each at a batch size
MOST: Final = 300
SECONDS: Final = 2.0  # for a batch size, once there are enough measurements
LOADS: Final = 5

Beat = Callable[[], None]


def latencies(before: Predictor, after: Predictor, dataset: Dataset, beat: Beat = lambda: None) -> dict[str, Any]:
    """{batch size: {parent, variant: {p50, p99 (seconds), throughput (rows a second)}, ratio: [low, middle, high]}} of
    answering encoded rows, and under ``whole`` of parsing, encoding and answering them as a request brings them."""
    rows = held_out(dataset)
    table = dataset.table
    inputs = {column["name"] for column in before.description["inputs"]}
    found: dict[str, Any] = {}
    for size in BATCHES:
        chosen = np.resize(rows, size)
        encoded = inputs_at(dataset.inputs, chosen)
        times = in_turns([lambda e=encoded: before.run(e), lambda e=encoded: after.run(e)], beat=beat)  # type: ignore[misc]
        found[str(size)] = compared(times, size)
        if not dataset.inputs.images.shape[1]:  # files of images are not at hand as a request brings them
            part = table.take(chosen)
            part = type(part)({name: part.columns[name] for name in inputs}, size)
            asks = [lambda p=part: before.predict_table(p), lambda p=part: after.predict_table(p)]  # type: ignore[misc]
            found[str(size)]["whole"] = compared(in_turns(asks, seconds=1.0, beat=beat), size)
    return found


def in_turns(
    asks: Sequence[Callable[[], Any]], *, seconds: float = SECONDS, least: int = LEAST, most: int = MOST,
    beat: Beat = lambda: None,
) -> list[Array]:  # fmt: skip
    """(runs, 2) of each call: seconds on the clock and of processor time, one after the other again and again, who begins
    by turns; after a warm-up."""
    for _ in range(WARM_UP):
        for ask in asks:
            ask()
    times: list[list[tuple[float, float]]] = [[] for _ in asks]
    began = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        while len(times[0]) < least or (time.perf_counter() - began < seconds and len(times[0]) < most):
            order = range(len(asks)) if len(times[0]) % 2 else reversed(range(len(asks)))
            for place in order:
                started, worked = time.perf_counter(), time.process_time()
                asks[place]()
                times[place].append((time.perf_counter() - started, time.process_time() - worked))
            beat()
    finally:
        gc.enable()
    return [np.array(each) for each in times]


def compared(times: Sequence[Array], size: int) -> dict[str, Any]:
    """What `in_turns` measured of a parent and its variant, with the ratio of the two from turn to turn: on the clock, and
    of processor time (``work``), which a busy machine, where a longer answer is interrupted more often, does not change."""
    told = {
        name: {
            "p50": float(np.median(each[:, 0])),
            "p99": float(np.quantile(each[:, 0], 0.99)),
            "throughput": float(size * len(each) / each[:, 0].sum()),
        }
        for name, each in zip(("parent", "variant"), times, strict=True)
    }
    ratios = times[1] / np.maximum(times[0], 1e-9)
    return {
        **told, "runs": len(times[0]), "ratio": median_interval(ratios[:, 0]), "work": median_interval(ratios[:, 1]),
    }  # fmt: skip


def median_interval(values: Array) -> list[float]:
    """[low, median, high]: a 95 % interval from the order statistics, whatever the distribution."""
    ordered, count = np.sort(values), len(values)
    half = 0.98 * math.sqrt(count)
    low, high = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
    return [float(ordered[low]), float(np.median(ordered)), float(ordered[high])]


def load_seconds(parent: Path, variant: Path, opened: Callable[[Path], Predictor] = Predictor) -> dict[str, float]:
    """Seconds to read, check and open each, at the median of a few in turns; libraries are in memory already."""
    times = in_turns([lambda: Predictor(parent), lambda: opened(variant)], seconds=0.0, least=LOADS, most=LOADS)
    return {"parent": float(np.median(times[0][:, 0])), "variant": float(np.median(times[1][:, 0]))}


def sizes(package: Path) -> dict[str, int]:
    """Bytes that are needed to answer, and bytes of the weights once zstandard compressed them."""
    weights = package / weights_file(read_description(package))
    files = [weights, package / MODEL, package / TOKENIZER]
    packed = len(zstandard.ZstdCompressor(level=3).compress(weights.read_bytes()))
    return {"bytes": sum(each.stat().st_size for each in files if each.is_file()), "compressed": packed}
