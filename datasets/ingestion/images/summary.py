"""The profile of a column of images, gathered image by image; each content counts once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datasets.ingestion.images.examination import Examined

PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBA", "LA", "PA"})  # what 8-bit RGB holds without loss
CONTRAST = 16  # times as many pixels in a large image as in a small one, from which on it is worth a word


@dataclass(slots=True)
class ImageSummary:
    """Sizes, formats and colours of images."""

    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    means: Any = field(default_factory=lambda: np.zeros(3))
    squares: Any = field(default_factory=lambda: np.zeros(3))

    def add(self, examined: Examined) -> None:
        self.widths.append(examined.width)
        self.heights.append(examined.height)
        self.formats[examined.record.format] += 1
        self.modes[examined.mode] += 1
        self.bytes += examined.record.size
        self.means += examined.means
        self.squares += examined.squares

    def converted(self) -> dict[str, int]:
        """Modes that become 8-bit RGB with some loss, and how many images have them."""
        return {mode: count for mode, count in self.modes.items() if mode not in PLAIN_MODES}

    def profile(self) -> dict[str, Any]:
        """JSON-safe; widths and heights in pixels, channel values from 0 to 1, every image weighing the same."""
        count = len(self.widths)
        means = self.means / count
        spread = np.sqrt(np.maximum(self.squares / count - means**2, 0))
        return {
            "width": _range(self.widths),
            "height": _range(self.heights),
            "bytes": self.bytes,
            "formats": dict(self.formats.most_common()),
            "modes": dict(self.modes.most_common()),
            "channels": {"mean": _rounded(means), "std": _rounded(spread)},
        }

    def unequal_sizes(self) -> str | None:
        """What to say about sizes that differ widely, in the middle nine tenths of the images."""
        pixels = np.array(self.widths, dtype=np.int64) * np.array(self.heights, dtype=np.int64)
        low, high = np.quantile(pixels, (0.05, 0.95))
        if high < CONTRAST * low:
            return None
        smallest, largest = int(pixels.argmin()), int(pixels.argmax())
        return (
            f"Sizes differ widely, from {self._size(smallest)} to {self._size(largest)} pixels. All are brought to one "
            "size for training: details of large images are lost and small ones become coarse."
        )

    def _size(self, position: int) -> str:
        return f"{self.widths[position]:,} × {self.heights[position]:,}"


def _range(values: list[int]) -> dict[str, Any]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
