"""Matrices kept in fewer bits: as bfloat16, or as int8 with a scale for each output.

What is read is float32 again, except where the processor computes in bfloat16 itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from dlplatform.engine.layers import EnsembleLinear, GroupedLinear, MemberLinear
from dlplatform.engine.runtime import FLOAT32

SCALE: Final = ".scale"
LEAST: Final = 256  # numbers; smaller matrices stay as they are
_COLUMNS: Final = (GroupedLinear, EnsembleLinear, MemberLinear)  # whose outputs are the last axis
_ROWS: Final = (nn.Linear, nn.Conv2d, nn.Embedding)
_TABLES: Final = ("encoder.texts", "encoder.categories")  # embeddings by (group, row)


def matrices(network: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, axes that share a scale) of every tensor that is kept in fewer bits: 0 the rows, 1 all but the last axis,
    2 the last axis alone."""
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (*_COLUMNS, *_ROWS)) and isinstance(weight, Tensor) and weight.numel() >= LEAST:
            yield f"{name}.weight", 1 if isinstance(module, _COLUMNS) else 0
    for name, parameter in network.named_parameters():
        if name in _TABLES and parameter.numel() >= LEAST:
            yield name, 2


def _shared(axes: int, dimensions: int) -> list[int]:
    """The dimensions over which one scale holds."""
    if axes == 0:
        return list(range(1, dimensions))
    return [dimensions - 2] if axes == 1 else [dimensions - 1]


def stored(network: nn.Module, tensors: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """The tensors as a file with such ``weights`` (see `runtime.KEPT`) holds them; also of tensors without memory."""
    kept = dict(tensors)
    if weights == FLOAT32:
        return kept
    for name, axes in matrices(network):
        if weights == "bfloat16":
            kept[name] = kept[name].bfloat16()
        else:
            kept[name], kept[name + SCALE] = quantized(kept[name], axes)
    return kept


def quantized(tensor: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """(int8 of the same shape, float32 scales): symmetric, the largest number of each output becomes ±127."""
    largest = tensor.abs().amax(_shared(axes, tensor.dim()), keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / 127
    return (tensor / scale).round().clamp(-127, 127).to(torch.int8), scale.float()


def restored(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 tensors of what `stored` gave."""
    whole = dict(tensors)
    for name, _ in matrices(network):
        if name + SCALE in tensors:
            whole[name] = tensors[name].float() * whole.pop(name + SCALE)
        elif name in whole:
            whole[name] = whole[name].float()
    return whole


def computes_in_bfloat16() -> bool:
    """Whether this processor has instructions for it; without them it would only be slower."""
    return bool(torch.cpu._is_avx512_bf16_supported())


@torch.no_grad()
def lower(network: nn.Module) -> None:
    """Keep the matrices of layers as bfloat16 in memory, for a network that is run under autocast."""
    for module in network.modules():
        if isinstance(module, (*_COLUMNS, nn.Linear, nn.Conv2d)) and module.weight.numel() >= LEAST:
            module.weight = nn.Parameter(module.weight.bfloat16(), requires_grad=False)
