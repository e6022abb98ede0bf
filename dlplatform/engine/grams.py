"""Gram matrices of the inputs of a network's linear layers, which RegMean weighs its parents by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlplatform.engine.layers import EnsembleLinear, GroupedLinear, MemberLinear


def collect_grams(network: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """{name of a weight: (groups, in, in)} of everything that ``run()`` sends through the network's linear layers."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, GroupedLinear | EnsembleLinear | MemberLinear):
            hooks.append(module.register_forward_pre_hook(_adding(found, f"{name}.weight")))
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _adding(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = _rows(module, inputs[0]).double()
        gram = rows.transpose(-2, -1) @ rows
        found[name] = found[name] + gram if name in found else gram

    return add


def _rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """What meets each weight matrix: (matrices, rows, in)."""
    if isinstance(module, EnsembleLinear):
        scaled = inputs if module.alone else inputs * module.before
        return scaled.reshape(scaled.shape[0], -1, scaled.shape[-1])
    return inputs.reshape(-1, *inputs.shape[-2:])
