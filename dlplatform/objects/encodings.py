"""How the bytes of one object are kept on disk: as they are, or in fewer bytes that give them back to the bit.

Pure functions on bytes: values are never interpreted as numbers, so NaN payloads and −0.0 survive.

- ``raw``: as they are.
- ``zstd``: one zstd frame.
- ``grouped``: the n-th bytes of all items gathered into a plane, every plane compressed on its own. Of trained weights
  only the plane with sign and exponent compresses (byte grouping: LMC, arXiv 2505.09810, section 3).
- ``delta``: XOR with an ancestor's bytes, then ``grouped``; what did not change becomes zeros (BitX in ZipLLM,
  arXiv 2505.06252, section 4). Or the difference of the items taken as integers, small ones first (0, −1, 1, −2, …):
  of weights it takes 3 to 14 % less than XOR, which a carry spreads over many bits. Of few changed items only these
  are kept, with their places. Of items that became zero, as in pruning, only which they are.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

RAW, ZSTD, GROUPED, DELTA = "raw", "zstd", "grouped", "delta"
WORTH_DECODING = 0.98  # an encoding that saves less is not worth the work of every later read
WORTH_A_BASE = 0.9  # the same for a delta, which makes the object depend on another one
WORTH_CUTTING = 0.9  # the same for a large file, which is then kept in slices
WINDOWS, WINDOW = 4, 16 * 1024
TRIED_WHOLE = 128 * 1024
PROBE = 8 * 1024

_PREFIX = Struct("<BI")  # item width, number of items
_LENGTH = Struct("<I")

# Beside the width in the first byte of a delta; what was multiplied by zero keeps its sign.
SPARSE, SUBTRACTED, ZEROED, SIGN_KEPT = 0x80, 0x40, 0x20, 0x10
FEW = 8  # at most one item in so many has changed
MANY = 16  # at least one item in so many became zero
UNSIGNED: dict[int, Any] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}

Bytes = bytes | bytearray | memoryview
Plane = NDArray[np.uint8]


class DamagedEncoding(ValueError):
    """The stored bytes cannot have been written by ``encode``."""


@dataclass(frozen=True)
class Encoded:
    """What goes to disk: the payload and the codec that reads it."""

    codec: str
    payload: Bytes


def encode(data: Bytes, *, width: int = 1, base: Bytes | None = None) -> Encoded:
    """The smallest encoding of ``data``; ``delta`` only when it takes at most 0.9 of the best that needs no base.

    ``width`` is the size of an item in bytes (4 for float32). ``base`` has the length of ``data``. What is larger
    than 128 KiB is judged by four windows of 16 KiB before one encoding is made of the whole.
    """
    if base is not None and len(base) != len(data):
        raise ValueError(f"the base has {len(base)} bytes, the object {len(data)}")
    sample = _windows(data, width)
    tried = _tried(sample, width)
    codec = min(tried, key=lambda name: len(tried[name]))
    if base is not None:
        delta = _delta(data, base, width, most=WORTH_A_BASE * len(tried[codec]) * len(data) / max(len(sample), 1))
        if delta is not None:
            return Encoded(DELTA, delta)
    payload = tried[codec] if len(sample) == len(data) else _tried(data, width, only=codec)[codec]
    return Encoded(codec, payload) if len(payload) <= WORTH_DECODING * len(data) else Encoded(RAW, data)


def shrinks(sample: Bytes) -> bool:
    """Whether zstd takes a tenth off, as of text; of what is compressed already it takes nothing."""
    return len(_compress(sample)) <= WORTH_CUTTING * len(sample)


def decode(codec: str, payload: Bytes, *, size: int, base: Bytes | None = None) -> Bytes:
    """The ``size`` bytes that were encoded. Raises DamagedEncoding; what it does not notice, the hash will."""
    if codec == RAW:
        data = payload
    elif codec == ZSTD:
        data = _decompress(payload, size)
    elif codec == GROUPED:
        data = _ungroup(payload, size).data
    elif codec == DELTA and base is not None:
        data = _undo_delta(payload, base, size)
    else:
        raise DamagedEncoding(f"codec {codec!r} {'without its base' if codec == DELTA else 'is unknown'}")
    if len(data) != size:
        raise DamagedEncoding(f"{len(data)} bytes instead of {size}")
    return data


# --- choosing -----------------------------------------------------------------------------------------


def _windows(data: Bytes, width: int) -> Bytes:
    """All of a small object; of a large one a few windows, evenly spread and aligned to items."""
    if len(data) <= TRIED_WHOLE:
        return data
    view = memoryview(data)
    step = (len(data) - WINDOW) // (WINDOWS - 1)
    starts = (index * step // width * width for index in range(WINDOWS))
    return b"".join(view[start : start + WINDOW] for start in starts)


def _tried(data: Bytes, width: int, *, only: str = "") -> dict[str, Bytes]:
    """The payloads by codec, of those that need no base."""
    ways: dict[str, Callable[[], Bytes]] = {RAW: lambda: data, ZSTD: lambda: _compress(data)}
    if width > 1:
        ways[GROUPED] = lambda: _group(data, width)
    return {codec: way() for codec, way in ways.items() if only in ("", codec)}


# --- zstd ---------------------------------------------------------------------------------------------


_compressors = threading.local()


def _entropy_only() -> zstandard.ZstdCompressionParameters:
    """Hardly any search for matches: the bytes of weights do not repeat, they are only unevenly spread.

    On the exponents of normal weights it is five times as fast as level 3 and a fifth smaller.
    """
    return zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST, window_log=18, hash_log=6, chain_log=6, search_log=1, min_match=7,
        write_content_size=False, write_dict_id=False,
    )  # fmt: skip


def _matches() -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(3, write_content_size=False, write_dict_id=False)


def _compress(data: Bytes) -> bytes:
    """One frame. Which of the two ways is the smaller one is tried on a window of it."""
    size = len(data)
    if size <= 2 * PROBE:
        return min(_frame(data, _entropy_only), _frame(data, _matches), key=len)
    middle = memoryview(data)[size // 2 - PROBE // 2 : size // 2 + PROBE // 2]
    return _frame(data, min((_entropy_only, _matches), key=lambda way: len(_frame(middle, way))))


def _frame(data: Bytes, parameters: Callable[[], zstandard.ZstdCompressionParameters]) -> bytes:
    """Compressors keep their tables, and serve one thread at a time."""
    name = parameters.__name__
    if not hasattr(_compressors, name):
        setattr(_compressors, name, zstandard.ZstdCompressor(compression_params=parameters()))
    return bytes(getattr(_compressors, name).compress(data))


def _decompress(payload: Bytes, size: int) -> bytes:
    """At most ``size`` bytes. A frame that announces its size is not ours: it could ask for any amount of memory."""
    if size == 0:
        return b""
    try:
        if zstandard.frame_content_size(payload) != -1:
            raise DamagedEncoding("the frame announces a size")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=size)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedEncoding(str(error)) from None


# --- byte grouping ------------------------------------------------------------------------------------


def _group(data: Bytes, width: int, flags: int = 0) -> bytes:
    """Prefix, then every plane with its length, then the bytes that fill no item."""
    items = len(data) // width
    body, tail = memoryview(data)[: items * width], memoryview(data)[items * width :]
    planes = np.ascontiguousarray(np.frombuffer(body, np.uint8).reshape(items, width).T)
    parts: list[Bytes] = [_PREFIX.pack(width | flags, items)]
    for plane in planes:
        packed = _packed_plane(plane)
        parts += [_LENGTH.pack(len(packed)), packed]
    return b"".join([*parts, tail])


def _packed_plane(plane: Plane) -> Bytes:
    """Compressed, or as it is: then its length is that of the plane."""
    packed = _compress(plane.data)
    return packed if len(packed) < len(plane) else plane.data


def _ungroup(payload: Bytes, size: int) -> Plane:
    """The ``size`` bytes as an array."""
    width, items, position = _prefix(payload, size)
    out = np.empty(size, np.uint8)
    grid = out[: width * items].reshape(items, width)
    view = memoryview(payload)
    for column in range(width):
        if position + _LENGTH.size > len(view):
            raise DamagedEncoding("a plane is missing")
        (length,) = _LENGTH.unpack_from(view, position)
        position += _LENGTH.size
        grid[:, column] = _plane(view[position : position + length], items)
        position += length
    if len(view) - position != size - width * items:
        raise DamagedEncoding("the end does not fit")
    out[width * items :] = np.frombuffer(view[position:], np.uint8)
    return out


def _prefix(payload: Bytes, size: int) -> tuple[int, int, int]:
    """Width, number of items and where the first plane begins."""
    if len(payload) < _PREFIX.size:
        raise DamagedEncoding("the prefix is missing")
    tagged, items = _PREFIX.unpack_from(payload)
    width = tagged & ~SUBTRACTED
    if width == 0 or items != size // width:
        raise DamagedEncoding(f"{items} items of {width} bytes are not {size} bytes")
    return width, items, _PREFIX.size


def _plane(packed: memoryview, items: int) -> Plane:
    data = packed if len(packed) == items else _decompress(packed, items)
    if len(data) != items:
        raise DamagedEncoding(f"a plane of {len(data)} bytes for {items} items")
    return np.frombuffer(data, np.uint8)


# --- delta --------------------------------------------------------------------------------------------


def _delta(data: Bytes, base: Bytes, width: int, most: float) -> Bytes | None:
    """A delta unless it takes more than ``most`` bytes."""
    if width in UNSIGNED and len(data) % width == 0:
        sample, base_sample = _windows(data, width), _windows(base, width)
        ways = {way: _became_zero(way, sample, base_sample, width) for way in (0, SIGN_KEPT)}
        way = max(ways, key=lambda name: np.count_nonzero(ways[name]))
        if np.count_nonzero(ways[way]) * MANY >= max(len(ways[way]), 1):
            return _zeroed(way, data, base, width, most)
    return _difference(data, base, width, most)


def _became_zero(way: int, data: Bytes, base: Bytes, width: int) -> NDArray[np.bool_]:
    """Of every item, whether it is zero and was not."""
    items, before = np.frombuffer(data, UNSIGNED[width]), np.frombuffer(base, UNSIGNED[width])
    return (items == _zeros(way, before, width)) & (items != before)


def _zeros(way: int, before: NDArray[Any], width: int) -> Any:
    """All bits zero, or all but the sign of what was there."""
    return before & before.dtype.type(1 << (8 * width - 1)) if way == SIGN_KEPT else before.dtype.type(0)


def _zeroed(way: int, data: Bytes, base: Bytes, width: int, most: float) -> Bytes | None:
    """Prefix, length of the mask, one bit for each item that became zero, the delta with these as they were."""
    unsigned = UNSIGNED[width]
    gone = _became_zero(way, data, base, width)
    mask = _packed_plane(np.packbits(gone))
    others = np.where(gone, np.frombuffer(base, unsigned), np.frombuffer(data, unsigned))
    prefix = _PREFIX.pack(width | ZEROED | way, len(gone)) + _LENGTH.pack(len(mask)) + bytes(mask)
    rest = _difference(others.view(np.uint8).data, base, width, most - len(prefix))
    return None if rest is None else prefix + rest


def _difference(data: Bytes, base: Bytes, width: int, most: float) -> bytes | None:
    """The smallest difference unless it takes more than ``most`` bytes; windows tell most of those that would."""
    sample, base_sample = _windows(data, width), _windows(base, width)
    ways = (0, SUBTRACTED) if width in UNSIGNED and len(data) % width == 0 else (0,)
    tried = {way: _delta_by(way, sample, base_sample, width) for way in ways}
    way = min(tried, key=lambda name: len(tried[name]))
    delta = tried[way]
    if len(sample) < len(data):
        if len(delta) * len(data) / len(sample) > most:
            return None
        delta = _delta_by(way, data, base, width)
    return delta if len(delta) <= most else None


def _delta_by(way: int, data: Bytes, base: Bytes, width: int) -> bytes:
    """All items grouped, or the few that differ with their places, whatever is smaller."""
    difference = _subtracted(data, base, width) if way == SUBTRACTED else _xored(data, base)
    sparse = _sparse(difference, width, way)
    if sparse and len(sparse) * FEW < len(data):
        return sparse
    dense = _group(difference.data, width, way)
    return sparse if sparse and len(sparse) < len(dense) else dense


def _undo_delta(payload: Bytes, base: Bytes, size: int) -> Bytes:
    if len(base) != size:
        raise DamagedEncoding(f"a base of {len(base)} bytes for {size}")
    tag = payload[0] if len(payload) else 0
    if tag & ZEROED:
        return _undo_zeroed(payload, base, size)
    difference = _undo_sparse(payload, size) if tag & SPARSE else _ungroup(payload, size)
    if not tag & SUBTRACTED:
        return _xored(difference.data, base).data
    width = tag & ~(SPARSE | SUBTRACTED)
    if width not in UNSIGNED or size % width:
        raise DamagedEncoding(f"{size} bytes are no items of {width}")
    return _added(difference, base, width).data


def _undo_zeroed(payload: Bytes, base: Bytes, size: int) -> Bytes:
    view = memoryview(payload)
    start = _PREFIX.size + _LENGTH.size
    if len(view) < start:
        raise DamagedEncoding("the prefix is missing")
    tagged, items = _PREFIX.unpack_from(view)
    width, way = tagged & ~(ZEROED | SIGN_KEPT), tagged & SIGN_KEPT
    if width not in UNSIGNED or items * width != size:
        raise DamagedEncoding(f"{items} items of {width} bytes are not {size} bytes")
    (length,) = _LENGTH.unpack_from(view, _PREFIX.size)
    mask, rest = view[start : start + length], view[start + length :]
    if len(rest) and rest[0] & ZEROED:
        raise DamagedEncoding("zeros within zeros")
    gone = np.unpackbits(_plane(mask, (items + 7) // 8), count=items).view(np.bool_)
    zeros = np.broadcast_to(_zeros(way, np.frombuffer(base, UNSIGNED[width]), width), items)
    restored = np.where(gone, zeros, np.frombuffer(_undo_delta(rest, base, size), UNSIGNED[width]))
    return restored.view(np.uint8).data


def _xored(data: Bytes, base: Bytes) -> Plane:
    return np.bitwise_xor(np.frombuffer(data, np.uint8), np.frombuffer(base, np.uint8))


def _subtracted(data: Bytes, base: Bytes, width: int) -> Plane:
    """Differences modulo the items' range, folded: 0, −1, 1, −2, … become 0, 1, 2, 3, …"""
    unsigned = UNSIGNED[width]
    difference = np.frombuffer(data, unsigned) - np.frombuffer(base, unsigned)
    sign = (difference.view(f"<i{width}") >> (8 * width - 1)).view(unsigned)
    folded = np.bitwise_xor(difference << 1, sign)
    return np.asarray(folded.view(np.uint8))


