"""Random changes of training images, drawn from torch's own random state, so that a resumed run draws the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlplatform.engine.dropout import Share

SHIFT = 0.1  # of a side
TURN = 10.0  # degrees
SCALE = 0.1
COLOUR = 0.2  # of brightness and contrast
ERASED = 0.25  # of images, in the natural kind: a patch of them (Zhong et al., 2020, "Random Erasing")


def augment(pixels: Tensor, kind: str, share: Share) -> Tensor:
    """(B, C, H, W) uint8 → float pixels from 0 to 255, every image changed by draws of its own.

    The draws are those of the whole batch, of which ``pixels`` are the given share.
    """
    draws = torch.rand(share.total, 12)[share.first : share.last].to(pixels.device)
    changed = _move(pixels.float(), draws, mirror=kind == "natural")
    return _recolour(changed, draws) if kind == "natural" else changed


def _signed(draws: Tensor) -> Tensor:
    return draws * 2 - 1


def _move(pixels: Tensor, draws: Tensor, mirror: bool) -> Tensor:
    angle = _signed(draws[:, 0]) * (TURN * math.pi / 180)
    scale = 1 + _signed(draws[:, 1]) * SCALE
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = _signed(draws[:, 2:4]) * (2 * SHIFT)
    sign = torch.where(draws[:, 4] < 0.5, -1.0, 1.0) if mirror else torch.ones_like(cosine)
    rows = [torch.stack([cosine * sign, -sine, shift[:, 0]], 1), torch.stack([sine * sign, cosine, shift[:, 1]], 1)]
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _recolour(pixels: Tensor, draws: Tensor) -> Tensor:
    contrast = (1 + _signed(draws[:, 5]) * COLOUR).view(-1, 1, 1, 1)
    brightness = (_signed(draws[:, 6]) * COLOUR * 128).view(-1, 1, 1, 1)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return _erase(((pixels - mean) * contrast + mean + brightness).clamp(0.0, 255.0), draws)


def _erase(pixels: Tensor, draws: Tensor) -> Tensor:
    """A patch of a fifth to two fifths of a side becomes grey in some images."""
    height, width = pixels.shape[-2:]
    side = 0.2 + 0.2 * draws[:, 7:8]
    down = _covered(height, draws[:, 9:10] * (1 - side), side).unsqueeze(2)
    across = _covered(width, draws[:, 10:11] * (1 - side), side).unsqueeze(1)
    inside = (draws[:, 8] < ERASED).view(-1, 1, 1) & down & across
    return pixels.masked_fill(inside.unsqueeze(1), 127.5)


def _covered(length: int, first: Tensor, side: Tensor) -> Tensor:
    """(B, length): True from ``first`` on for ``side``, both shares of the length."""
    places = torch.arange(length, device=first.device) / length
    return (places >= first) & (places < first + side)
