"""Numbers close together: how many bits each has, compressed, and then all bits below the highest one.

Planes of bytes would tell of a number of 9 bits 16: only the lengths are uneven enough to compress (the idea of Elias's
gamma code, doi 10.1109/TIT.1975.1055349).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedEncoding
from .planes import LENGTH, Plane, packed_plane, plane
from .zstd import Bytes

UNSIGNED: dict[int, Any] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


def counted(numbers: NDArray[Any]) -> bytes:
    """The bytes of unsigned integers that ``uncounted`` gives back."""
    width = numbers.dtype.itemsize
    bits = np.unpackbits(numbers.astype(f">u{width}").view(np.uint8).reshape(-1, width), axis=1)
    lengths = np.where(numbers == 0, 0, 8 * width - bits.argmax(axis=1)).astype(np.uint8)
    packed = packed_plane(lengths)
    return b"".join([LENGTH.pack(len(packed)), packed, np.packbits(bits[_below_highest(lengths, width)]).data])


def uncounted(payload: Bytes, count: int, width: int) -> NDArray[Any]:
    """``count`` unsigned integers of ``width`` bytes. Raises DamagedEncoding."""
    view = memoryview(payload)
    if len(view) < LENGTH.size:
        raise DamagedEncoding("the lengths are missing")
    (length,) = LENGTH.unpack_from(view)
    lengths = plane(view[LENGTH.size : LENGTH.size + length], count)
    if count and int(lengths.max()) > 8 * width:
        raise DamagedEncoding(f"a number of {lengths.max()} bits in {width} bytes")
    below = _below_highest(lengths, width)
    total, stored = int(np.count_nonzero(below)), view[LENGTH.size + length :]
    if len(stored) != (total + 7) // 8:
        raise DamagedEncoding(f"{len(stored)} bytes for {total} bits")
    bits = np.zeros((count, 8 * width), np.uint8)
    bits[below] = np.unpackbits(np.frombuffer(stored, np.uint8), count=total)
    (there,) = np.nonzero(lengths)
    bits[there, 8 * width - lengths[there].astype(np.intp)] = 1
    return np.packbits(bits, axis=1).view(f">u{width}").ravel().astype(UNSIGNED[width])


def _below_highest(lengths: Plane, width: int) -> NDArray[np.bool_]:
    """Of every bit of every number, the most significant first, whether it lies below the highest one that is set."""
    significance = np.arange(8 * width - 1, -1, -1, dtype=np.uint8)
    return significance + 1 < lengths[:, None]
