"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.finetuning import Plan

LINEAR_RATE = 2.0
_DECAYED, _FREE, _LINEAR = range(3)
UNDECAYED = ("bias", "before", "after", "shift", "slope", "scale")


class AdamW(torch.optim.AdamW):
    """Fused AdamW (Loshchilov and Hutter, 2019). Where all parameters are plain ones in float32 on the CPU, `update` calls
    torch's kernel itself: `step` sorts them by device and tells profilers, which takes a tenth of a small network's step."""

    def __init__(self, described: list[dict[str, Any]], rate: float) -> None:
        super().__init__(described, lr=rate, fused=True)
        parameters = [each for group in self.param_groups for each in group["params"]]
        self._plain = all(
            type(each) is nn.Parameter and each.device.type == "cpu" and each.dtype == torch.float32
            for each in parameters
        )

    @torch.no_grad()
    def update(self) -> None:
        """As `step` does, to the bit."""
        moved: list[list[Tensor]] = [
            [each for each in group["params"] if each.grad is not None] for group in self.param_groups
        ]
        if not self._plain or any(each not in self.state for parameters in moved for each in parameters):
            self.step()  # which also makes what is remembered of each
            return
        for group, parameters in zip(self.param_groups, moved, strict=True):
            if parameters:
                self._update(group, parameters)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        known = [self.state[each] for each in parameters]
        gradients = [cast(Tensor, each.grad) for each in parameters]
        steps = [each["step"] for each in known]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters, gradients, [each["exp_avg"] for each in known],
            [each["exp_avg_sq"] for each in known], [], steps, lr=group["lr"], beta1=group["betas"][0],
            beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip


def build_optimizer(network: nn.Module, config: TrainingConfig, plan: Plan | None = None) -> AdamW:
    """Weight decay on matrices only, a higher rate for the linear path.

    Each group of parameters carries its ``rate``, a multiple of the learning rate. Parameters that never train by
    the plan are left out.
    """
    plan = plan or Plan()
    groups: dict[tuple[int, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if plan.ever_trains(name, parameter):
            groups.setdefault((_kind(name), plan.rate(name)), []).append(parameter)
    described: list[dict[str, Any]] = [
        {
            "params": parameters,
            "weight_decay": 0.0 if kind == _FREE else config.weight_decay,
            "rate": rate * (LINEAR_RATE if kind == _LINEAR else 1.0),
        }
        for (kind, rate), parameters in sorted(groups.items(), key=lambda group: (group[0][0], -group[0][1]))
    ]
    return AdamW(described, _peak(config))


def _kind(name: str) -> int:
    if name.startswith("linear."):
        return _LINEAR
    return _FREE if _undecayed(name) else _DECAYED


def _undecayed(name: str) -> bool:
    """Biases, scales and the weights of normalisations."""
    *path, last = name.split(".")
    return last in UNDECAYED or (bool(path) and (path[-1].lower().endswith("norm") or path[-1].startswith("ln_")))


def _peak(config: TrainingConfig) -> float:
    assert config.learning_rate != "auto"
    return config.learning_rate


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """The rate of a step (from 0 on): linear warm-up, then the schedule down to 1 % of the peak."""
    peak = _peak(config)
    warmup = 0 if config.schedule == "one-cycle" else round(config.warmup * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "one-cycle":
        return _one_cycle(peak, step, total_steps)
    done = (step - warmup) / max(1, total_steps - warmup)
    remaining = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (0.01 + 0.99 * remaining)


def _one_cycle(peak: float, step: int, total_steps: int) -> float:
    """Up from 4 % for three tenths of the steps, then down to almost nothing, both along a cosine (Smith, 2018)."""
    rise = max(1, round(0.3 * total_steps))
    if step < rise:
        low, high, done = peak / 25, peak, step / rise
    else:
        low, high, done = peak / 10_000, peak, 1 - (step - rise) / max(1, total_steps - rise)
    return low + (high - low) * (1 - math.cos(math.pi * done)) / 2
