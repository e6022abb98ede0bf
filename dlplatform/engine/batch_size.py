"""The batch size that fits: the largest that memory holds and that still makes a row cheaper."""

from __future__ import annotations

import gc
import time
from typing import Final

import torch

from dlplatform.engine.dropout import Share
from dlplatform.engine.environment import is_out_of_memory
from dlplatform.engine.learner import Learner

FIRST: Final = 16
LARGEST: Final = 65_536
STEPS_AN_EPOCH: Final = 8  # at least: fewer would learn too little
GAIN: Final = 1.1  # of rows a second, for which a batch is doubled
TRIES: Final = 3
MOMENTS: Final = 2  # that the optimizer keeps of every weight that it trains


def fitting_batch_size(learner: Learner) -> int:
    """Double the batch until memory ends, a row gets no cheaper, or an epoch would have too few steps; where the first one is
    too large already, halve it.

    Neither weights nor random state are changed.
    """
    rows = min(len(each) for each in learner.train_rows)
    most = max(1, min(LARGEST, rows // STEPS_AN_EPOCH))
    best = min(FIRST, most)
    random = torch.get_rng_state()
    fastest = _rows_per_second(learner, best)
    while not fastest and best > 1:
        best //= 2
        fastest, most = _rows_per_second(learner, best), best
    while 2 * best <= most and (speed := _rows_per_second(learner, 2 * best)) >= fastest * GAIN and speed:
        best, fastest = 2 * best, speed
    torch.set_rng_state(random)
    return best


def _rows_per_second(learner: Learner, size: int) -> float:
    """Of the fastest of a few steps forward and back, with room left for what training holds besides; 0 when memory does not
    suffice."""
    rows = torch.stack([each[:size] for each in learner.train_rows]).to(learner.device)
    seconds = []
    try:
        kept = _room_of_training(learner)
        for _ in range(TRIES):
            began = time.perf_counter()
            learner.loss(learner.network, rows, Share(0, size, size)).backward()
            if learner.device.type == "cuda":
                torch.cuda.synchronize(learner.device)
            seconds.append(time.perf_counter() - began)
        del kept
    except (MemoryError, RuntimeError) as error:  # torch's is one of these
        if not is_out_of_memory(error):
            raise
        return 0.0
    finally:
        learner.network.zero_grad(set_to_none=True)
        gc.collect()
    return size / min(seconds)


def _room_of_training(learner: Learner) -> torch.Tensor:
    """As many bytes as training holds besides: the average of all weights, and the optimizer's moments."""
    sizes = [(each.numel() * each.element_size(), each.requires_grad) for each in learner.network.parameters()]
    size = sum(size * (1 + MOMENTS * trained) for size, trained in sizes)
    return torch.empty(size, dtype=torch.uint8, device=learner.device)
