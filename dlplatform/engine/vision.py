"""Networks that look at images: a small ResNet and a ConvNeXt. (B, C, H, W) normalised pixels → (B, width).

Neither keeps statistics of batches: a row's result never depends on the rows beside it, nor training on how many
processes share a batch. The ResNet is that of He et al., 2016 ("Identity Mappings in Deep Residual Networks") with
group normalisation (Wu & He, 2018); the ConvNeXt that of Liu et al., 2022 ("A ConvNet for the 2020s").

A third is what distillation makes of a ResNet: convolutions alone (`FoldedResNet`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

GROUP_CHANNELS = 8  # normalised together, about
FOLDED = "resnet-folded"  # made by distillation alone


def stages_of(size: int) -> int:
    """Stages that bring images of this size down to about four pixels a side; one to four."""
    return max(1, min(4, int(math.log2(max(size, 4) / 4)) + 1))


def stem_stride(size: int) -> int:
    """Large images are brought down at once."""
    return 4 if size > 128 else 2 if size > 64 else 1


def stage_widths(size: int, width: int) -> list[int]:
    """Channels of each stage of a ResNet that nothing was cut from."""
    return [width << stage for stage in range(stages_of(size // stem_stride(size)))]


def patch_of(size: int) -> int:
    """Pixels of a side that the stem of a ConvNeXt takes together."""
    return 4 if size > 64 else 2 if size > 16 else 1


def blocks_in(kind: str, size: int, depth: int) -> int:
    """Blocks of one of our own encoders."""
    return stages_of(size // (patch_of(size) if kind == "convnext" else stem_stride(size))) * depth


def groups_of(channels: int) -> int:
    """How many groups of channels are normalised together."""
    return math.gcd(channels, max(1, channels // GROUP_CHANNELS))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with ``inner`` channels between them, added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int, inner: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(groups_of(inputs), inputs)
        self.first = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.second_norm = nn.GroupNorm(groups_of(inner), inner)
        self.second = nn.Conv2d(inner, outputs, 3, 1, 1, bias=False)
        plain = inputs == outputs and stride == 1
        self.shortcut = None if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        # In place: what is only cut off or added to needs no memory of its own, whose first touch costs as much as it does.
        active = torch.relu_(self.first_norm(inputs))
        kept = inputs if self.shortcut is None else self.shortcut(active)
        changed: Tensor = self.second(torch.relu_(self.second_norm(self.first(active))))
        return changed.add_(kept)


def _channels_together(state: Tensor) -> Tensor:
    """The same (B, C, H, W) with the channels of a pixel side by side in memory, by which many rows are answered in two
    thirds of the time. Only where nothing is learnt: the backward pass of group normalisation is not made for it (torch
    2.13 crashes with frozen weights), and what is exported is laid out by who runs it."""
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return state
    return state.contiguous(memory_format=torch.channels_last)


class Body(nn.Module):
    """(B, C, H, W) normalised pixels → (B, ``width``)."""

    width: int

    def initialise(self, generator: torch.Generator) -> None:
        """Variance-keeping convolutions (He et al., 2015); a residual branch of a ConvNeXt begins almost silent."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.normal_(0.0, math.sqrt(2 / fan), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm | ChannelNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
            elif isinstance(module, ConvNextBlock):
                module.scale.fill_(0.1)


class ResNet(Body):
    """Residual stages, each half as large and twice as wide as the one before, unless ``stages`` and ``inner`` say how
    many channels each stage and the inside of each block have."""

    def __init__(
        self, channels: int, size: int, width: int, depth: int, stages: Sequence[int] = (), inner: Sequence[int] = ()
    ) -> None:
        super().__init__()
        stride = stem_stride(size)
        widths = list(stages) or stage_widths(size, width)
        inside = list(inner) or [outputs for outputs in widths for _ in range(depth)]
        inputs = widths[0]
        self.stem = nn.Conv2d(channels, inputs, 3 if stride == 1 else 7, stride, 1 if stride == 1 else 3, bias=False)
        blocks: list[nn.Module] = []
        for stage, outputs in enumerate(widths):
            for block in range(depth):
                blocks.append(ResidualBlock(inputs, outputs, 2 if stage and not block else 1, inside[len(blocks)]))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(groups_of(inputs), inputs)
        self.width = inputs

    def forward(self, pixels: Tensor) -> Tensor:
        state = _channels_together(self.stem(pixels))
        for block in self.blocks:
            state = block(state)
        return torch.relu_(self.norm(state)).mean((2, 3))


