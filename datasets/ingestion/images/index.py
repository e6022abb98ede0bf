"""The list of a version's images: one record of fixed length each, sorted by SHA-256.

Stored as one object beside the Parquet parts. It tells the collection which objects the version needs, without any
library, and whether an image belongs to the version by a binary search in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import IO, NamedTuple

RECORD = Struct("<32s32sQIBB2x")
# By their numbers in a record; what a browser is told that an image is comes from here and nowhere else.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
CONTENT_TYPES = {
    "PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp",
    "TIFF": "image/tiff",
}  # fmt: skip


class ImageRecord(NamedTuple):
    """One image: hex digests, sizes in bytes, formats by name."""

    sha256: str
    thumbnail: str
    size: int
    thumbnail_size: int
    format: str
    thumbnail_format: str

    def packed(self) -> bytes:
        digests = bytes.fromhex(self.sha256), bytes.fromhex(self.thumbnail)
        formats = FORMATS.index(self.format), FORMATS.index(self.thumbnail_format)
        return RECORD.pack(*digests, self.size, self.thumbnail_size, *formats)


def unpacked(record: bytes) -> ImageRecord:
    """Raises ValueError for what is no record."""
    if len(record) != RECORD.size:
        raise ValueError("a record is cut off")
    sha256, thumbnail, size, thumbnail_size, kind, thumbnail_kind = RECORD.unpack(record)
    if max(kind, thumbnail_kind) >= len(FORMATS):
        raise ValueError("a record names an unknown format")
    return ImageRecord(
        sha256.hex(), thumbnail.hex(), size, thumbnail_size, FORMATS[kind], FORMATS[thumbnail_kind]
    )  # fmt: skip


def read_records(stream: IO[bytes]) -> Iterator[ImageRecord]:
    """All records in their order. Raises ValueError."""
    while chunk := stream.read(1024 * RECORD.size):
        for start in range(0, len(chunk), RECORD.size):
            yield unpacked(chunk[start : start + RECORD.size])


def sorted_index(records: Iterable[ImageRecord]) -> bytes:
    """The content of an index: each image once, in the order of their digests."""
    return b"".join(sorted({record.packed() for record in records}))


def find_record(stream: IO[bytes], size: int, sha256: str) -> ImageRecord | None:
    """The record of an image in an index of `size` bytes, or None when the version has no such image."""
    wanted = bytes.fromhex(sha256)
    low, high = 0, size // RECORD.size
    while low < high:
        middle = (low + high) // 2
        stream.seek(middle * RECORD.size)
        record = stream.read(RECORD.size)
        if record[:32] == wanted:
            return unpacked(record)
        low, high = (middle + 1, high) if record[:32] < wanted else (low, middle)
    return None
