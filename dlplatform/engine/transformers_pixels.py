"""How a pretrained model wants its images: what ``preprocessor_config.json`` of a Hugging Face directory says. Torch-free.

How an image is brought to that size is the processor's own way (`dlplatform.engine.framing`), or ours as it was once for
all (`dlplatform.engine.image_arrays`): letterboxed, whole and the rest black.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from dlplatform.engine.errors import PackageError
from dlplatform.engine.framing import Framing
from dlplatform.engine.transformers_config import CONFIG, PREPROCESSOR, read_json
from dlplatform.engine.transformers_framing import as_written, framing_by, kind_of

USUAL_SIDE: Final = 224
SMALLEST_SIDE, LARGEST_SIDE = 8, 512
# Of ImageNet, which most models of photographs were trained on: where a directory does not say otherwise.
USUAL_MEAN: Final = (0.485, 0.456, 0.406)
USUAL_DEVIATION: Final = (0.229, 0.224, 0.225)
BYTE: Final = 1 / 255
LEAST_DEVIATION: Final = 1e-4
MOST_PLACES: Final = 16_384  # that attention compares with each other


@dataclass(frozen=True)
class ImageProcessor:
    """Images as a model was trained on them: ``channels`` (1 or 3) of ``side`` pixels, normalised by ``mean`` and
    ``deviation`` of each channel in steps of 0 to 255. ``framing``: how they are brought to that size; None letterboxes
    them."""

    channels: int
    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    framing: Framing | None = None

    def framing_for(self, side: int) -> Framing | None:
        """The same for a square of another size."""
        return self.framing.scaled(side / self.side) if self.framing else None


def read_image_processor(directory: Path, config: Mapping[str, Any], letterbox: bool = False) -> ImageProcessor:
    """Of a Hugging Face directory with a checked config. ``letterbox``: as runs had it before the processor's own way of
    framing was known. Raises PackageError."""
    raw = read_json(directory / PREPROCESSOR) if (directory / PREPROCESSOR).is_file() else {}
    if not isinstance(raw, dict):
        raise PackageError(f"{PREPROCESSOR} is not a JSON object.")
    if letterbox or not raw:
        return _normalised(raw, config, _side(raw, config), None)
    kind = kind_of(raw, config)
    written = as_written(raw, kind)
    framing, side = _framing(written, config, kind)
    return _twice_divided(_normalised(written, config, side, framing), written, kind)


def _normalised(
    raw: Mapping[str, Any], config: Mapping[str, Any], side: int, framing: Framing | None
) -> ImageProcessor:
    channels = config.get("num_channels", 3)
    if type(channels) is not int or channels not in (1, 3):
        raise PackageError(f"The model looks at images of {str(channels)[:40]} channels; 1 and 3 are possible.")
    scale, mean, deviation = _scale(raw), (0.0,) * channels, (1.0,) * channels
    if raw.get("do_normalize", True):
        mean = _of_channels(raw, "image_mean", USUAL_MEAN, channels)
        deviation = _deviation(raw, channels)
    _check_places(config, side)
    means, deviations = (tuple(one / scale for one in each) for each in (mean, deviation))
    return ImageProcessor(channels, side, means, deviations, framing)


def _scale(raw: Mapping[str, Any]) -> float:
    """By what the steps of 0 to 255 are multiplied first."""
    scale = raw.get("rescale_factor", BYTE) if raw.get("do_rescale", True) else 1.0
    if not _is_positive(scale):
        raise PackageError(
            f"{PREPROCESSOR} gives {str(scale)[:40]} as rescale_factor; it must be a number above 0, such as 1/255."
        )
    return float(scale)


def _deviation(raw: Mapping[str, Any], channels: int) -> tuple[float, ...]:
    deviation = _of_channels(raw, "image_std", USUAL_DEVIATION, channels)
    if min(deviation) < LEAST_DEVIATION:
        raise PackageError(f"{PREPROCESSOR} gives an image_std below {LEAST_DEVIATION}, which no image has.")
    return deviation


def _framing(written: Mapping[str, Any], config: Mapping[str, Any], kind: str) -> tuple[Framing | None, int]:
    """How images are framed, and the side of the square.

    What comes of a processor is what the model looks at, but for those that are made for one size alone; and what is no
    square, because nothing is cut off, is cut to one. Raises PackageError.
    """
    found = framing_by(written, kind)
    if found is None:
        return None, _side(written, config)
    framing, side = found
    if not side:
        return framing, _side(written, config)
    _checked_side(PREPROCESSOR, side)
    if config.get("image_size") is None or _looks_at_any_size(config):
        return framing, side
    wanted = _checked_side(CONFIG, config["image_size"])
    return framing.scaled(wanted / side), wanted


def _looks_at_any_size(config: Mapping[str, Any]) -> bool:
    """Networks in stages, and those that fit their positions to the image by themselves."""
    return "depths" in config or str(config.get("model_type")).startswith("dinov")


def _twice_divided(processor: ImageProcessor, written: Mapping[str, Any], kind: str) -> ImageProcessor:
    """An EfficientNet's processor may take 1 away where it rescales, and divides by the deviation once more for its
    classifiers, whether it normalises or not."""
    if kind != "EfficientNet":
        return processor
    scale, means, deviations = _scale(written), processor.mean, processor.deviation
    if written.get("rescale_offset") and written.get("do_rescale", True):
        means = tuple(one + 1 / scale for one in means)
    if written.get("include_top"):
        further = _deviation(written, processor.channels)
        deviations = tuple(one * (own / scale) * scale for one, own in zip(deviations, further, strict=True))
    return replace(processor, mean=means, deviation=deviations)


def _check_places(config: Mapping[str, Any], side: int) -> None:
    """Patches of a few pixels make a small network compare everything with everything."""
    patch = config.get("patch_size")
    if isinstance(patch, int) and not isinstance(patch, bool) and patch > 0 and (side // patch) ** 2 > MOST_PLACES:
        raise PackageError(
            f"The model looks at {(side // patch) ** 2:,} patches of an image; {MOST_PLACES:,} are possible."
        )


def _of_channels(raw: Mapping[str, Any], name: str, usual: Sequence[float], channels: int) -> tuple[float, ...]:
    given = raw.get(name, tuple(usual))
    if given is None or isinstance(given, tuple):
        usual = given or usual
        return tuple(usual) if channels == len(usual) else (math.fsum(usual) / len(usual),)
    values = given if isinstance(given, list) else [given] * channels
    if len(values) != channels or not all(_is_number(one) for one in values):
        raise PackageError(f"{PREPROCESSOR} gives {str(given)[:60]} as {name}; {channels} numbers are needed.")
    return tuple(map(float, values))


def _side(raw: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """What the architecture is made for, else what is cut out of an image, else what an image is brought to."""
    for name, given in (
        (CONFIG, config.get("image_size")),
        *((PREPROCESSOR, raw.get(one)) for one in ("crop_size", "size")),
    ):
        if given is not None:
            return _checked_side(name, given)
    return USUAL_SIDE


def _checked_side(file: str, given: Any) -> int:
    sides = given
    if isinstance(given, dict):
        sides = [given[name] for name in ("height", "width", "shortest_edge") if name in given]
        sides = sides or [given[name] for name in ("longest_edge",) if name in given]
    sides = sides if isinstance(sides, list) else [sides]
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in sides)
    if not sides or not whole or len(set(sides)) != 1:
        raise PackageError(f"{file} gives {str(given)[:60]} as the size of images; the platform's are square.")
    if not SMALLEST_SIDE <= sides[0] <= LARGEST_SIDE:
        raise PackageError(
            f"{file} asks for images of {sides[0]} pixels; {SMALLEST_SIDE} to {LARGEST_SIDE} are possible."
        )
    return int(sides[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e6


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 1e-9
