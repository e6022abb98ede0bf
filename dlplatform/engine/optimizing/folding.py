"""Batch normalisation that is there while a network learns, and worked into its convolutions when it has learnt.

Normalised by the statistics of its batch (Ioffe & Szegedy, 2015) a network of convolutions learns fast and well; afterwards
the statistics are constants, a factor and a shift of each channel, which the convolution before can do itself. A student
has one process and batches of nearly one size to learn with, so that what speaks against batch statistics elsewhere (a row's
result depends on the rows beside it, training on how batches are shared) does not matter here; what is kept has none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A convolution, then batch normalisation, in the place of a convolution with biases."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.plain = plain
        self.norm = nn.BatchNorm2d(plain.out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.plain(inputs))
        return normalised

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """The convolution that answers as both do now."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None and self.plain.bias is not None
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.plain.weight.mul_(factor.view(-1, 1, 1, 1))
        self.plain.bias.sub_(norm.running_mean).mul_(factor).add_(norm.bias)
        return self.plain


def normalise(body: nn.Module) -> None:
    """Put batch normalisation behind every convolution, in place."""
    for parent, name, module in _children(body):
        if isinstance(module, nn.Conv2d):
            setattr(parent, name, Normalised(module))


def fold(body: nn.Module) -> None:
    """Work what `normalise` put there into the convolutions, in place."""
    for parent, name, module in _children(body):
        if isinstance(module, Normalised):
            setattr(parent, name, module.folded())


def _children(body: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, module) of all that there were when it was asked."""
    yield from [
        (parent, name, module) for parent in list(body.modules()) for name, module in list(parent.named_children())
    ]
