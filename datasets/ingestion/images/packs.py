"""How the child hands images over: their bytes one behind the other in a few files, and a record for each.

A hundred thousand small files would cost the child, the parent and the file system far more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from datasets.ingestion.images.index import ImageRecord, read_records
from datasets.ingestion.result import ImageFiles

PACK_BYTES = 256 << 20
INDEX_NAME = "images.index"


def pack_name(number: int) -> str:
    return f"images-{number:05d}.pack"


def thumbnail_pack_name(number: int) -> str:
    return f"thumbnails-{number:05d}.pack"


def handed_over(files: ImageFiles) -> list[str]:
    """The names of all files that belong to it."""
    packs = [pack_name(number) for number in range(files.packs)]
    return [INDEX_NAME, *packs, *(thumbnail_pack_name(number) for number in range(files.thumbnail_packs))]


class PackWriter:
    """Contents one behind the other; a new file is begun before one would become longer than `PACK_BYTES`."""

    def __init__(self, destination: Path, *, thumbnails: bool) -> None:
        self._destination = destination
        self._name = thumbnail_pack_name if thumbnails else pack_name
        self._out: BinaryIO | None = None
        self.count = 0

    def add(self, content: bytes) -> None:
        if self._out is None or self._out.tell() + len(content) > PACK_BYTES:
            self.close()
            self._out = (self._destination / self._name(self.count)).open("wb")
            self.count += 1
        self._out.write(content)

    def close(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None


class ImageWriter:
    """Images and thumbnails, each content once."""

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._images = PackWriter(destination, thumbnails=False)
        self._thumbnails = PackWriter(destination, thumbnails=True)
        self._bytes = 0
        self.records: dict[str, ImageRecord] = {}

    def add(self, record: ImageRecord, content: bytes, thumbnail: bytes) -> None:
        if record.sha256 in self.records:
            return
        self._images.add(content)
        self._thumbnails.add(thumbnail)
        self._bytes += len(content)
        self.records[record.sha256] = record

    def close(self) -> ImageFiles:
        self._images.close()
        self._thumbnails.close()
        with (self._destination / INDEX_NAME).open("wb") as out:
            out.writelines(record.packed() for record in self.records.values())
        return ImageFiles(len(self.records), self._bytes, self._images.count, self._thumbnails.count)


def read_packs(folder: Path, names: Sequence[str], sizes: Sequence[int]) -> Iterator[bytes]:
    """The contents of the given sizes in their order. Raises ValueError when the files hold less or more."""
    left = list(reversed(names))
    stream = None
    try:
        for size in sizes:
            content = stream.read(size) if stream is not None else b""
            if not content and size and left:
                if stream is not None:
                    stream.close()
                stream = (folder / left.pop()).open("rb")
                content = stream.read(size)
            if len(content) != size:
                raise ValueError("a pack ends within an image")
            yield content
        if left or (stream is not None and stream.read(1)):
            raise ValueError("the packs hold more than their records say")
    finally:
        if stream is not None:
            stream.close()


def read_index(folder: Path) -> list[ImageRecord]:
    """Raises ValueError."""
    with (folder / INDEX_NAME).open("rb") as stream:
        return list(read_records(stream))
