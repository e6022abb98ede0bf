"""Random changes of training images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dlplatform.engine.augmentation import ERASED, augment
from dlplatform.engine.dropout import Share

ROWS = 400


def changed(pixels: Tensor, kind: str = "natural", seed: int = 0, share: Share | None = None) -> Tensor:
    torch.manual_seed(seed)
    return augment(pixels, kind, share or Share(0, len(pixels), len(pixels)))


@pytest.mark.parametrize("channels", [1, 3])
def test_natural_images_keep_their_shape_and_range_and_follow_the_seed(channels: int) -> None:
    pixels = torch.randint(0, 256, (8, channels, 12, 10), dtype=torch.uint8)
    found = changed(pixels)
    assert found.shape == pixels.shape and found.dtype == torch.float32
    assert 0 <= float(found.min()) < float(found.max()) <= 255
    assert torch.equal(changed(pixels), found)
    assert not torch.equal(changed(pixels, seed=1), found)
    assert not torch.equal(changed(pixels, "shift"), found)
    assert len({tuple(each.flatten().tolist()) for each in changed(pixels[:1].expand(8, -1, -1, -1))}) == 8
    for extreme in (0, 255):  # brightness and contrast never leave the range
        whole = changed(torch.full_like(pixels, extreme))
        assert float(whole.min()) >= 0 and float(whole.max()) <= 255


def test_a_process_changes_its_share_as_the_whole_batch_would() -> None:
    pixels = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    whole = changed(pixels)
    assert torch.equal(changed(pixels[2:7], share=Share(2, 7, 9)), whole[2:7])


def test_natural_images_are_mirrored_in_half_and_lose_a_patch_in_a_quarter_of_the_cases() -> None:
    bright = torch.zeros(ROWS, 1, 12, 12, dtype=torch.uint8)
    bright[..., :6] = 200
    turned = {kind: float(_is_brighter_right(changed(bright, kind)).float().mean()) for kind in ("natural", "shift")}
    assert turned["natural"] == pytest.approx(0.5, abs=0.1) and turned["shift"] == 0

    dark = torch.full((ROWS, 3, 20, 20), 10, dtype=torch.uint8)
    erased = changed(dark) == 127.5
    assert torch.equal(erased.any(1), erased.all(1)), "all channels of a pixel go together"
    patches = erased[:, 0].flatten(1).float().mean(1)
    assert float((patches > 0).float().mean()) == pytest.approx(ERASED, abs=0.07)
    assert float(patches[patches > 0].min()) > 0.15**2 and float(patches.max()) < 0.45**2
    assert not (changed(dark, "shift") == 127.5).any()


def _is_brighter_right(pixels: Tensor) -> Tensor:
    return pixels[..., 6:].mean((1, 2, 3)) > pixels[..., :6].mean((1, 2, 3))
