"""Images from untrusted bytes: decoded with limits, upright, in plain RGB.

Ingestion, training and prediction all read an image through `upright` or `decode`, so that what a model sees never depends
on the way by which the image came.
"""

from __future__ import annotations

import io
import warnings
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAXIMUM_PIXELS: Final = 64 << 20
MAXIMUM_BYTES: Final = 64 << 20
LIGHT_FORMATS: Final = ("PNG", "JPEG")
# What may say how the camera was held, besides the tags of TIFF.
TURNED: Final = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
BYTES_OF_PIXEL, BYTES_OF_HEAD = 4, 2048  # the most that a light image has


class ImageError(ValueError):
    """Bytes that are no usable image. ``code``: unknown_format, too_large, damaged."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def decode(content: bytes) -> Image.Image:
    """The first frame as an upright RGB image: EXIF orientation applied, transparency laid on white.

    Raises ImageError.
    """
    return in_mode(upright(content), "RGB")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image itself where it is that already; Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)


def upright(content: bytes) -> Image.Image:
    """As `decode`, but grey (mode L) where the file is; in RGB it would be the same to the pixel.

    Raises ImageError.
    """
    with warnings.catch_warnings(action="ignore"):
        image = _opened(content)
        try:
            image.load()
            _turn(image)
            return _plain(image)
        # Pillow's readers raise whatever their parser meets: EOFError, struct.error, IndexError and more.
        except Exception as error:
            raise ImageError("damaged", f"The image cannot be decoded: {str(error)[:200]}") from error


def is_light(content: bytes, pixels: int) -> bool:
    """Whether an image certainly is quick to decode: a PNG or JPEG of at most so many pixels, and of no more bytes than they
    are. Of what is no image: no."""
    if len(content) > BYTES_OF_PIXEL * pixels + BYTES_OF_HEAD:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            image = _opened(content)
    except ImageError:
        return False
    return image.format in LIGHT_FORMATS and image.width * image.height <= pixels


def _opened(content: bytes) -> Image.Image:
    """What its head tells; the pixels are decoded when somebody asks for them. Raises ImageError. Pillow warns of large ones, but our
    own limit decides."""
    if len(content) > MAXIMUM_BYTES:
        raise ImageError("too_large", f"The file has {len(content) >> 20} MB; {MAXIMUM_BYTES >> 20} are possible.")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        sentence = f"The image has more pixels than the {MAXIMUM_PIXELS >> 20} million that are possible."
        raise ImageError("too_large", sentence) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageError("unknown_format", f"The file is no image of a known kind ({', '.join(FORMATS)}).") from error
    if image.width * image.height > MAXIMUM_PIXELS:
        sentence = f"The image has {image.width} × {image.height} pixels; {MAXIMUM_PIXELS >> 20} million are possible."
        raise ImageError("too_large", sentence)
    return image


def _turn(image: Image.Image) -> None:
    """As the camera was held. Most images say nothing of it, and Pillow's looking takes a fifth of what decoding a small one does."""
    if hasattr(image, "tag_v2") or any(name in image.info for name in TURNED):
        ImageOps.exif_transpose(image, in_place=True)


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(ground, layered).convert("RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(image)
    return image if image.mode == "L" else in_mode(image, "RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Sixteen bits and more a pixel: to the full range of 16-bit values, as scanners write them."""
    return image.convert("F").point(lambda value: value / 257).convert("L")
