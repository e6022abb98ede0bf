"""What answers encoded rows: a short way gives what the network gives, to the bit."""

import numpy as np
import pytest
import torch

from dlplatform.engine import adapters
from dlplatform.engine.finetune_config import FinetuneConfig
from dlplatform.engine.network import NetworkShape, build_network
from dlplatform.engine.preprocessing import Inputs, InputSizes
from dlplatform.engine.runners import PerceptronRunner, TorchRunner, torch_runner
from dlplatform.engine.split import Split
from dlplatform.engine.statistics import fit_statistics

ROWS, NUMBERS, CODES = 203, 5, (4, 7)
NETWORK = {"layers": 2, "width": 16}


def rows(categories):
    """With numbers that are missing, huge and tiny, and a constant column."""
    random = np.random.default_rng(0)
    numbers = random.normal(size=(ROWS, NUMBERS)).astype(np.float32) * np.array([1, 1e-6, 1e6, 30, 0], np.float32)
    numbers[:6, 0] = [1e30, -1e30, 3e38, -3e38, np.nan, 0]
    numbers[random.random(numbers.shape) < 0.1] = np.nan
    codes = random.integers(0, CODES, (ROWS, 2)).astype(np.int32)[:, : 2 if categories else 0]
    nothing = np.zeros((ROWS, 0, 64), np.int32)
    return Inputs(
        numbers, codes, nothing, nothing[..., :0],
        np.zeros((ROWS, 0, 0, 0, 0), np.uint8),
    )  # fmt: skip


def made(inputs, *, kind="class", groups=1, members=1, architecture="mlp", categories=False, indicators=()):
    sizes = InputSizes(NUMBERS, indicators, CODES if categories else (), 0)
    shape = NetworkShape(architecture, groups, members, 3, sizes, kind=kind, bins=4, embedding_size=3, **NETWORK)
    network = build_network(shape)
    parts = tuple(np.arange(group, ROWS, 2) for group in range(groups))
    network.initialise(fit_statistics(inputs, sizes, Split(parts, parts), 4, None), 7)
    return network.eval()


@pytest.mark.parametrize("kind", ["class", "labels", "numbers"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("more", [{}, {"indicators": (0, 3)}, {"categories": True}])
def test_a_plain_perceptron_answers_as_its_network_to_the_bit(kind, groups, more):
    inputs = rows(more.get("categories", False))
    network = made(inputs, kind=kind, groups=groups, **more)
    if kind == "numbers":
        network.target_center = torch.randn(groups, 3)
        network.target_scale = torch.rand(groups, 3)
    short = torch_runner(network, {})
    assert isinstance(short, PerceptronRunner)
    for count in (1, 2, 9, 64, ROWS):
        some = Inputs(
            *(getattr(inputs, name)[:count] for name in ("numbers", "categories", "tokens", "sequences", "images"))
        )
        expected, found = TorchRunner(network)(some), short(some)
        assert np.isfinite(expected).all()
        assert found.shape == (groups, count, 3)
        assert np.array_equal(expected, found)


def test_many_rows_are_answered_in_parts(monkeypatch):
    inputs = rows(False)
    network = made(inputs)
    whole = PerceptronRunner(network)(inputs)
    for module in ("runners", "objective"):
        monkeypatch.setattr(f"dlplatform.engine.{module}.EVALUATION_ROWS", 50)
    assert np.abs(PerceptronRunner(network)(inputs) - whole).max() < 1e-6


@pytest.mark.parametrize("more", [{"members": 4}, {"architecture": "tabm"}, {"architecture": "linear"}])
def test_what_is_no_plain_perceptron_is_run_as_it_is(more):
    assert type(torch_runner(made(rows(False), **more), {})) is TorchRunner


def test_an_adapter_is_not_passed_by():
    inputs = rows(False)
    network = made(inputs)
    plain = torch_runner(network, {})(inputs)
    adapters.attach(network, FinetuneConfig(mode="lora", rank=2), {"hidden", "head"}, 3)
    with torch.no_grad():
        for _, adapter in adapters.adapters(network):
            for parameter in adapter.parameters():
                parameter.add_(0.1)
    found = torch_runner(network.eval(), {})
    assert type(found) is TorchRunner
    assert np.abs(found(inputs) - plain).max() > 1e-3
