"""One zstd frame of ours: compressed in the better of two ways, and never read as larger than was announced to us."""

import threading
from collections.abc import Callable

import zstandard

from .errors import DamagedEncoding

PROBE = 8 * 1024

Bytes = bytes | bytearray | memoryview

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


Way = Callable[[], zstandard.ZstdCompressionParameters]


def better_way(data: Bytes) -> Way:
    """Which of the two ways makes a window from the middle smaller; found once for data and samples of it."""
    middle = memoryview(data)[max(len(data) - PROBE, 0) // 2 :][:PROBE]
    return min((_entropy_only, _matches), key=lambda way: len(compress(middle, way)))


def compress(data: Bytes, way: Way | None = None) -> bytes:
    """One frame, made in the way that is given, or in the better one: all of a small object is tried in both ways."""
    if way is None and len(data) <= 2 * PROBE:
        return min(compress(data, _entropy_only), compress(data, _matches), key=len)
    return bytes(_compressor(way or better_way(data)).compress(data))


def _compressor(way: Way) -> zstandard.ZstdCompressor:
    """Compressors keep their tables, and serve one thread at a time."""
    if not hasattr(_compressors, way.__name__):
        setattr(_compressors, way.__name__, zstandard.ZstdCompressor(compression_params=way()))
    found: zstandard.ZstdCompressor = getattr(_compressors, way.__name__)
    return found


def decompress(payload: Bytes, size: int) -> bytes:
    """At most ``size`` bytes. A frame that announces its size is not ours: it could ask for any amount of memory."""
    if size == 0:
        return b""
    try:
        if zstandard.frame_content_size(payload) != -1:
            raise DamagedEncoding("the frame announces a size")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=size)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedEncoding(str(error)) from None