class FoldedBlock(nn.Module):
    """Two 3×3 convolutions added to their input, cut off at zero."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        plain = inputs == outputs and stride == 1
        self.shortcut = None if plain else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        kept = inputs if self.shortcut is None else self.shortcut(inputs)
        changed: Tensor = self.second(torch.relu_(self.first(inputs)))
        return torch.relu_(changed.add_(kept))


class FoldedResNet(Body):
    """The stages of `ResNet` at half the resolution and without any normalisation, which is most of its time: the first
    ResNet (He et al., 2015), as it is when the batch normalisation that it learnt with was worked into its convolutions
    (see `optimizing.folding`)."""

    def __init__(self, channels: int, size: int, width: int, depth: int) -> None:
        super().__init__()
        stride, widths = 2 * stem_stride(size), stage_widths(size, width)
        self.stem = nn.Conv2d(channels, widths[0], 2 * stride - 1, stride, stride - 1)  # looks at every pixel
        blocks, inputs = [], widths[0]
        for stage, outputs in enumerate(widths):
            for block in range(depth):
                blocks.append(FoldedBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.width = inputs

    def forward(self, pixels: Tensor) -> Tensor:
        state = torch.relu_(_channels_together(self.stem(pixels)))
        for block in self.blocks:
            state = block(state)
        return state.mean((2, 3))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        last = inputs.permute(0, 2, 3, 1)
        return nn.functional.layer_norm(last, last.shape[-1:], self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """A wide depthwise convolution, then a feed-forward layer of ``inner`` units at every pixel, added to their input."""

    def __init__(self, width: int, kernel: int, inner: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen = nn.Linear(width, inner)
        self.narrow = nn.Linear(inner, width)
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, inputs: Tensor) -> Tensor:
        state = self.norm(self.depthwise(inputs).permute(0, 2, 3, 1))
        changed: Tensor = self.scale * self.narrow(nn.functional.gelu(self.widen(state)))
        return inputs + changed.permute(0, 3, 1, 2)


class ConvNext(Body):
    """ConvNeXt stages, each half as large and twice as wide as the one before. ``inner``: units inside each block."""

    def __init__(self, channels: int, size: int, width: int, depth: int, inner: Sequence[int] = ()) -> None:
        super().__init__()
        units = iter(inner)
        patch = patch_of(size)
        self.stem = nn.Conv2d(channels, width, max(patch, 2), patch, padding=1 if patch == 1 else 0)
        self.stem_norm = ChannelNorm(width)
        layers: list[nn.Module] = []
        side = size // patch
        for stage in range(stages_of(side)):
            if stage:
                layers += [ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, 2)]
                width, side = 2 * width, side // 2
            kernel = 7 if side >= 7 else 3
            layers += [ConvNextBlock(width, kernel, next(units, 4 * width)) for _ in range(depth)]
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.width = width

    def forward(self, pixels: Tensor) -> Tensor:
        state = self.stem_norm(self.stem(pixels))
        for block in self.blocks:
            state = block(state)
        pooled: Tensor = self.norm(state.mean((2, 3)))
        return pooled


def body_of(
    kind: str, channels: int, size: int, width: int, depth: int, stages: Sequence[int] = (), inner: Sequence[int] = ()
) -> Body:
    """One of our own networks that look at images."""
    if kind == "convnext":
        return ConvNext(channels, size, width, depth, inner)
    if kind == FOLDED:
        return FoldedResNet(channels, size, width, depth)
    return ResNet(channels, size, width, depth, stages, inner)


class ImageEncoder(nn.Module):
    """(B, C, H, W) uint8 or changed float pixels from 0 to 255 → (B, width)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, body: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(channels))
        self.register_buffer("deviation", torch.empty(channels))
        self.body = body

    @property
    def width(self) -> int:
        """Numbers that stand for one image."""
        return int(self.body.width)

    def forward(self, pixels: Tensor) -> Tensor:
        channels = (1, -1, 1, 1)
        scaled = (pixels.to(self.mean.dtype) - self.mean.view(channels)).div_(self.deviation.view(channels))
        seen: Tensor = self.body(scaled)
        return seen
