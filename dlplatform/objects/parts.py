"""A large file as it comes in, in parts: read once and in order, hashed as a whole and part by part.

The two hashes are taken side by side, each in a thread of its own; whoever asks for the parts encodes them meanwhile.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .safetensors_layout import SLICE, Region

GROUP = 2 * SLICE
MOST_IN_GROUP = 1000
GROUPS_HELD = 3


@dataclass(frozen=True)
class Part:
    """A region of the file, its bytes, and the SHA-256 of them in hexadecimal."""

    region: Region
    data: memoryview
    sha256: str


class PartsInOrder:
    """The parts of an open file, a few megabytes of them at a time."""

    def __init__(self, source: int, laid_out: Sequence[Region]) -> None:
        self._source = source
        self._laid_out = laid_out
        self._whole = hashlib.sha256()
        self._memory = [bytearray(GROUP) for _ in range(GROUPS_HELD)]  # fresh pages cost more than reading

    @property
    def sha256(self) -> str:
        """Of the whole file, once all groups were asked for."""
        return self._whole.hexdigest()

    def groups(self) -> Iterator[list[Part]]:
        """Neighbours together. Their bytes stay as they are until ``GROUPS_HELD`` further groups were asked for.

        Raises OSError when the file ends too early.
        """
        with ThreadPoolExecutor(1) as second:
            for number, regions in enumerate(_neighbours(self._laid_out)):
                data = self._read(self._memory[number % GROUPS_HELD], regions)
                pieces = _cut(data, regions)
                hashes = second.submit(_hashes, pieces)
                self._whole.update(data)
                yield [Part(*of_one) for of_one in zip(regions, pieces, hashes.result(), strict=True)]

    def _read(self, memory: bytearray, regions: Sequence[Region]) -> memoryview:
        """The bytes of regions that lie one behind the other."""
        data = memoryview(memory)[: sum(region.size for region in regions)]
        if os.preadv(self._source, [data], regions[0].start) != len(data):
            raise OSError("a file became shorter while it was being stored")
        return data


def _neighbours(laid_out: Sequence[Region]) -> Iterator[list[Region]]:
    group: list[Region] = []
    size = 0
    for region in laid_out:
        if group and (size + region.size > GROUP or len(group) == MOST_IN_GROUP):
            yield group
            group, size = [], 0
        group.append(region)
        size += region.size
    if group:
        yield group


def _cut(data: memoryview, regions: Sequence[Region]) -> list[memoryview]:
    first = regions[0].start
    return [data[region.start - first : region.start - first + region.size] for region in regions]


def _hashes(pieces: Sequence[memoryview]) -> list[str]:
    return [hashlib.sha256(piece).hexdigest() for piece in pieces]
