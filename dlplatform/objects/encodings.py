"""How the bytes of one object are kept on disk: as they are, or in fewer bytes that give them back to the bit.

Pure functions on bytes: values are never interpreted as numbers, so NaN payloads and −0.0 survive.

- ``raw``: as they are.
- ``zstd``: one zstd frame (`zstd`).
- ``grouped``: the bytes of the items in planes (`planes`).
- ``delta``: what differs from an ancestor (`deltas`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from .deltas import delta, undo_delta
from .errors import DamagedEncoding
from .planes import group, share_of_noise, ungroup
from .windows import TRIED_WHOLE, windows
from .zstd import Bytes, compress, decompress

RAW, ZSTD, GROUPED, DELTA = "raw", "zstd", "grouped", "delta"
WORTH_DECODING = 0.98  # an encoding that saves less is not worth the work of every later read
WORTH_A_BASE = 0.9  # the same for a delta, which makes the object depend on another one
LIKE_NOISE = 0.5  # the share of planes that nothing shrinks in weights: their mantissas
WORTH_CUTTING = 0.9  # the same for a large file, which is then kept in slices


@dataclass(frozen=True)
class Encoded:
    """What goes to disk: the payload and the codec that reads it."""

    codec: str
    payload: Bytes


def encode(data: Bytes, *, width: int = 1, base: Bytes | None = None) -> Encoded:
    """The smallest encoding of ``data``; ``delta`` only when it takes at most 0.9 of the best that needs no base.

    ``width`` is the size of an item in bytes (4 for float32). ``base`` has the length of ``data``. What is larger
    than 128 KiB is judged by four windows of 16 KiB before one encoding is made of the whole. Weights are told by
    their planes: where half of these are as good as random, no item repeats itself, and nothing but grouping is tried.
    """
    if base is not None and len(base) != len(data):
        raise ValueError(f"the base has {len(base)} bytes, the object {len(data)}")
    made: dict[str, Bytes] = {}
    if base is None and width > 1 and len(data) > TRIED_WHOLE:
        made[GROUPED] = group(data, width)
        if share_of_noise(made[GROUPED]) >= LIKE_NOISE and len(made[GROUPED]) <= WORTH_DECODING * len(data):
            return Encoded(GROUPED, made[GROUPED])
    sample = windows(data, width)
    tried = _tried(sample, width)
    codec = min(tried, key=lambda name: len(tried[name]))
    if base is not None:
        changes = delta(data, base, width, most=WORTH_A_BASE * len(tried[codec]) * len(data) / max(len(sample), 1))
        if changes is not None:
            return Encoded(DELTA, changes)
    if len(sample) == len(data):
        made = tried
    payload = made[codec] if codec in made else _tried(data, width, only=codec)[codec]
    return Encoded(codec, payload) if len(payload) <= WORTH_DECODING * len(data) else Encoded(RAW, data)


def shrinks(sample: Bytes) -> bool:
    """Whether zstd takes a tenth off, as of text; of what is compressed already it takes nothing."""
    return len(compress(sample)) <= WORTH_CUTTING * len(sample)


def decode(codec: str, payload: Bytes, *, size: int, base: Bytes | None = None) -> Bytes:
    """The ``size`` bytes that were encoded. Raises DamagedEncoding; what it does not notice, the hash will."""
    if codec == RAW:
        data = payload
    elif codec == ZSTD:
        data = decompress(payload, size)
    elif codec == GROUPED:
        data = ungroup(payload, size).data
    elif codec == DELTA and base is not None:
        data = undo_delta(payload, base, size)
    else:
        raise DamagedEncoding(f"codec {codec!r} {'without its base' if codec == DELTA else 'is unknown'}")
    if len(data) != size:
        raise DamagedEncoding(f"{len(data)} bytes instead of {size}")
    return data


def _tried(data: Bytes, width: int, *, only: str = "") -> dict[str, Bytes]:
    """The payloads by codec, of those that need no base."""
    ways: dict[str, Callable[[], Bytes]] = {RAW: lambda: data, ZSTD: lambda: compress(data)}
    if width > 1:
        ways[GROUPED] = lambda: group(data, width)
    return {codec: way() for codec, way in ways.items() if only in ("", codec)}
