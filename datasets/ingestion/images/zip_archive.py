"""Zip archives, read through the central directory; only stored and deflated files, which unpack in bounded steps."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from datasets.ingestion.images.members import Entry, Kind, MemberDamaged, Read
from datasets.ingestion.limits import Limits
from datasets.ingestion.result import Rejected

ENCRYPTED, NAME_IS_UTF8 = 0x1, 0x800
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
METHOD_NAMES = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd"}
END, END64_LOCATOR, END64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
END_BYTES = 22 + 65_535  # the record at the end and the longest comment behind it
ENTRIES_IN_END64 = struct.Struct("<Q")
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError, struct.error)


def names_in(source: Path) -> list[str]:
    """Up to 10,000 names, to tell what kind of zip it is; none when it cannot be read, which its reader explains."""
    try:
        _check_count(source, Limits())
        with zipfile.ZipFile(source) as archive:
            return archive.namelist()[:10_000]
    except (*DAMAGE, UnicodeDecodeError, Rejected):
        return []


class ZipArchive:
    """Raises Rejected for a zip that cannot be read, is encrypted or made by a method that is not read here."""

    def __init__(self, source: Path, limits: Limits) -> None:
        _check_count(source, limits)
        try:
            self._file = zipfile.ZipFile(source)
        except (*DAMAGE, UnicodeDecodeError) as error:
            raise _damaged(str(error)) from error
        self._members = self._file.infolist()
        _check_members(self._members)

    def entries(self) -> Iterator[Entry]:
        for info in self._members:
            yield Entry(_name(info), info.file_size, _kind(info))

    def contents(self, places: set[int]) -> Iterator[tuple[int, Read]]:
        for place, info in enumerate(self._members):
            if place in places:
                yield from _opened(self._file, info, place)


def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: int) -> Iterator[tuple[int, Read]]:
    try:
        content = archive.open(info)
    except (*DAMAGE, RuntimeError) as error:
        yield place, _failing(error)
        return
    with content:
        yield place, _guarded(content)


def _guarded(content: IO[bytes]) -> Read:
    def read(count: int) -> bytes:
        try:
            return content.read(count)
        except DAMAGE as error:
            raise MemberDamaged(str(error)) from error

    return read


def _failing(error: Exception) -> Read:
    def read(count: int) -> bytes:
        raise MemberDamaged(str(error))

    return read


def _name(info: zipfile.ZipInfo) -> str:
    """zipfile takes a name without the UTF-8 mark for a DOS one; many programs write UTF-8 without the mark."""
    name = info.orig_filename
    if info.flag_bits & NAME_IS_UTF8:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _kind(info: zipfile.ZipInfo) -> Kind:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or mode == stat.S_IFDIR:
        return "folder"
    return "file" if mode in (0, stat.S_IFREG) else "other"


def _check_count(source: Path, limits: Limits) -> None:
    """Before zipfile reads the whole directory into memory: how many entries the end of the file speaks of."""
    size = source.stat().st_size
    with source.open("rb") as stream:
        stream.seek(max(size - END_BYTES - 76, 0))
        tail = stream.read()
    found = tail.rfind(END)
    if found < 0:
        raise _damaged("the directory at its end is missing")
    count = int.from_bytes(tail[found + 10 : found + 12], "little")
    large = tail.rfind(END64, 0, found)
    if large >= 0 and tail.find(END64_LOCATOR, large, found) >= 0 and len(tail) >= large + 40:
        (count,) = ENTRIES_IN_END64.unpack_from(tail, large + 32)
    if count > limits.files:
        raise Rejected(
            "too_many_files",
            f"The archive lists {count:,} files, the limit is {limits.files:,}. Split it, or upload a sample.",
        )


def _check_members(members: Sequence[zipfile.ZipInfo]) -> None:
    if any(info.flag_bits & ENCRYPTED for info in members):
        raise Rejected("encrypted_archive", "The zip is encrypted. Make it anew without a password.")
    foreign = next((info for info in members if info.compress_type not in METHODS), None)
    if foreign is not None:
        method = METHOD_NAMES.get(foreign.compress_type, str(foreign.compress_type))
        raise Rejected(
            "compression_method",
            f"The zip is compressed by the method {method}. Make it anew with the usual one (deflate), or as tar.gz.",
        )
    end = 0
    for info in sorted(members, key=lambda one: one.header_offset):
        if info.header_offset < end:
            raise Rejected(
                "overlapping_files", "Files of the zip share their bytes, which only zip bombs do. Make it anew."
            )
        end = info.header_offset + info.compress_size


def _damaged(reason: str) -> Rejected:
    return Rejected(
        "damaged_archive",
        f"The zip is cut off or damaged ({reason[:120]}). Make it anew and upload it whole.",
    )
