"""What an archive holds, before anything of it is believed: entries, their names made safe, and limits.

Nothing is ever written under a name from an archive: names are labels, and tell classes and rows apart.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from datasets.ingestion.decoding import RATIO_GRACE_BYTES
from datasets.ingestion.limits import Limits
from datasets.ingestion.result import Findings, Rejected, shown

LONGEST_PATH = 500
MOST_FOLDERS = 32
NOISE = frozenset({"__macosx", "thumbs.db", "desktop.ini", "icon\r", "ehthumbs.db", "@eadir"})

Kind = Literal["file", "folder", "other"]
Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as the archive tells it: a name that anybody may have made up, bytes, and what it claims to be."""

    name: str
    size: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive. `place` counts the entries from 0, `path` is a label with `/` between its parts."""

    place: int
    path: str
    size: int

    @property
    def folders(self) -> tuple[str, ...]:
        return tuple(self.path.split("/")[:-1])

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def ending(self) -> str:
        """In small letters, without the dot; empty when there is none."""
        before, _, after = self.name.rpartition(".")
        return after.lower() if before else ""


class MemberDamaged(Exception):
    """The bytes of one member cannot be read; the others may be whole."""


class Archive(Protocol):
    """An archive that can be gone through more than once. Everything raises Rejected when the whole is damaged."""

    def entries(self) -> Iterator[Entry]:
        """All entries, in their order."""

    def contents(self, places: set[int]) -> Iterator[tuple[int, Read]]:
        """The wanted files in their order; `read(n)` gives at most n bytes more and may raise MemberDamaged."""


def list_members(archive: Archive, stored: int, limits: Limits, findings: Findings) -> list[Member]:
    """The files worth a look. `stored` is the size of the archive. Raises Rejected when a limit is exceeded."""
    members: list[Member] = []
    seen: set[str] = set()
    total = 0
    for place, entry in enumerate(archive.entries()):
        total += entry.size if entry.kind == "file" else 0
        _check_limits(place + 1, total, stored, limits)
        member = _member(place, entry, findings)
        if member is None:
            continue
        if member.path in seen:
            _warn(findings, "duplicate_name", member.path, "is in the archive more than once; the first one counts.")
            continue
        seen.add(member.path)
        members.append(member)
    return members


def _check_limits(count: int, total: int, stored: int, limits: Limits) -> None:
    if count > limits.files:
        raise Rejected(
            "too_many_files",
            f"The archive lists more than {limits.files:,} files. Split it, or upload a sample of the images.",
        )
    if total > limits.bytes:
        raise Rejected(
            "file_too_large",
            f"The archive unpacks to more than {limits.bytes:,} bytes, which is the limit. Split it, or upload "
            "smaller images.",
        )
    if total > RATIO_GRACE_BYTES and total > limits.expansion_ratio * max(stored, 1):
        raise Rejected(
            "expansion_ratio",
            f"The archive unpacks to more than {limits.expansion_ratio:g} times its size, which no images do. "
            "Check what is in it.",
        )


def _member(place: int, entry: Entry, findings: Findings) -> Member | None:
    """None for folders, for what desktops leave behind, and for what is no plain file of the archive."""
    if entry.kind == "folder":
        return None
    parts = [part for part in entry.name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or any(is_noise(part) for part in parts):
        return None
    label = "/".join(_cleaned(part) for part in parts)
    if entry.kind == "other":
        _warn(findings, "not_a_file", label, "is a link, a device or the like, not a file; it was passed over.")
    elif _leaves(entry.name, parts):
        _warn(findings, "unsafe_path", label, "lies outside of the archive's own folder; it was passed over.")
    elif len(label) > LONGEST_PATH or len(parts) > MOST_FOLDERS:
        _warn(findings, "unsafe_path", label, f"has a path of more than {LONGEST_PATH} characters or "
              f"{MOST_FOLDERS} folders; it was passed over.")  # fmt: skip
    else:
        return Member(place, label, entry.size)
    return None


def is_noise(part: str) -> bool:
    return (part.startswith(".") and part != "..") or part.lower() in NOISE


def _leaves(name: str, parts: list[str]) -> bool:
    drive = len(parts[0]) == 2 and parts[0][1] == ":" and parts[0][0].isalpha()
    return ".." in parts or name.startswith(("/", "\\")) or drive


def _cleaned(part: str) -> str:
    """One part of a path, fit to be shown, compared and encoded."""
    composed = unicodedata.normalize("NFC", part)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in composed)


def _warn(findings: Findings, code: str, path: str, sentence: str) -> None:
    findings.warn(code, f"{shown(path, 120)} {sentence}", file=path[:LONGEST_PATH])


def decoded_name(raw: bytes) -> str:
    """A name of unknown encoding: UTF-8 where it is that, else Latin-1, which reads any bytes."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
