"""Dropout whose result does not depend on how many processes share a batch.

Every process draws the noise of the whole batch from the same random state and uses the part that belongs to its
rows, so that training on several devices equals training on one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """The rows ``first`` to ``last`` of a batch of ``total`` rows: those that this process computes."""

    first: int
    last: int
    total: int

    @property
    def whole(self) -> bool:
        return self.last - self.first == self.total

    def of(self, rows: int) -> slice:
        """The part of a dimension that holds ``rows // total`` entries for each row of the whole batch."""
        each = rows // self.total
        return slice(self.first * each, self.last * each)


_shares: list[Share] = []


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Inside, batches are the given part of a larger one."""
    _shares.append(share)
    try:
        yield
    finally:
        _shares.pop()


LEVELS = 1 << 16


def noise(shape: Sequence[int], share: float, like: Tensor) -> Tensor:
    """0 for about the given share of the entries, and for the others what keeps the mean.

    Drawing numbers is most of dropout on a CPU, so that one of 64 bits serves four entries there: the share is met to
    within 1/65536.
    """
    if like.device.type != "cpu":
        return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - share).div_(1 - share)
    count, silent = math.prod(shape), round(share * LEVELS)
    drawn = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[:count].view(shape) >= silent - LEVELS // 2
    return kept.to(like.dtype).mul_(LEVELS / (LEVELS - silent))


class Dropout(nn.Module):
    """As `torch.nn.Dropout`; ``rows`` is the dimension that holds the rows of the batch, from the end where below 0."""

    def __init__(self, share: float, rows: int = 0) -> None:
        super().__init__()
        self.p = share
        self.rows = rows

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or not self.p:
            return inputs
        if not _shares or _shares[-1].whole:
            return inputs * noise(inputs.shape, self.p, inputs)
        part = _shares[-1]
        shape = list(inputs.shape)
        shape[self.rows] = shape[self.rows] // (part.last - part.first) * part.total
        whole = noise(shape, self.p, inputs)
        return inputs * whole.narrow(self.rows, part.of(shape[self.rows]).start, inputs.shape[self.rows])
