"""How fast what learns: schedules over the steps, rates by depth, and the average of the weights."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlplatform.engine.blocks import block_of
from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.finetune_config import FinetuneConfig
from dlplatform.engine.finetuning import Plan, plan_of
from dlplatform.engine.language import LanguageNetwork, LanguageShape
from dlplatform.engine.optimization import LINEAR_RATE, build_optimizer, learning_rate
from dlplatform.engine.run import prepare_arrays
from tests.unit.engine.test_runners import made, rows

STEPS, PEAK = 100, 0.2


def rates(schedule: str, warmup: float) -> list[float]:
    """The rate of every step, as shares of the peak."""
    config = TrainingConfig(learning_rate=PEAK, schedule=schedule, warmup=warmup)
    return [learning_rate(config, step, STEPS) / PEAK for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_warms_up_to_its_peak_and_falls_to_a_hundredth(schedule: str) -> None:
    found = rates(schedule, warmup=0.1)
    assert found[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert found[10] == max(found) == pytest.approx(1.0)
    assert found[55] == pytest.approx(0.505)  # half of the way from the peak to a hundredth of it
    last = 1 / 90 if schedule == "linear" else (1 + math.cos(math.pi * 89 / 90)) / 2
    assert found[-1] == min(found[10:]) == pytest.approx(0.01 + 0.99 * last)
    assert found[10:] == sorted(found[10:], reverse=True)
    steps = [one - other for one, other in pairwise(found[10:])]
    assert (max(steps) == pytest.approx(min(steps))) == (schedule == "linear")
    config = TrainingConfig(learning_rate=PEAK, schedule=schedule, warmup=0.1)
    assert learning_rate(config, STEPS, STEPS) == pytest.approx(PEAK / 100)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_without_warm_up_the_rate_begins_at_its_peak(schedule: str) -> None:
    assert rates(schedule, warmup=0.0)[0] == 1.0


def test_a_constant_rate_stays_at_its_peak_once_it_is_warm() -> None:
    found = rates("constant", warmup=0.1)
    assert found[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert set(found[10:]) == {1.0}


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_one_cycle_rises_for_three_tenths_and_falls_to_almost_nothing(warmup: float) -> None:
    """It brings its own warm-up: that of the settings is not looked at."""
    found = rates("one-cycle", warmup)
    assert found[0] == pytest.approx(1 / 25)
    assert found[15] == pytest.approx((1 + 1 / 25) / 2)
    assert found[30] == max(found) == pytest.approx(1.0)
    assert found[65] == pytest.approx((1 + 1 / 10_000) / 2)
    assert found[:31] == sorted(found[:31]) and found[30:] == sorted(found[30:], reverse=True)
    config = TrainingConfig(learning_rate=PEAK, schedule="one-cycle", warmup=warmup)
    assert learning_rate(config, STEPS, STEPS) == pytest.approx(PEAK / 10_000)
    assert found[-1] == pytest.approx(1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * 69 / 70)) / 2)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "one-cycle"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_rate_too(schedule: str, steps: int) -> None:
    config = TrainingConfig(learning_rate=PEAK, schedule=schedule)
    assert all(0 < learning_rate(config, step, steps) <= PEAK for step in range(steps))


def rates_by_block(network: nn.Module, plan: Plan) -> dict[str, float]:
    """{block: the multiple of the learning rate with which the optimizer steps it}."""
    optimizer = build_optimizer(network, TrainingConfig(learning_rate=PEAK), plan)
    by_tensor = {id(each): group["rate"] for group in optimizer.param_groups for each in group["params"]}
    found: dict[str, set[float]] = {}
    for name, parameter in network.named_parameters():
        found.setdefault(block_of(name), set()).add(by_tensor[id(parameter)])
    assert all(len(rates) == 1 for rates in found.values()), found
    return {block: rates.pop() for block, rates in found.items()}


def test_every_block_learns_at_a_share_of_the_rate_of_the_one_after_it() -> None:
    writer = LanguageNetwork(LanguageShape(vocabulary=20, length=8, width=8, layers=2, heads=2))
    plan = plan_of(writer, FinetuneConfig("full", layer_decay=0.5), (), 0)
    expected = {"tokens": 0.125, "positions": 0.25, "blocks.0": 0.5, "blocks.1": 1.0, "norm": 1.0}
    assert rates_by_block(writer, plan) == expected

    tabm = made(rows(False), architecture="tabm", members=2)
    plan = plan_of(tabm, FinetuneConfig("full", layer_decay=0.8), (), 0)
    expected = {"linear": LINEAR_RATE, "embedding": 0.8**3, "hidden.0": 0.8**2, "hidden.1": 0.8, "head": 1.0}
    assert rates_by_block(tabm, plan) == pytest.approx(expected)
    assert not plan_of(tabm, FinetuneConfig("full"), (), 0).rates, "without a decay nothing is told apart"


@pytest.mark.parametrize("decay", [0.0, 0.75, 0.99])
def test_the_average_of_the_weights_follows_them_by_its_decay(tmp_path: Path, decay: float) -> None:
    """average ← decay · average + (1 - decay) · weights, from the weights after the first step on."""
    random = np.random.default_rng(0)
    features = random.normal(size=(64, 3))
    params: Any = {"members": 2, "width": 8}
    trainer = prepare_arrays(
        features, (features[:, 0] > 0) * 1, "classification", tmp_path, ema=decay, epochs=2, folds=1, params=params
    )
    expected: list[torch.Tensor] = []
    for step in range(4):
        trainer.try_steps(1)
        trainer.state.step += 1
        weights = [each.detach().clone() for each in trainer.network.parameters()]
        before = expected if step else weights
        expected = [decay * old + (1 - decay) * new for old, new in zip(before, weights, strict=True)]
        for average, wanted in zip(trainer.averaged.parameters(), expected, strict=True):
            torch.testing.assert_close(average, wanted)
    moved = [
        not torch.equal(one, other)
        for one, other in zip(trainer.averaged.parameters(), trainer.network.parameters(), strict=True)
    ]
    assert any(moved) == (decay > 0)
    trainer.reporter.writer.close()


class Towers(nn.Module):
    """Two matrices of which one may rest, an own rate for a linear path, and something without decay."""

    def __init__(self, kind: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.linear = (nn.Linear(5, 5, dtype=kind) for _ in range(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(inputs))) + self.linear(inputs)


def stepped(network: Towers, step: Any, optimizer: torch.optim.Optimizer, times: range) -> None:
    for turn in times:
        for parameter in network.first.parameters():
            parameter.requires_grad_(turn % 3 != 1)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + turn) * group["rate"]
        optimizer.zero_grad()
        torch.manual_seed(turn)
        network(torch.randn(4, 5, dtype=network.first.weight.dtype)).square().sum().backward()
        step()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_an_update_is_to_the_bit_the_step_of_torch(kind: torch.dtype) -> None:
    ours, theirs = Towers(kind), Towers(kind)
    optimizer = build_optimizer(ours, TrainingConfig(learning_rate=PEAK, weight_decay=0.1))
    assert len(optimizer.param_groups) == 3
    described = [
        {"params": [dict(theirs.named_parameters())[name] for name in names], "rate": group["rate"], "weight_decay": decay}
        for group in optimizer.param_groups
        for decay, names in [
            (group["weight_decay"], [n for n, each in ours.named_parameters() if any(each is p for p in group["params"])])
        ]
    ]  # fmt: skip
    peer = torch.optim.AdamW(described, lr=PEAK, fused=True)
    stepped(ours, optimizer.update, optimizer, range(1, 20))  # the first step is one in which a part rests
    stepped(theirs, peer.step, peer, range(1, 20))
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert optimizer.state_dict()["state"][0]["step"] == peer.state_dict()["state"][0]["step"] > 10

    again = Towers(kind)
    again.load_state_dict(ours.state_dict())
    restored = build_optimizer(again, TrainingConfig(learning_rate=PEAK, weight_decay=0.1))
    restored.load_state_dict(optimizer.state_dict())
    stepped(again, restored.update, restored, range(20, 30))
    stepped(theirs, peer.step, peer, range(20, 30))
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), theirs.parameters(), strict=True))


def test_an_update_calls_the_kernel_itself_once_everything_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Towers()
    optimizer = build_optimizer(network, TrainingConfig(learning_rate=PEAK, weight_decay=0.1))
    stepped(network, optimizer.update, optimizer, range(3))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: pytest.fail("torch's own way"))
    before = network.second.weight.detach().clone()
    stepped(network, optimizer.update, optimizer, range(3, 5))
    assert not torch.equal(before, network.second.weight)
