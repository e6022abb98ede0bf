"""Layers by themselves."""

from __future__ import annotations

import torch

from dlplatform.engine.dropout import Dropout, noise
from dlplatform.engine.layers import EnsembleLinear


def test_scales_of_a_single_member_are_worked_into_its_matrix() -> None:
    """Packages of the first format have them."""
    generator = torch.Generator().manual_seed(0)
    layer = EnsembleLinear(2, 1, 3, 4, first=False)
    with torch.no_grad():
        layer.initialise(generator)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    before, after = torch.rand(2, 1, 1, 3, generator=generator), torch.rand(2, 1, 1, 4, generator=generator)
    inputs = torch.randn(2, 1, 5, 3, generator=generator)
    scaled = torch.baddbmm(torch.zeros(2, 1, 4), (inputs * before)[:, 0], state["weight"]) * after[:, 0]

    layer.load_state_dict({**state, "before": before, "after": after})

    torch.testing.assert_close(layer(inputs[:, 0]), scaled + state["bias"][:, 0])
    assert layer.state_dict().keys() == {"weight", "bias"}


def test_dropout_silences_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drawn = noise((1000, 1003), 0.3, torch.empty(0))
    assert abs(float((drawn == 0).float().mean()) - 0.3) < 0.003
    assert abs(float(drawn.mean()) - 1) < 0.005
    for lane in range(4):  # four entries come from one draw
        assert abs(float((drawn.flatten()[lane::4] == 0).float().mean()) - 0.3) < 0.006
    columns = (drawn.flatten()[: 4 * 250_000].view(-1, 4) == 0).float()
    assert (torch.corrcoef(columns.T) - torch.eye(4)).abs().max() < 0.01


def test_dropout_of_nothing_and_outside_of_training_changes_nothing() -> None:
    inputs = torch.randn(3, 4)
    assert Dropout(0.0)(inputs) is inputs
    assert Dropout(0.5).eval()(inputs) is inputs
    assert Dropout(0.5)(torch.empty(0, 4)).shape == (0, 4)
