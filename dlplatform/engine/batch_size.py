"""The batch size that fits: the largest that memory holds and that still makes a row cheaper.

Of several processes that train together each takes its share of a batch, at the same time as the others do.
"""

from __future__ import annotations

import gc
import time
from typing import Final

import torch

from dlplatform.engine.environment import is_out_of_memory
from dlplatform.engine.learner import Learner
from dlplatform.engine.processes import Processes, smallest

FIRST: Final = 16
LARGEST: Final = 65_536
STEPS_AN_EPOCH: Final = 8  # at least: fewer would learn too little
GAIN: Final = 1.1  # of rows a second, for which a batch is doubled
TRIES: Final = 3
MOMENTS: Final = 2  # that the optimizer keeps of every weight that it trains


def fitting_batch_size(learner: Learner, processes: Processes | None = None) -> int:
    """Double the batch until memory ends, a row gets no cheaper, or an epoch would have too few steps; where the first one is
    too large already, halve it. What ``processes`` share is the batch of a step, and the one that can take least of it decides.

    Neither weights nor random state are changed.
    """
    together = processes or Processes()
    least = 1 if together.world == 1 else 2 * together.world  # so that each has a row of every step, the last one too
    rows = min(len(each) for each in learner.train_rows)
    most = max(least, min(LARGEST, rows // STEPS_AN_EPOCH))
    random = torch.get_rng_state()
    found = _largest(learner, together, least, most)
    torch.set_rng_state(random)
    return smallest(found)


def _largest(learner: Learner, processes: Processes, least: int, most: int) -> int:
    best = max(least, min(FIRST, most))
    fastest = _rows_per_second(learner, best, processes)
    while not fastest and best > least:
        best = max(least, best // 2)
        fastest, most = _rows_per_second(learner, best, processes), best
    while 2 * best <= most and (speed := _rows_per_second(learner, 2 * best, processes)) >= fastest * GAIN and speed:
        best, fastest = 2 * best, speed
    return best


def _rows_per_second(learner: Learner, size: int, processes: Processes) -> float:
    """Of the fastest of a few steps forward and back over this process's share, with room left for what training holds
    besides; 0 when memory does not suffice."""
    rows = torch.stack([each[:size] for each in learner.train_rows]).to(learner.device)
    share = processes.share(rows.shape[1])
    seconds = []
    try:
        kept = _room_of_training(learner, processes)
        for _ in range(TRIES):
            began = time.perf_counter()
            learner.loss(learner.network, rows, share).backward()
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


def _room_of_training(learner: Learner, processes: Processes) -> torch.Tensor:
    """As many bytes as training holds beyond weights and gradients: the average of all weights, and the optimizer's moments.
    Where each process holds a part of everything, the whole weights of this try stand for some of them."""
    sizes = [(each.numel() * each.element_size(), each.requires_grad) for each in learner.network.parameters()]
    held = sum(size * (1 + trained) for size, trained in sizes)
    wanted = held + sum(size * (1 + MOMENTS * trained) for size, trained in sizes)
    if processes.divides:
        wanted = -(-wanted // processes.world)
    return torch.empty(max(0, wanted - held), dtype=torch.uint8, device=learner.device)
