"""Image columns as arrays: every image brought to one size, whole and without distortion, or as a pretrained model has it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from dlplatform.engine.errors import EngineError
from dlplatform.engine.framing import Framing, Pixels, framed
from dlplatform.engine.images import ImageError, in_mode, upright

DIRECTORY: Final = "images"
MEMORY_BYTES: Final = 1 << 30  # beyond it the array lies in a file
LOOKED_AT: Final = 200  # images that decide about size and colour
LARGEST_SIDE: Final = 128  # unless a setting asks for more
_NAME: Final = re.compile(r"[0-9a-f]{64}")

Beat = Callable[[], None]
# What reads the content of one image: given the value of its cell.
Source = Callable[[Any], bytes]


def source_in(directory: Path) -> Source:
    """Reads images by their SHA-256 from ``directory/ab/abcdef…``, as a job directory holds them.

    What it returns raises EngineError ``bad_data`` for a missing file.
    """

    def read(value: Any) -> bytes:
        if isinstance(value, bytes):
            return value
        if not _NAME.fullmatch(str(value)):
            raise EngineError("bad_data", f"{str(value)[:80]!r} does not name an image.")
        try:
            return (directory / str(value)[:2] / str(value)).read_bytes()
        except OSError as error:
            raise EngineError("bad_data", f"The image {value[:12]}… is not in the job directory.") from error

    return read


def suggested_shape(values: Sequence[Any], source: Source) -> tuple[int, int]:
    """(channels, side) from a spread sample: grey stays grey; the median of the larger sides, at most 128."""
    present = [value for value in values if value is not None]
    sample = present[:: max(1, len(present) // LOOKED_AT)][:LOOKED_AT]
    if not sample:
        return 1, 8
    images = [_decoded(value, source) for value in sample]
    side = int(np.median([max(image.size) for image in images]))
    grey = all(_is_grey(image) for image in images)
    return (1 if grey else 3), min(LARGEST_SIDE, max(8, -(-side // 4) * 4))


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "L":
        return True
    small = np.asarray(image.resize((min(image.width, 64), min(image.height, 64))), np.int16)
    return bool((np.ptp(small, axis=2) <= 2).all())


def _decoded(value: Any, source: Source) -> Image.Image:
    try:
        return upright(source(value))
    except ImageError as error:
        named = f"The image {value[:12]}…" if isinstance(value, str) else "The image"
        raise EngineError("bad_data", f"{named} cannot be used: {error}") from error


def image_array(image: Image.Image, channels: int, size: int, framing: Framing | None = None) -> Pixels:
    """(channels, size, size) pixels; without ``framing`` the image is fitted inside and the rest is black."""
    if framing is not None:
        return framed(image, channels, size, framing)
    scale = size / max(image.size)
    fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    plain = in_mode(image, "L" if channels == 1 else "RGB")
    if plain.size != fitted:
        plain = plain.resize(fitted, Image.Resampling.BILINEAR, reducing_gap=2.0)
    pixels = np.frombuffer(plain.tobytes(), np.uint8).reshape(fitted[1], fitted[0], channels).transpose(2, 0, 1)
    if fitted == (size, size):
        return pixels
    array = np.zeros((channels, size, size), np.uint8)
    top, left = (size - fitted[1]) // 2, (size - fitted[0]) // 2
    array[:, top : top + fitted[1], left : left + fitted[0]] = pixels
    return array


def encode_images(
    values: Sequence[Any], channels: int, size: int, source: Source, beat: Beat, framing: Framing | None = None
) -> Pixels:
    """(n,) cells → (n, channels, size, size); a missing image is black. Raises EngineError ``bad_data``."""
    array = room((len(values), channels, size, size))
    for row, value in enumerate(values):
        if value is not None:
            array[row] = image_array(_decoded(value, source), channels, size, framing)
        if row % 16 == 0:
            beat()
    return array


def room(shape: tuple[int, ...]) -> Pixels:
    """Zeros in memory; large ones in an unnamed file that the system may write out."""
    if int(np.prod(shape)) <= MEMORY_BYTES:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile(dir=Path.cwd()) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
