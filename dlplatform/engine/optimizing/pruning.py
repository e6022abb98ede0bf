"""Cutting: whole units and channels together with everything that they touch, or single weights.

A unit is judged by the norm of what flows in times the norm of what flows out, which scaling one against the other does
not change; a channel behind a normalisation by its factor there times the norm of what flows out. What is cut out of the
stream of a residual network goes in every layer that writes or reads that stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from dlplatform.engine.compact import matrices
from dlplatform.engine.errors import EngineError
from dlplatform.engine.network import NetworkShape, RowNetwork, build_network
from dlplatform.engine.vision import GROUP_CHANNELS, ConvNextBlock, ResidualBlock, ResNet

BODY: Final = "encoder.images.body"
Tensors = dict[str, Tensor]


@torch.no_grad()
def structured(network: RowNetwork, keep: float) -> RowNetwork:
    """A narrower network with the units and channels that matter most. Raises EngineError where there is nothing to cut."""
    tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    shape = _cut_units(network.shape, tensors, keep)
    body = getattr(getattr(network.encoder, "images", None), "body", None)
    if isinstance(body, ResNet):
        shape = _cut_stream(_cut_inside(shape, tensors, list(_residual(body)), keep), tensors, body, keep)
    elif body is not None:
        shape = _cut_wide(shape, tensors, body, keep)
    if shape == network.shape:
        fix = "Leave fewer, or choose another pass."
        raise EngineError("nothing_to_cut", "The network is so narrow that this would cut nothing.", fix)
    narrow = build_network(shape)
    narrow.load_state_dict(tensors)
    return narrow.eval()


def masks(network: RowNetwork, sparsity: float) -> Tensors:
    """{matrix: 1 where a weight stays}: in each matrix the smallest go."""
    found = {}
    tensors = network.state_dict()
    for name, _ in matrices(network):
        sizes = tensors[name].abs().flatten()
        gone = round(sparsity * sizes.numel())
        mask = torch.ones_like(sizes)
        mask[sizes.argsort(stable=True)[:gone]] = 0.0
        found[name] = mask.view(tensors[name].shape)
    return found


@torch.no_grad()
def apply_masks(network: RowNetwork, found: Tensors) -> None:
    """Set to zero what the masks do not keep."""
    parameters = dict(network.named_parameters())
    for name, mask in found.items():
        parameters[name].mul_(mask)


# --- units of perceptrons -------------------------------------------------------------------------------


def _cut_units(shape: NetworkShape, tensors: Tensors, keep: float) -> NetworkShape:
    widths = []
    for layer, width in enumerate(shape.layer_widths if shape.architecture != "linear" else ()):
        inward = tensors[f"hidden.{layer}.weight"].norm(dim=1) * _spread(tensors, f"hidden.{layer}.after")
        last = layer + 1 == shape.layers
        outward = _head_norms(tensors, shape) if last else _next_norms(tensors, layer + 1)
        kept = _best(inward * outward, max(1, round(keep * width)))
        for part in ("weight", "after", "bias"):
            _take(tensors, f"hidden.{layer}.{part}", -1, kept)
        if last:
            _take(tensors, "head.weight", -2, kept.repeat_interleave(shape.members, 0))
        else:
            _take(tensors, f"hidden.{layer + 1}.weight", -2, kept)
            _take(tensors, f"hidden.{layer + 1}.before", -1, kept)
        widths.append(kept.shape[1])
    return replace(shape, widths=tuple(widths)) if tuple(widths) != shape.layer_widths else shape


def _spread(tensors: Tensors, name: str) -> Tensor | float:
    """(G, units): how large the members' factors are; 1 where a single member has none."""
    return tensors[name].square().mean(1).sqrt()[:, 0] if name in tensors else 1.0


def _next_norms(tensors: Tensors, layer: int) -> Tensor:
    norms: Tensor = tensors[f"hidden.{layer}.weight"].norm(dim=2) * _spread(tensors, f"hidden.{layer}.before")
    return norms


def _head_norms(tensors: Tensors, shape: NetworkShape) -> Tensor:
    weight = tensors["head.weight"]
    norms: Tensor = weight.view(shape.groups, shape.members, *weight.shape[1:]).square().sum((1, 3)).sqrt()
    return norms


def _best(scores: Tensor, count: int) -> Tensor:
    """(G, count) positions of the largest scores (G, n), in their order."""
    return scores.topk(count, dim=1).indices.sort(dim=1).values


def _take(tensors: Tensors, name: str, dimension: int, kept: Tensor) -> None:
    """Keep the positions (G, k) along a dimension of a tensor (G, …), if there is one of that name."""
    if name not in tensors:
        return
    tensor = tensors[name]
    form = [1] * tensor.dim()
    form[0], form[dimension] = kept.shape
    target = list(tensor.shape)
    target[dimension] = kept.shape[1]
    tensors[name] = tensor.gather(dimension % tensor.dim(), kept.view(form).expand(target))


# --- channels of convolutions ---------------------------------------------------------------------------


def _residual(body: ResNet) -> Iterator[tuple[str, ResidualBlock]]:
    for position, block in enumerate(body.blocks):
        if isinstance(block, ResidualBlock):
            yield f"{BODY}.blocks.{position}", block


def _fewer(channels: int, keep: float) -> int:
    """Channels are cut in such numbers as are normalised together."""
    if channels < 2 * GROUP_CHANNELS:
        return channels
    return max(GROUP_CHANNELS, round(keep * channels / GROUP_CHANNELS) * GROUP_CHANNELS)


