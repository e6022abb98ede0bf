"""Byte grouping: the n-th bytes of all items gathered into a plane, every plane compressed on its own.

Of trained weights only the plane with sign and exponent compresses (LMC, arXiv 2505.09810, section 3).
"""

from struct import Struct

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedEncoding
from .windows import windows
from .zstd import Bytes, better_way, compress, decompress

PREFIX = Struct("<BI")  # item width, number of items
LENGTH = Struct("<I")

FLAGS = 0xF0  # beside the width, for whoever groups

Plane = NDArray[np.uint8]


def group(data: Bytes, width: int, flags: int = 0) -> Bytes:
    """Prefix, then every plane with its length, then the bytes that fill no item.

    Each plane is gathered where it is to lie, and gives way to its compressed form if that is shorter.
    """
    items = len(data) // width
    grid = np.frombuffer(data, np.uint8, items * width).reshape(items, width)
    out = np.empty(PREFIX.size + width * (LENGTH.size + items) + len(data) - items * width, np.uint8)
    PREFIX.pack_into(out.data, 0, width | flags, items)
    position = PREFIX.size
    for column in range(width):
        start = position + LENGTH.size
        flat = out[start : start + items]
        flat[:] = grid[:, column]
        packed = packed_plane(flat)
        if len(packed) < items:
            flat[: len(packed)] = np.frombuffer(packed, np.uint8)
        LENGTH.pack_into(out.data, position, len(packed))
        position = start + len(packed)
    end = position + len(data) - items * width
    out[position:end] = np.frombuffer(data, np.uint8)[items * width :]
    return out[:end].data


def share_of_noise(payload: Bytes) -> float:
    """The share of the planes that `group` kept as they are, from 0 to 1."""
    tagged, items = PREFIX.unpack_from(payload)
    width, position, kept = tagged & ~FLAGS, PREFIX.size, 0
    for _ in range(width):
        (length,) = LENGTH.unpack_from(payload, position)
        kept += length == items
        position += LENGTH.size + length
    return kept / width


def packed_plane(flat: Plane) -> Bytes:
    """Compressed, or as it is: then its length is that of the plane. Of a large one that shows nothing to gain in four
    windows, no more is tried: mantissas of weights are as good as random."""
    sample, way = windows(flat.data), better_way(flat.data)
    if len(sample) < len(flat) and len(compress(sample, way)) >= len(sample):
        return flat.data
    packed = compress(flat.data, way) if len(sample) < len(flat) else compress(flat.data)
    return packed if len(packed) < len(flat) else flat.data


def ungroup(payload: Bytes, size: int) -> Plane:
    """The ``size`` bytes as an array."""
    width, items, position = prefix(payload, size)
    out = np.empty(size, np.uint8)
    grid = out[: width * items].reshape(items, width)
    view = memoryview(payload)
    for column in range(width):
        if position + LENGTH.size > len(view):
            raise DamagedEncoding("a plane is missing")
        (length,) = LENGTH.unpack_from(view, position)
        position += LENGTH.size
        grid[:, column] = plane(view[position : position + length], items)
        position += length
    if len(view) - position != size - width * items:
        raise DamagedEncoding("the end does not fit")
    out[width * items :] = np.frombuffer(view[position:], np.uint8)
    return out


def prefix(payload: Bytes, size: int) -> tuple[int, int, int]:
    """Width, number of items and where the first plane begins."""
    if len(payload) < PREFIX.size:
        raise DamagedEncoding("the prefix is missing")
    tagged, items = PREFIX.unpack_from(payload)
    width = tagged & ~FLAGS
    if width == 0 or items != size // width:
        raise DamagedEncoding(f"{items} items of {width} bytes are not {size} bytes")
    return width, items, PREFIX.size


def plane(packed: memoryview, items: int) -> Plane:
    data = packed if len(packed) == items else decompress(packed, items)
    if len(data) != items:
        raise DamagedEncoding(f"a plane of {len(data)} bytes for {items} items")
    return np.frombuffer(data, np.uint8)