def _added(folded: Plane, base: Bytes, width: int) -> Plane:
    """Undoes ``_subtracted``."""
    unsigned = UNSIGNED[width]
    items = folded.view(unsigned)
    sign = np.zeros_like(items) - (items & 1)
    restored = np.bitwise_xor(items >> 1, sign) + np.frombuffer(base, unsigned)
    return np.asarray(restored.view(np.uint8))


def _sparse(difference: Plane, width: int, flags: int) -> bytes:
    """Prefix, length of the distances, distances from one changed item to the next, changed items; else nothing.

    Planes cost each changed item its place once per byte; here it is told once.
    """
    if len(difference) == 0 or len(difference) % width or width not in UNSIGNED:
        return b""
    items = difference.view(UNSIGNED[width])
    places = np.flatnonzero(items)
    if len(places) * FEW > len(items):
        return b""
    distances = _group(np.diff(places, prepend=-1).astype("<u4").data.cast("B"), 4)
    changed = _group(items[places].data.cast("B"), width)
    prefix = _PREFIX.pack(width | SPARSE | flags, len(places))
    return b"".join([prefix, _LENGTH.pack(len(distances)), distances, changed])


def _undo_sparse(payload: Bytes, size: int) -> Plane:
    view = memoryview(payload)
    if len(view) < _PREFIX.size + _LENGTH.size:
        raise DamagedEncoding("the prefix is missing")
    tagged, count = _PREFIX.unpack_from(view)
    width = tagged & ~(SPARSE | SUBTRACTED)
    if width not in UNSIGNED or size % width or count * width > size:
        raise DamagedEncoding(f"{count} items of {width} bytes do not fit into {size} bytes")
    (length,) = _LENGTH.unpack_from(view, _PREFIX.size)
    start = _PREFIX.size + _LENGTH.size
    places = np.cumsum(_ungroup(view[start : start + length], count * 4).view("<u4"), dtype=np.int64) - 1
    if count and not 0 <= places[-1] < size // width:
        raise DamagedEncoding("a change lies outside")
    out = np.zeros(size, np.uint8)
    out.view(UNSIGNED[width])[places] = _ungroup(view[start + length :], count * width).view(UNSIGNED[width])
    return out
