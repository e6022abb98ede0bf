"""Whether two that answer encoded rows answer alike: a network, and what was made of it to answer faster."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from dlplatform.engine.network import RowNetwork
from dlplatform.engine.preprocessing import Inputs
from dlplatform.engine.runners import Array, Runner, TorchRunner

EXACT: Final = 1e-4  # of the largest answer, at least of 1: how far answers may be from those of the network itself
TRIED_ROWS: Final = (1, 2, 7, 33)
PACES: Final = 7  # times that each is measured, in turns


def answers_as(runner: Runner, network: RowNetwork) -> bool:
    """Whether what was made of a network answers as the network itself does, alone and in batches."""
    return all(answers_alike(runner, TorchRunner(network), sample(network, rows)) for rows in TRIED_ROWS)


def answers_alike(first: Runner, second: Runner, rows: Inputs) -> bool:
    """Whether all answers of two are as close as `EXACT` says, and the largest of each row is the same one, but for ties."""
    one, other = first(rows), second(rows)
    if one.shape != other.shape or not np.isfinite(one).all():
        return False
    near = EXACT * max(1.0, float(np.abs(other).max(initial=0.0)))
    best = np.take_along_axis(other, one.argmax(-1, keepdims=True), -1)[..., 0]
    return bool(np.abs(one - other).max(initial=0.0) <= near and (other.max(-1) - best).max(initial=0.0) <= near)


def sample(network: RowNetwork, rows: int) -> Inputs:
    """Encoded rows by chance, the same every time: numbers as far spread as those that the network was fitted on, some of them
    missing, known and unknown categories, texts of any length, any pixel."""
    sizes, random = network.shape.inputs, np.random.default_rng(rows)
    scale = 1 / network.encoder.inverse_scale[0].clamp(min=1e-12)
    spread = random.normal(size=(rows, sizes.numbers)) * scale.numpy()
    numbers = np.where(random.random(spread.shape) < 0.1, np.nan, network.encoder.center[0].numpy() + spread)
    pixels = (rows, sizes.images, sizes.image_channels, sizes.image_size, sizes.image_size)
    return Inputs(
        numbers.astype(np.float32),
        random.integers(0, np.array(sizes.vocabularies, np.int64), (rows, len(sizes.vocabularies))).astype(np.int32),
        _texts(random, (rows, sizes.texts, sizes.tokens), sizes.buckets),
        _texts(random, (rows, sizes.sequences, sizes.sequence_length), sizes.sequence_vocabulary),
        random.integers(0, 256, pixels).astype(np.uint8),
    )


def _texts(random: np.random.Generator, shape: tuple[int, ...], vocabulary: int) -> Array:
    """Tokens of texts that end somewhere; 0 behind their end."""
    lengths = random.integers(1, max(2, shape[-1] + 1), (*shape[:-1], 1))
    tokens = random.integers(1, max(2, vocabulary), shape)
    return np.where(np.arange(shape[-1]) < lengths, tokens, 0).astype(np.int32)


def times_as_fast(first: Runner, second: Runner, network: RowNetwork, rows: int) -> float:
    """How many times as fast as the second the first answers so many rows of the network at once, on the clock: by the least of
    some times, taken in turns."""
    given = sample(network, rows)
    paces = [(_seconds(first, given), _seconds(second, given)) for _ in range(PACES)]
    return min(other for _, other in paces) / min(one for one, _ in paces)


def _seconds(runner: Runner, rows: Inputs) -> float:
    began = time.perf_counter()
    runner(rows)
    return time.perf_counter() - began
