"""Numbers normalised once for all steps are those that the network would make of each batch, to the bit."""

import numpy as np
import pytest
import torch

from dlplatform.engine import dataset
from dlplatform.engine.dataset import to_tensors
from dlplatform.engine.network import NetworkShape, build_network
from dlplatform.engine.preprocessing import Inputs, InputSizes
from dlplatform.engine.split import Split
from dlplatform.engine.statistics import fit_statistics

ROWS, NUMBERS = 203, 5


def inputs(absent):
    random = np.random.default_rng(0)
    numbers = random.normal(size=(ROWS, NUMBERS)).astype(np.float32) * np.array([1, 1e-6, 1e6, 30, 0], np.float32)
    numbers[5, 0] = 1e30
    if absent:
        numbers[random.random(numbers.shape) < 0.2] = np.nan
    nothing = np.zeros((ROWS, 0, 64), np.int32)
    return Inputs(
        numbers, np.zeros((ROWS, 0), np.int32), nothing, nothing[..., :0], np.zeros((ROWS, 0, 0, 0, 0), np.uint8)
    )


@pytest.mark.parametrize("architecture", ["mlp", "tabm", "linear"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("absent", [False, True])
def test_a_batch_gives_the_same_outputs_either_way(architecture, groups, absent):
    sizes = InputSizes(NUMBERS, tuple(range(NUMBERS)) if absent else (), (), 0)
    more = {"layers": 1, "width": 8, "bins": 4, "embedding_size": 3, "dropout": 0.0}
    network = build_network(NetworkShape(architecture, groups, 1, 2, sizes, kind="class", **more))
    made = inputs(absent)
    parts = tuple(np.arange(group, ROWS, 2) for group in range(groups))
    network.initialise(fit_statistics(made, sizes, Split(parts, parts), 4, None), 7)
    network.eval()
    plain = to_tensors(made, np.zeros(ROWS, np.int64), torch.device("cpu"))
    once = plain.normalise(network)
    assert once.normalised is not None and once.normalised.shape == (groups, ROWS, NUMBERS)
    for size in (1, 7, 64):
        rows = torch.stack([torch.randperm(ROWS)[:size] for _ in range(groups)])
        expected, found = network(plain.batch(rows)), network(once.batch(rows))
        assert torch.isfinite(expected).all()
        assert torch.equal(expected, found)
    chosen = torch.arange(9)
    assert once.at(chosen).normalised is None, "whoever changes rows has them normalised anew"


def test_rows_that_would_take_too_much_memory_are_normalised_step_by_step(monkeypatch):
    monkeypatch.setattr(dataset, "NORMALISED_BYTES", 4 * ROWS * NUMBERS - 1)
    network = build_network(NetworkShape("linear", 1, 1, 2, InputSizes(NUMBERS, (), (), 0), kind="class"))
    plain = to_tensors(inputs(False), np.zeros(ROWS, np.int64), torch.device("cpu"))
    assert plain.normalise(network).normalised is None
