"""Tar archives (ustar, pax, GNU and the old ones), plain or packed by gzip or Zstandard, read as one stream.

Our own reader rather than `tarfile`: it holds one header at a time, believes no size of a header's extension, and
knows no links.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from datasets.ingestion.images.members import Entry, Kind, Read, decoded_name
from datasets.ingestion.result import Findings, Rejected

BLOCK = 512
SKIP = 1 << 20
LONGEST_EXTENSION = 64 << 10
FILES, FOLDER = (b"0", b"\0", b"7"), b"5"
EXTENSIONS = {b"L": "long name", b"K": "long link", b"x": "pax", b"g": "global pax"}
SPARSE = b"S"
OCTAL = frozenset(b"01234567")
WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, OSError)
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LARGEST_WINDOW = 128 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """What a header block says, with what extensions before it said instead."""

    name: str
    size: int
    kind: Kind


def is_tar(head: bytes) -> bool:
    """Whether the bytes begin with a tar header; old tars have no mark, but all have a checksum."""
    return len(head) >= BLOCK and any(head[:BLOCK]) and _sum_fits(head[:BLOCK])


@contextmanager
def open_unpacked(source: Path) -> Iterator[IO[bytes]]:
    """The bytes of the archive, unpacked when it is gzip or Zstandard."""
    with source.open("rb") as stored:
        mark = stored.read(4)
        stored.seek(0)
        if mark.startswith(b"\x1f\x8b"):
            with gzip.open(stored) as packed:
                yield packed  # type: ignore[misc]
        elif mark == ZSTD_MAGIC:
            with zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).stream_reader(stored) as unpacked:
                yield unpacked
        else:
            yield stored


@contextmanager
def unpacking_errors() -> Iterator[None]:
    """What goes wrong in unpacking, as a rejection."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Rejected(
            "damaged_gzip",
            "The gzip archive is cut off or damaged. Compress the file again and upload it whole.",
        ) from error
    except zstandard.ZstdError as error:
        raise _damaged(str(error)) from error


class TarArchive:
    """Each pass reads the stream from its beginning."""

    def __init__(self, source: Path, findings: Findings) -> None:
        self._source = source
        self._findings = findings
        self._unended = False

    def entries(self) -> Iterator[Entry]:
        with open_unpacked(self._source) as stream:
            reader = _Reader(stream)
            while (header := reader.next_header()) is not None:
                yield Entry(header.name, header.size, header.kind)
            if not reader.ended:
                self._findings.warn(
                    "no_end_mark", "The tar has no mark at its end: it may be cut off. Check the number of files."
                )

    def contents(self, places: set[int]) -> Iterator[tuple[int, Read]]:
        left = set(places)
        with open_unpacked(self._source) as stream:
            reader = _Reader(stream)
            place = 0
            while left and reader.next_header() is not None:
                if place in left:
                    left.remove(place)
                    yield place, reader.read_data
                place += 1


class _Reader:
    """The blocks of one pass."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._data = self._padding = 0
        self.ended = False

    def next_header(self) -> Header | None:
        """The header of the next entry; what is left of the one before is passed over. None at the end."""
        self._pass_over(self._data + self._padding)
        self._data = self._padding = 0
        name: str | None = None
        size: int | None = None
        while (block := self._header_block()) is not None:
            kind, said = block[156:157], _number(block[124:136])
            if kind in EXTENSIONS:
                told_name, told_size = _extension(kind, self._extension_bytes(said))
                name, size = told_name or name, size if told_size is None else told_size
                continue
            return self._header(block, name, said if size is None else size)
        return None

    def read_data(self, count: int) -> bytes:
        """At most `count` bytes more of the current entry."""
        chunk = self._exactly(min(count, self._data))
        self._data -= len(chunk)
        return chunk

    def _header(self, block: bytes, name: str | None, size: int) -> Header:
        flag = block[156:157]
        if flag == SPARSE:
            raise Rejected("sparse_archive", "The tar holds sparse files. Make it anew without --sparse.")
        name = name if name is not None else _own_name(block)
        folder = flag == FOLDER or (flag in FILES and name.endswith("/"))
        kind: Kind = "folder" if folder else "file" if flag in FILES else "other"
        self._data = 0 if flag in WITHOUT_DATA else size
        self._padding = -self._data % BLOCK
        return Header(name, self._data, kind)

    def _header_block(self) -> bytes | None:
        block = self._read(BLOCK)
        if not block:
            return None
        if len(block) < BLOCK:
            raise _cut_off()
        if not any(block):
            self.ended = True
            return None
        if not _sum_fits(block):
            raise _damaged("a header does not match its checksum")
        return block

    def _extension_bytes(self, size: int) -> bytes:
        if size > LONGEST_EXTENSION:
            raise _damaged("a header is longer than any name")
        content = self._exactly(size)
        self._pass_over(-size % BLOCK)
        return content

    def _pass_over(self, count: int) -> None:
        while count:
            count -= len(self._exactly(min(count, SKIP)))

    def _exactly(self, count: int) -> bytes:
        chunk = self._read(count)
        if len(chunk) < count:
            raise _cut_off()
        return chunk

    def _read(self, count: int) -> bytes:
        """Streams that unpack may give less than was asked for, although there is more."""
        pieces, missing = [], count
        try:
            while missing and (piece := self._stream.read(missing)):
                pieces.append(piece)
                missing -= len(piece)
        except DAMAGE as error:
            raise _damaged(str(error)) from error
        return b"".join(pieces)


def _own_name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:262] == b"ustar" and block[262:264] != b" \0" else b""
    return decoded_name(prefix + b"/" + name if prefix else name)


def _extension(kind: bytes, content: bytes) -> tuple[str | None, int | None]:
    """(name, size) that an extension header gives to the entry behind it."""
    if kind == b"L":
        return decoded_name(content.partition(b"\0")[0]), None
    return _pax(content) if kind == b"x" else (None, None)


def _pax(content: bytes) -> tuple[str | None, int | None]:
    """Records of `length key=value` and a line break."""
    name, size = None, None
    while content:
        length, space, _ = content.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 1 < int(length[:9]) <= len(content):
            raise _damaged("an extended header cannot be read")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        content = content[int(length) :]
        if key == b"path":
            name = decoded_name(value)
        elif key == b"size" and value.isdigit():
            size = int(value[:20])
        elif key.startswith(b"GNU.sparse"):
            raise Rejected("sparse_archive", "The tar holds sparse files. Make it anew without --sparse.")
    return name, size


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") - (0x80 << (8 * (len(field) - 1)))
        if field[0] == 0xFF or value < 0:
            raise _damaged("a header holds a negative size")
        return value
    digits = field.strip(b" \0")
    if digits and not set(digits) <= OCTAL:
        raise _damaged("a header holds no number where the size belongs")
    return int(digits or b"0", 8)


def _sum_fits(block: bytes) -> bool:
    """The sum of all bytes, the field itself taken as blanks; some old programs summed signed bytes."""
    try:
        told = int(block[148:156].strip(b" \0") or b"-", 8)
    except ValueError:
        return False
    blanked = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(blanked)
    return told in (unsigned, unsigned - 256 * sum(byte >= 0x80 for byte in blanked))


def _cut_off() -> Rejected:
    return Rejected(
        "damaged_archive", "The archive ends in the middle of a file: it was cut off. Upload it again, whole."
    )


def _damaged(reason: str) -> Rejected:
    return Rejected("damaged_archive", f"The archive is damaged ({reason[:120]}). Make it anew and upload it whole.")
