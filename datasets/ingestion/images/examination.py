"""One image looked at: decoded as training and prediction decode it, measured, and made small for pages."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datasets.ingestion.images.index import ImageRecord
from dlplatform.engine.images import FORMATS, ImageError, decode

THUMBNAIL = 96  # pixels of its longer side
QUALITY = 80
SAMPLE = 128  # pixels a side of what colours are measured on
LEVELS = np.arange(256, dtype=np.float64) / 255


@dataclass(frozen=True, slots=True)
class Examined:
    """A usable image. `mode` is that of the file; sizes are those of the upright picture.

    `means` and `squares` are the means of a channel's values and of their squares, from 0 to 1, red first.
    """

    record: ImageRecord
    width: int
    height: int
    mode: str
    frames: int
    means: tuple[float, ...]
    squares: tuple[float, ...]
    thumbnail: bytes


def examine(content: bytes) -> Examined:
    """Raises ImageError: unknown_format, too_large, damaged, too_small."""
    picture = decode(content)
    if picture.size == (1, 1):
        raise ImageError("too_small", "The image is a single pixel: nothing can be learned from it.")
    kind, mode, frames = _header(content)
    thumbnail, thumbnail_kind = _thumbnail(picture)
    means, squares = _colours(picture)
    record = ImageRecord(_sha256(content), _sha256(thumbnail), len(content), len(thumbnail), kind, thumbnail_kind)
    return Examined(record, picture.width, picture.height, mode, frames, means, squares, thumbnail)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _header(content: bytes) -> tuple[str, str, int]:
    """(format, mode, frames) of the file as it was sent; more frames than one count as two."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        kind, mode = str(image.format), image.mode
        try:
            frames = 2 if getattr(image, "is_animated", False) else 1
        except Exception:  # the first frame was read; what lies behind it may be anything
            frames = 1
    return ("JPEG" if kind == "MPO" else kind), mode, frames


def _thumbnail(picture: Image.Image) -> tuple[bytes, str]:
    """Small pictures stay as they are, to the pixel; others are scaled down."""
    small = max(picture.size) <= THUMBNAIL
    shown = picture.copy()
    shown.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = io.BytesIO()
    if small:
        shown.save(out, "PNG")
    else:
        shown.save(out, "JPEG", quality=QUALITY)
    return out.getvalue(), "PNG" if small else "JPEG"


def _colours(picture: Image.Image) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measured on a grid of pixels, which is as exact as all of them for means over many images."""
    size = min(picture.width, SAMPLE), min(picture.height, SAMPLE)
    sampled = picture if size == picture.size else picture.resize(size, Image.Resampling.NEAREST)
    shares = np.array(sampled.histogram(), dtype=np.float64).reshape(3, 256) / (size[0] * size[1])
    return tuple(map(float, shares @ LEVELS)), tuple(map(float, shares @ LEVELS**2))