def _cut_inside(
    shape: NetworkShape, tensors: Tensors, blocks: list[tuple[str, ResidualBlock]], keep: float
) -> NetworkShape:
    """The channels between the two convolutions of each block."""
    inner, changed = [], False
    for name, _ in blocks:
        outward = tensors[f"{name}.second.weight"].square().sum((0, 2, 3)).sqrt()
        scores = outward * tensors[f"{name}.second_norm.weight"].abs()
        kept = _channels(scores, _fewer(len(scores), keep))
        changed |= len(kept) < len(scores)
        for part, dimension in (("first.weight", 0), ("second_norm.weight", 0), ("second_norm.bias", 0), ("second.weight", 1)):  # fmt: skip
            tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"].index_select(dimension, kept)
        inner.append(len(kept))
    return replace(shape, image_inner=tuple(inner)) if changed else shape


def _channels(scores: Tensor, count: int) -> Tensor:
    return _best(scores.unsqueeze(0), count)[0]


def _cut_stream(shape: NetworkShape, tensors: Tensors, body: ResNet, keep: float) -> NetworkShape:
    """The channels that run past the blocks of a stage, in all that write to them and read from them."""
    stages = _stages(body)
    widths = []
    for stage, writers in enumerate(stages):
        readers = [name for name in writers if name != writers[0]] if stage else list(writers)
        readers += stages[stage + 1][:1] if stage + 1 < len(stages) else []
        scores = _stream_scores(tensors, readers, shape, stage + 1 == len(stages))
        kept = _channels(scores, _fewer(len(scores), keep))
        _cut_writers(tensors, writers, stage == 0, kept)
        _cut_readers(tensors, readers, kept)
        if stage + 1 == len(stages):
            _cut_columns(tensors, shape, len(scores), kept)
        widths.append((len(kept), len(scores)))
    if all(now == before for now, before in widths):
        return shape
    return replace(shape, image_stages=tuple(now for now, _ in widths))


def _stages(body: ResNet) -> list[list[str]]:
    """The names of the blocks of each stage: a new one begins where the stride is two."""
    found: list[list[str]] = []
    for name, block in _residual(body):
        if not found or block.first.stride[0] > 1:
            found.append([])
        found[-1].append(name)
    return found


def _stream_scores(tensors: Tensors, readers: list[str], shape: NetworkShape, last: bool) -> Tensor:
    total: Any = 0.0
    for name in readers:
        for part in ("first.weight", "shortcut.weight"):
            if f"{name}.{part}" in tensors:
                outward = tensors[f"{name}.{part}"].square().sum((0, 2, 3))
                total = total + outward * tensors[f"{name}.first_norm.weight"].square()
    if last:
        total = total + tensors[f"{BODY}.norm.weight"].square() * _column_norms(tensors, shape)
    return torch.as_tensor(total).sqrt()


def _column_norms(tensors: Tensors, shape: NetworkShape) -> Tensor:
    """Squared norms of what the first layer behind the encoder does with each channel."""
    channels = len(tensors[f"{BODY}.norm.weight"])
    total = torch.zeros(channels)
    for name in ("hidden.0.weight", "linear.weight"):
        if name in tensors:
            rows = tensors[name].square().sum((0, 2))[-channels * shape.inputs.images :]
            total = total + rows.view(shape.inputs.images, channels).sum(0)
    return total


def _cut_writers(tensors: Tensors, blocks: list[str], first: bool, kept: Tensor) -> None:
    names = [f"{name}.{part}" for name in blocks for part in ("second.weight", "shortcut.weight")]
    for name in [*names, *([f"{BODY}.stem.weight"] if first else [])]:
        if name in tensors:
            tensors[name] = tensors[name].index_select(0, kept)


def _cut_readers(tensors: Tensors, blocks: list[str], kept: Tensor) -> None:
    for name in blocks:
        for part, dimension in (("first_norm.weight", 0), ("first_norm.bias", 0), ("first.weight", 1), ("shortcut.weight", 1)):  # fmt: skip
            if f"{name}.{part}" in tensors:
                tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"].index_select(dimension, kept)


def _cut_columns(tensors: Tensors, shape: NetworkShape, channels: int, kept: Tensor) -> None:
    """The last normalisation, and the rows of the first matrices behind the encoder: images are the last of their inputs."""
    for part in ("weight", "bias"):
        tensors[f"{BODY}.norm.{part}"] = tensors[f"{BODY}.norm.{part}"][kept]
    images = shape.inputs.images
    for name, dimension in (("hidden.0.weight", 1), ("hidden.0.before", 3), ("linear.weight", 1)):
        if name in tensors:
            others = tensors[name].shape[dimension] - images * channels
            places = [torch.arange(others), *(others + image * channels + kept for image in range(images))]
            tensors[name] = tensors[name].index_select(dimension, torch.cat(places))


def _cut_wide(shape: NetworkShape, tensors: Tensors, body: Any, keep: float) -> NetworkShape:
    """The units of the feed-forward layers of a ConvNeXt."""
    inner, changed = [], False
    for position, block in enumerate(getattr(body, "blocks", ())):
        if not isinstance(block, ConvNextBlock):
            continue
        name = f"{BODY}.blocks.{position}"
        scores = tensors[f"{name}.widen.weight"].norm(dim=1) * tensors[f"{name}.narrow.weight"].norm(dim=0)
        kept = _channels(scores, max(1, round(keep * len(scores))))
        changed |= len(kept) < len(scores)
        for part, dimension in (("widen.weight", 0), ("widen.bias", 0), ("narrow.weight", 1)):
            tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"].index_select(dimension, kept)
        inner.append(len(kept))
    return replace(shape, image_inner=tuple(inner)) if changed else shape
