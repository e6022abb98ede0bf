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


def compress(data: Bytes) -> bytes:
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
