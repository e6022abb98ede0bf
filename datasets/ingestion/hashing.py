"""64-bit hashes of Arrow columns, vectorised: for counting distinct values and equal rows, not for
security.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = Any
Hashes = np.ndarray[Any, np.dtype[np.uint64]]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
FIRST_MIX = np.uint64(0xBF58476D1CE4E5B9)
SECOND_MIX = np.uint64(0x94D049BB133111EB)
MISSING_HASH = np.uint64(0x6A09E667F3BCC909)
WORD = 8
# Above this a value is hashed by itself: the loop over words of the longest one would take its time with all.
LONG_BYTES = 4_096
# tail masks: how many bytes of the last word belong to the string
MASKS = np.array([(1 << (8 * count)) - 1 for count in range(9)], dtype=np.uint64)


def mix(words: Hashes) -> Hashes:
    """A bijection of 64-bit words that spreads every input bit (splitmix64's finaliser)."""
    mixed = words + MULTIPLIER
    mixed ^= mixed >> np.uint64(30)
    mixed *= FIRST_MIX
    mixed ^= mixed >> np.uint64(27)
    mixed *= SECOND_MIX
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_column(column: Array) -> Hashes:
    """One hash per value; equal values hash alike, missing ones share a hash of their own."""
    hashes = _hash_strings(column) if pa.types.is_string(column.type) else mix(_words(column))
    if column.null_count:
        hashes[column.is_null().to_numpy(zero_copy_only=False)] = MISSING_HASH
    return hashes


def _words(column: Array) -> Hashes:
    if pa.types.is_boolean(column.type):
        flags: Hashes = pc.fill_null(column, False).to_numpy(zero_copy_only=False).astype(np.uint64)
        return flags
    if pa.types.is_floating(column.type):
        numbers = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False) + 0.0  # -0.0 equals 0.0
        bits: Hashes = numbers.view(np.uint64)
        return bits
    integers = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
    words: Hashes = pc.fill_null(integers, 0).to_numpy(zero_copy_only=False).view(np.uint64)
    return words


def string_bounds(column: Array) -> tuple[Any, Any]:
    """(offsets as int64, bytes as uint8) of a string array; value i is bytes[offsets[i]:offsets[i + 1]]."""
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4).astype(np.int64)
    content = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    return bounds, content


def _hash_strings(column: Array) -> Hashes:
    """Eight bytes at a time for all values at once; the loop runs over words of the longest value."""
    if not len(column):
        return np.empty(0, np.uint64)
    bounds, content = string_bounds(column)
    content = np.concatenate([content[bounds[0] : bounds[-1]], np.zeros(WORD, np.uint8)])
    starts = bounds[:-1] - bounds[0]
    lengths = np.diff(bounds)
    words = np.ndarray((len(content) - WORD + 1,), np.uint64, content, strides=(1,))
    hashes = mix(lengths.astype(np.uint64))
    for place in np.flatnonzero(lengths > LONG_BYTES):
        hashes[place] = _hash_long(content[starts[place] : starts[place] + lengths[place]])
    active = np.flatnonzero((lengths > 0) & (lengths <= LONG_BYTES))
    position = 0
    while len(active):
        left = lengths[active] - position
        piece = words[starts[active] + position] & MASKS[np.minimum(left, WORD)]
        hashes[active] = mix(hashes[active] ^ piece)
        active = active[left > WORD]
        position += WORD
    return hashes


def _hash_long(content: Any) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(content, digest_size=WORD).digest(), "little"))


def combine(rows: Hashes, column: Hashes) -> Hashes:
    """Row hashes extended by one more column, order-dependent."""
    return (rows * MULTIPLIER) ^ column
