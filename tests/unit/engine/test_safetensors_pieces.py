"""What is written in pieces is what the library reads."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from dlplatform.engine.safetensors_pieces import NAMES, to_safetensors


@pytest.mark.parametrize("dtype", NAMES)
def test_every_kind_of_number_comes_back(dtype: torch.dtype) -> None:
    tensors = {"one": torch.arange(6).reshape(2, 3).to(dtype), "none": torch.empty((0, 4), dtype=dtype)}
    read = safetensors.torch.load(b"".join(to_safetensors(tensors)))
    assert {name: (each.dtype, each.shape) for name, each in read.items()} == {
        name: (each.dtype, each.shape) for name, each in tensors.items()
    }
    assert torch.equal(read["one"], tensors["one"])


def test_scalars_nan_and_names_of_any_kind_come_back() -> None:
    tensors = {
        "b": torch.tensor(True),
        'ä"': torch.tensor([float("nan"), -0.0]),
        "step": torch.tensor(3.0),
        "": torch.ones(1),
    }
    read = safetensors.torch.load(b"".join(to_safetensors(tensors)))
    assert read.keys() == tensors.keys()
    assert bytes(to_safetensors({"x": read['ä"']})[1]) == bytes(to_safetensors({"x": tensors['ä"']})[1])
    assert read["step"].shape == ()


def test_tensors_lie_aligned() -> None:
    content = b"".join(to_safetensors({"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(3, dtype=torch.float64)}))
    assert (len(content) - 27) % 8 == 0
    assert safetensors.torch.load(content)["b"].tolist() == [1.0, 1.0, 1.0]
