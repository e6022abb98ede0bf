"""Layers with a leading group axis: G independent networks computed in one call.

Inside a group, M members share the weight matrices and differ by multiplicative adapters, as in
BatchEnsemble (Wen et al., 2020) and TabM (Gorishniy et al., 2024, "TabM: Advancing Tabular Deep Learning
with Parameter-Efficient Ensembling").
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

HEAD_SCALE = 1.0


class GroupedLinear(nn.Module):
    """(G, B, in) → (G, B, out), a weight matrix for each group."""

    def __init__(self, groups: int, inputs: int, outputs: int, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(groups, 1, outputs))
        self.bound = 0.0 if zero else 1 / math.sqrt(max(1, inputs))

    def initialise(self, generator: torch.Generator) -> None:
        """Uniform in ±1/√inputs, or zero."""
        self.weight.uniform_(-self.bound, self.bound, generator=generator)
        self.bias.uniform_(-self.bound, self.bound, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, inputs, self.weight)


class EnsembleLinear(nn.Module):
    """(G, M, B, in) → (G, M, B, out): a matrix for each group, scaled before and after for each member.

    A single member needs no scales: its matrix can be anything already. It takes (G, B, in) and gives (G, B, out).
    """

    def __init__(self, groups: int, members: int, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        self.alone = members == 1
        self.weight = nn.Parameter(torch.empty(groups, inputs, outputs))
        if not self.alone:
            self.before = nn.Parameter(torch.empty(groups, members, 1, inputs))
            self.after = nn.Parameter(torch.empty(groups, members, 1, outputs))
        self.bias = nn.Parameter(torch.empty(groups, members, 1, outputs))
        self.bound = 1 / math.sqrt(max(1, inputs))
        self.first = first

    def initialise(self, generator: torch.Generator) -> None:
        """Members start apart by random signs before the first layer only, as TabM prescribes."""
        self.weight.uniform_(-self.bound, self.bound, generator=generator)
        self.bias.uniform_(-self.bound, self.bound, generator=generator)
        if self.alone:
            return
        self.after.fill_(1.0)
        self.before.fill_(1.0)
        if self.first:
            self.before.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Packages of the first format have scales for a single member as well: worked into its matrix."""
        if self.alone and f"{prefix}before" in state:
            before, after = state.pop(f"{prefix}before"), state.pop(f"{prefix}after")
            state[f"{prefix}weight"] = before[:, 0].transpose(1, 2) * state[f"{prefix}weight"] * after[:, 0]
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.alone:
            return torch.baddbmm(self.bias.squeeze(1), inputs, self.weight)
        scaled = inputs * self.before
        groups, members, rows, width = scaled.shape
        mixed = torch.bmm(scaled.reshape(groups, members * rows, width), self.weight)
        return torch.addcmul(self.bias, mixed.view(groups, members, rows, -1), self.after)


class MemberLinear(nn.Module):
    """(G, M, B, in), or (G, B, in) of single members → (G, M, B, out), a matrix of its own for each member."""

    def __init__(self, groups: int, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups * members, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(groups * members, 1, outputs))
        self.shape = (groups, members)
        self.bound = 1 / math.sqrt(max(1, inputs))

    def initialise(self, generator: torch.Generator) -> None:
        """Uniform in ±1/√inputs, scaled."""
        self.weight.uniform_(-self.bound, self.bound, generator=generator).mul_(HEAD_SCALE)
        self.bias.uniform_(-self.bound, self.bound, generator=generator).mul_(HEAD_SCALE)

    def forward(self, inputs: Tensor) -> Tensor:
        rows, width = inputs.shape[-2:]
        mixed = torch.baddbmm(self.bias, inputs.reshape(-1, rows, width), self.weight)
        return mixed.view(*self.shape, rows, -1)


class PiecewiseLinearEmbedding(nn.Module):
    """(G, D, B) normalised numbers → (G, B, D·E).

    A linear embedding plus a piecewise-linear one that starts at zero, so that curvature is learnt only
    where the data shows it.
    """

    left: Tensor
    inverse_width: Tensor

    def __init__(self, groups: int, numbers: int, bins: int, size: int) -> None:
        super().__init__()
        self.register_buffer("left", torch.empty(groups, numbers, 1, bins))
        self.register_buffer("inverse_width", torch.empty(groups, numbers, 1, bins))
        self.slope = nn.Parameter(torch.empty(groups * numbers, 1, size))
        self.shift = nn.Parameter(torch.empty(groups * numbers, 1, size))
        self.pieces = nn.Parameter(torch.empty(groups * numbers, bins, size))

    def initialise(self, generator: torch.Generator) -> None:
        """Linear part random, pieces zero."""
        bound = 1.0 / math.sqrt(self.slope.shape[-1])
        self.slope.uniform_(-bound, bound, generator=generator)
        self.shift.uniform_(-bound, bound, generator=generator)
        self.pieces.zero_()

    def forward(self, numbers: Tensor) -> Tensor:
        groups, columns, rows = numbers.shape
        filled = ((numbers.unsqueeze(-1) - self.left) * self.inverse_width).clamp(0.0, 1.0)
        curved = torch.baddbmm(self.shift, filled.flatten(0, 1), self.pieces)
        embedded = torch.addcmul(curved, numbers.reshape(groups * columns, rows, 1), self.slope)
        size = embedded.shape[-1]
        by_row = embedded.view(groups, columns, rows, size).transpose(1, 2)
        return by_row.reshape(groups, rows, columns * size)
