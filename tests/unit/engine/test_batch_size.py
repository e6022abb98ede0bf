"""The batch size that fits: bounded by memory, however that says that it has ended, and by what a row costs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlplatform.engine import batch_size
from dlplatform.engine.batch_size import fitting_batch_size
from dlplatform.engine.errors import EngineError
from dlplatform.engine.finetuning import Plan
from dlplatform.engine.processes import Processes
from dlplatform.engine.run import prepare_arrays
from dlplatform.engine.training import Trainer

OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
]


class Constant:
    """A learner whose steps take the same time whatever their rows, until ``most`` rows, where ``error`` is raised."""

    def __init__(self, most: int = 1 << 20, error: Exception | None = None) -> None:
        self.device = torch.device("cpu")
        self.network = nn.Linear(4, 2)
        self.train_rows = [torch.arange(4096)]
        self.most, self.error = most, error

    def loss(self, model: nn.Module, rows: torch.Tensor, share: Any) -> torch.Tensor:
        if self.error is not None and share.last - share.first > self.most:
            raise self.error
        time.sleep(0.02)
        return model(torch.ones(1, 4)).sum()


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_the_batch_grows_until_memory_ends_and_nothing_is_changed(error: Exception) -> None:
    learner = Constant(100, error)
    weights, random = learner.network.weight.clone(), torch.get_rng_state()
    assert fitting_batch_size(learner) == 64
    assert torch.equal(learner.network.weight, weights) and learner.network.weight.grad is None
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("most", "found"), [(15, 8), (5, 4), (1, 1), (0, 1)])
def test_a_first_size_that_is_too_large_is_halved(most: int, found: int) -> None:
    """One that does not fit even alone is told by training itself."""
    assert fitting_batch_size(Constant(most, MemoryError())) == found


def test_an_epoch_keeps_some_steps_however_cheap_rows_are() -> None:
    assert fitting_batch_size(Constant()) == 4096 // batch_size.STEPS_AN_EPOCH


def test_what_training_holds_besides_has_to_fit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    empty = torch.empty

    def counted(*size: Any, **more: Any) -> torch.Tensor:
        asked.append(size[0])
        return empty(*size, **more)

    monkeypatch.setattr(batch_size.torch, "empty", counted)
    learner = Constant()
    learner.network.bias.requires_grad_(False)
    fitting_batch_size(learner)
    assert 4 * (8 * 3 + 2) in asked, "the average of all, two moments of the weights that learn"


def test_what_trains_later_counts_too() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    plan = Plan({"1": 3, "2": 0})
    plan.apply(network, plan.last_stage)
    assert [each.requires_grad for each in network.parameters()] == [False] * 2 + [True] * 4
    assert Plan().last_stage == Plan({}).last_stage == 0


def test_any_other_error_is_told() -> None:
    with pytest.raises(ValueError, match="no loss"):
        fitting_batch_size(Constant(20, ValueError("no loss")))


class Three(Processes):
    world = 3


def test_of_several_processes_each_tries_its_share_of_the_batch() -> None:
    """Three of them hold three times the rows; and never is one left without any."""
    assert fitting_batch_size(Constant(100, MemoryError())) == 64
    assert fitting_batch_size(Constant(100, MemoryError()), Three()) == 256
    assert fitting_batch_size(Constant(0, MemoryError()), Three()) == 6


@pytest.mark.parametrize(
    ("world", "strategy", "trains", "times"),
    [(3, "ddp", True, 3), (3, "ddp", False, 1), (2, "fsdp", True, 0.5), (3, "fsdp", True, 0), (3, "fsdp", False, 0)],
)
def test_what_each_process_holds_of_training_is_a_part_where_weights_are_divided(
    world: int, strategy: str, trains: bool, times: float
) -> None:
    """Weights, gradients, average and two moments, divided or not, less the two of them that the try holds whole."""
    learner, processes = Constant(), Processes()
    processes.world, processes.strategy = world, strategy
    learner.network.requires_grad_(trains)
    numbers = sum(each.numel() for each in learner.network.parameters())
    assert len(batch_size._room_of_training(learner, processes)) == times * 4 * numbers


@pytest.mark.parametrize(("size", "fits"), [(2, False), (6, True), (64, True)])
def test_a_step_that_leaves_a_process_without_rows_is_refused_with_the_fix(
    tmp_path: Path, size: int, fits: bool
) -> None:
    random = np.random.default_rng(0)
    features, target = random.normal(size=(59, 3)), random.integers(0, 2, 59)
    alone = prepare_arrays(features, target, "classification", tmp_path, epochs=1, folds=1, batch_size=size)
    least = alone.rows_per_epoch // alone.steps_per_epoch
    assert (least >= 3) == fits, "or the case shows nothing"
    if fits:
        assert Trainer(alone.learner, alone.reporter, processes=Three()).processes.world == 3
        return
    with pytest.raises(EngineError) as refused:
        Trainer(alone.learner, alone.reporter, processes=Three())
    assert refused.value.code == "bad_config"
    assert f"{least} of the training rows, which 3 processes" in refused.value.sentence
    assert "batch_size of at least 6" in refused.value.next_step
