"""Networks of the ``transformers`` library that look at images: ViT, ConvNeXt, ResNet and whatever takes pixels alone."""

from __future__ import annotations

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

# What the library puts behind an encoder and the mean over places does not use; only there where it may be left out.
_UNUSED: Final = ("pooler",)
_LEFT_OUT_AT_WILL: Final = ("ViTModel", "DeiTModel", "BeitModel")


def build(config: dict[str, Any]) -> Any:
    """The network of a checked config, with weights that are nobody's. Raises PackageError."""
    network = made(settings_of(config), "AutoModel")
    if network.main_input_name != "pixel_values":
        raise PackageError(f"The model ({config['model_type'][:60]}) does not look at images.")
    if type(network).__name__ in _LEFT_OUT_AT_WILL:
        leave_out(network, _UNUSED)
    _normalise_by_groups(network)
    return network


def _normalise_by_groups(network: nn.Module) -> None:
    """Put group in place of batch normalisation, whose result for a row depends on the rows beside it (docs/adr/0013)."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                setattr(module, name, _by_groups(child))


def _by_groups(norm: Any) -> nn.GroupNorm:
    return nn.GroupNorm(groups_of(norm.num_features), norm.num_features, norm.eps, device=norm.weight.device)


def width_of(network: Any, channels: int, side: int) -> int:
    """Numbers that stand for one image, found by looking at one twice. Raises PackageError."""
    image = torch.linspace(-1, 1, channels * side * side).view(1, channels, side, side)
    with as_package_error(), torch.random.fork_rng(devices=[]):
        seen, again = (network(pixel_values=image).last_hidden_state for _ in range(2))
    if not torch.equal(seen, again):
        raise PackageError("The model draws random numbers when it predicts.")
    if not isinstance(seen, Tensor) or seen.dim() not in (3, 4):
        raise PackageError("The model gives no places to average over.")
    named = getattr(network.config, "hidden_sizes", None) or [getattr(network.config, "hidden_size", None)]
    last_is_wide = seen.dim() == 3 or (seen.shape[-1] == named[-1] and seen.shape[1] != named[-1])
    return int(seen.shape[-1 if last_is_wide else 1])


class TransformersImages(TransformersPart):
    """(B, C, H, W) normalised pixels → (B, width): the mean of the last state over all places."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.model = build(transformer.config)
        self.width, self.fresh = transformer.width, transformer.fresh
        self.channels = int(getattr(self.model.config, "num_channels", 3))
        self.side = _side(self.model.config)

    def example(self) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        return {"pixel_values": torch.zeros(1, self.channels, self.side, self.side, device=device)}

    def initialise(self, generator: torch.Generator) -> None:
        """Set every weight as the library does for training from nothing."""
        self.model.load_state_dict(initial_weights(self.model, int(torch.randint(2**31, (1,), generator=generator))))

    def forward(self, pixels: Tensor) -> Tensor:
        state: Tensor = self.model(pixel_values=pixels).last_hidden_state
        if state.dim() == 3:
            return state.mean(1)
        return state.mean((2, 3)) if state.shape[1] == self.width else state.mean((1, 2))


def _side(config: Any) -> int:
    size = getattr(config, "image_size", 32)
    return int(size[0] if isinstance(size, list | tuple) else size)
