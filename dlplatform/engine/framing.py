"""How a pretrained model's own processor brings an image to a square: resized, then cut out at its centre.

Every step is that of the ``transformers`` library's processors on Pillow, to the pixel: the same sizes, the same filter on
8-bit channels, the same place of the cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

import numpy as np
from PIL import Image

from dlplatform.engine.images import in_mode

LARGEST: Final = 4096  # that a side is brought to before it is cut
# Of an image resized as a whole, unless the image itself has more: a small file must not cost more than a large one.
WHOLE_PIXELS: Final = 2 << 20
BILINEAR: Final = int(Image.Resampling.BILINEAR)
FILTERS: Final = tuple(map(int, Image.Resampling))

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Size = tuple[int, int]


@dataclass(frozen=True)
class Framing:
    """Images are brought to ``width`` × ``height``, or their shorter side to ``shortest`` and the longer one to ``longest``
    at most; 0 stands for none, and without any of them an image keeps its size. ``resample`` is a filter of Pillow.
    ``reversed``: blue comes first."""

    width: int = 0
    height: int = 0
    shortest: int = 0
    longest: int = 0
    resample: int = BILINEAR
    reversed: bool = False

    def size_of(self, image: Size) -> Size:
        """(width, height) to which an image of that size is brought before it is cut."""
        if self.width and self.height:
            return self.width, self.height
        if not self.shortest:
            return image
        short, long = min(image), max(image)
        wanted: float = self.shortest
        if self.longest and long / short * self.shortest > self.longest:
            wanted = self.longest * short / long
        sides = (max(1, round(wanted)), max(1, int(wanted * long / short)))
        return sides if image[0] <= image[1] else (sides[1], sides[0])

    def scaled(self, share: float) -> Framing:
        """For a square whose side is so many times as long."""
        if share == 1:
            return self
        sides = {name: getattr(self, name) for name in ("width", "height", "shortest", "longest")}
        return replace(
            self, **{name: min(LARGEST, max(1, round(side * share))) for name, side in sides.items() if side}
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `framing_of` reads it back."""
        return {name: value for name, value in asdict(self).items() if value or name == "resample"}


def framing_of(raw: Any) -> Framing | None:
    """What `Framing.to_dict` wrote; None for None. Raises ValueError."""
    if raw is None:
        return None
    known = {each.name for each in fields(Framing)}
    if not isinstance(raw, Mapping) or not raw.keys() <= known or type(raw.get("reversed", False)) is not bool:
        raise ValueError("A framing has other parts.")
    sides = [value for name, value in raw.items() if name not in ("resample", "reversed")]
    if not all(type(side) is int and 0 <= side <= LARGEST for side in sides):
        raise ValueError(f"The sides of a framing are 0 to {LARGEST}.")
    if type(filter_ := raw.get("resample", BILINEAR)) is not int or filter_ not in FILTERS:
        raise ValueError("A framing has another filter.")
    return Framing(**raw)


def framed(image: Image.Image, channels: int, side: int, framing: Framing) -> Pixels:
    """(channels, side, side) pixels of an upright image; what it is too small for is black."""
    plain = in_mode(image, "L" if channels == 1 else "RGB")
    size = framing.size_of(plain.size)
    if size[0] * size[1] <= max(WHOLE_PIXELS, plain.width * plain.height):
        whole = plain if size == plain.size else plain.resize(size, framing.resample)
        cut = whole.crop(_places(size, side))
    else:
        cut = _cut_first(plain, size, side, framing.resample)
    pixels = np.frombuffer(cut.tobytes(), np.uint8).reshape(cut.height, cut.width, channels).transpose(2, 0, 1)
    return _laid(pixels[::-1] if framing.reversed else pixels, side)


def _places(size: Size, side: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is cut out, within the image."""
    starts = [max(0, (each - side) // 2) for each in size]
    ends = [min(each, start + side) for each, start in zip(size, starts, strict=True)]
    return starts[0], starts[1], ends[0], ends[1]


def _cut_first(plain: Image.Image, size: Size, side: int, resample: int) -> Image.Image:
    """The same without what is cut off, where the whole of it would be large: to a step or two of 255, but for black beside
    white under a filter that overshoots, because Pillow may take the other axis first."""
    left, top, right, bottom = _places(size, side)
    # Multiplied first, so that an edge of the image is that and not a rounding beyond it, which Pillow refuses.
    (width, height), (wide, high) = plain.size, size
    box = (left * width / wide, top * height / high, right * width / wide, bottom * height / high)
    return plain.resize((right - left, bottom - top), resample, box=box)


def _laid(pixels: Pixels, side: int) -> Pixels:
    """In the middle of a black square, where it does not fill it."""
    height, width = pixels.shape[1:]
    if (height, width) == (side, side):
        return pixels
    array = np.zeros((len(pixels), side, side), np.uint8)
    top, left = -(-(side - height) // 2), -(-(side - width) // 2)
    array[:, top : top + height, left : left + width] = pixels
    return array
