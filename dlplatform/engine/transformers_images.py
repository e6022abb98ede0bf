"""Networks of the ``transformers`` library that look at images: ViT, ConvNeXt, ResNet and whatever takes pixels alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from dlplatform.engine.errors import PackageError
from dlplatform.engine.transformers_config import Transformer
from dlplatform.engine.transformers_models import (
    TransformersPart,
    as_package_error,
    initial_weights,
    leave_out,
    made,
    settings_of,
)
from dlplatform.engine.vision import groups_of

# What the library puts behind an encoder and nothing here uses; only there where it may be left out. What a BEiT has there
# it was trained with; behind a ViT is a layer for another purpose, and its own classifiers look at the first place.
_UNUSED: Final = ("pooler",)
_FIRST_PLACE: Final = ("ViTModel", "DeiTModel")
_LEFT_OUT_AT_WILL: Final = {True: (*_FIRST_PLACE, "BeitModel"), False: _FIRST_PLACE}


def build(config: dict[str, Any], fresh: bool = True) -> Any:
    """The network of a checked config, with weights that are nobody's. Raises PackageError.

    ``fresh``: it is to begin from nothing, so no statistics of anybody's batches belong to it.
    """
    network = made(settings_of(config), "AutoModel")
    if network.main_input_name != "pixel_values":
        raise PackageError(f"The model ({config['model_type'][:60]}) does not look at images.")
    if type(network).__name__ in _LEFT_OUT_AT_WILL[fresh]:
        leave_out(network, _UNUSED)
    _normalise_without_batches(network, _by_groups if fresh else FrozenBatchNorm)
    return network


def _normalise_without_batches(network: nn.Module, instead: Callable[[Any], nn.Module]) -> None:
    """Replace batch normalisation, whose result for a row depends on the rows beside it (docs/adr/0013)."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                setattr(module, name, instead(child))


def _by_groups(norm: Any) -> nn.GroupNorm:
    return nn.GroupNorm(groups_of(norm.num_features), norm.num_features, norm.eps, device=norm.weight.device)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by the statistics that a pretrained model was left with, which never change again; its weight and
    bias train. The usual way to fine-tune with few images or small batches (He et al., 2017, "Mask R-CNN", §3.1)."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.eps = float(norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, inputs: Tensor) -> Tensor:
        fitted = (self.running_mean, self.running_var, self.weight, self.bias)
        return nn.functional.batch_norm(inputs, *fitted, training=False, eps=self.eps)


def _looked(network: Any, channels: int, side: int) -> Any:
    """What the network says of one image, after it said the same twice. Raises PackageError."""
    image = torch.linspace(-1, 1, channels * side * side).view(1, channels, side, side)
    with as_package_error(), torch.random.fork_rng(devices=[]):
        seen, again = (network(pixel_values=image) for _ in range(2))
        first, second = seen.last_hidden_state, again.last_hidden_state
    if not isinstance(first, Tensor) or first.dim() not in (3, 4):
        raise PackageError("The model gives no places to average over.")
    if not torch.equal(first, second):
        raise PackageError("The model draws random numbers when it predicts.")
    return seen


def pretrained(config: dict[str, Any], channels: int, side: int) -> Transformer:
    """How a pretrained network of a checked config stands for images of that size: as its own classifiers do.

    Raises PackageError for one that cannot look at them.
    """
    network = build(config, fresh=False).eval()
    with torch.no_grad():
        seen = _looked(network, channels, side)
    if type(network).__name__ in _FIRST_PLACE:
        return Transformer(config, "cls", int(seen.last_hidden_state.shape[-1]))
    own = getattr(seen, "pooler_output", None)
    if isinstance(own, Tensor):
        return Transformer(config, "own", int(own.flatten(1).shape[1]))
    return Transformer(config, "mean", _width(network, seen.last_hidden_state))


def width_of(network: Any, channels: int, side: int) -> int:
    """Numbers that stand for one image, found by looking at one twice. Raises PackageError."""
    return _width(network, _looked(network, channels, side).last_hidden_state)


def _width(network: Any, seen: Tensor) -> int:
    named = getattr(network.config, "hidden_sizes", None) or [getattr(network.config, "hidden_size", None)]
    last_is_wide = seen.dim() == 3 or (seen.shape[-1] == named[-1] and seen.shape[1] != named[-1])
    return int(seen.shape[-1 if last_is_wide else 1])


class TransformersImages(TransformersPart):
    """(B, C, H, W) normalised pixels → (B, width): the last state's mean over all places, its first place, or the network's
    own vector, as `Transformer.pooling` says."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.model = build(transformer.config, transformer.fresh)
        self.pooling, self.width, self.fresh = transformer.pooling, transformer.width, transformer.fresh
        self.channels = int(getattr(self.model.config, "num_channels", 3))
        self.side = _side(self.model.config)

    def example(self) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        return {"pixel_values": torch.zeros(1, self.channels, self.side, self.side, device=device)}

    def initialise(self, generator: torch.Generator) -> None:
        """Set every weight as the library does for training from nothing."""
        self.model.load_state_dict(initial_weights(self.model, int(torch.randint(2**31, (1,), generator=generator))))

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.model(pixel_values=pixels)
        if self.pooling == "own":
            whole: Tensor = seen.pooler_output.flatten(1)
            return whole
        state: Tensor = seen.last_hidden_state
        if self.pooling == "cls":
            return state[:, 0]
        if state.dim() == 3:
            return state.mean(1)
        return state.mean((2, 3)) if state.shape[1] == self.width else state.mean((1, 2))


def _side(config: Any) -> int:
    size = getattr(config, "image_size", 32)
    return int(size[0] if isinstance(size, list | tuple) else size)
