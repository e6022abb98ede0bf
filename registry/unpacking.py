"""A zip of a model, unpacked by our own loop: plain files only, inside the folder, within limits."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

from django.core.exceptions import ValidationError

from dlplatform.engine.errors import PackageError

from . import pickles, trees

CHUNK = 1024 * 1024
MOST_RATIO = 200  # weights shrink little; what shrinks more is made to fill a disk


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == pickles.ZIP


def unpack(archive: Path, folder: Path, *, limit: int, beat: Callable[[], None]) -> None:
    """Write the files of a zip into a folder; a single folder around all of them is left out.

    Raises PackageError for one that is damaged, leaves the folder, is larger than ``limit`` bytes or a bomb.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            members = [member for member in source.infolist() if not member.is_dir()]
            _check(members, limit)
            outer = _outer_folder(members)
            for member in members:
                _write(source, member, folder / member.filename.removeprefix(outer), beat)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise PackageError(f"The zip cannot be read ({error}); make it anew without a password.") from error


def _check(members: list[zipfile.ZipInfo], limit: int) -> None:
    total = sum(member.file_size for member in members)
    if total > limit:
        raise PackageError(f"The files in the zip have {total:,} bytes together; the limit here is {limit:,}.")
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind and not stat.S_ISREG(kind):
            raise PackageError(f"{member.filename[:100]!r} in the zip is a link or no plain file.")
        if member.file_size > MOST_RATIO * max(member.compress_size, CHUNK):
            raise PackageError(f"{member.filename[:100]!r} in the zip unpacks to far more than it is.")
        pickles.check_name(member.filename)
    try:
        trees.changed({}, {member.filename: {} for member in members}, ())
    except ValidationError as error:
        raise PackageError(f"The zip holds a path that cannot be kept: {' '.join(error.messages)}") from error


def _outer_folder(members: list[zipfile.ZipInfo]) -> str:
    """The folder, with its slash, that all files are in; empty when there is none."""
    first = {member.filename.partition("/")[0] for member in members}
    inside = all("/" in member.filename for member in members)
    return f"{first.pop()}/" if len(first) == 1 and inside else ""


def _write(source: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, beat: Callable[[], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with source.open(member) as content, target.open("xb") as out:
        while chunk := content.read(CHUNK):
            written += len(chunk)
            if written > member.file_size:
                raise PackageError(f"{member.filename[:100]!r} in the zip is longer than it says.")
            out.write(chunk)
            beat()
