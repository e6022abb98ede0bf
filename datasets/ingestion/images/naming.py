"""Which cell of a table means which file: by path, by name, or by name without its ending."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets.ingestion.images.members import Member

AMBIGUOUS = -1
ABSENT = -2


@dataclass(slots=True)
class FileNames:
    """Looks files up by what a table calls them. Letters' case, and how slashes are written, do not matter."""

    paths: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    stems: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, members: Sequence[Member], table: Member) -> FileNames:
        """Paths count from the archive's root, from the table's folder, and from any folder in between."""
        found = cls()
        for member in members:
            for path in _paths(member, table):
                _put(found.paths, comparable(path), member.place)
            _put(found.names, comparable(member.name), member.place)
            _put(found.stems, comparable(member.stem), member.place)
        return found

    def place(self, cell: str) -> int:
        """The file's place, AMBIGUOUS when several files have this name, ABSENT when none has."""
        text = comparable(cell)
        name = text.rpartition("/")[2]
        by_name = self._place_by_name(name)
        if text in self.paths and self.paths[text] != AMBIGUOUS:
            return self.paths[text]
        return by_name

    def _place_by_name(self, name: str) -> int:
        return self.names[name] if name in self.names else self.stems.get(name, ABSENT)

    def is_written_out(self, cell: str) -> bool:
        """Whether the cell names a file with its ending, which a number or an identifier does not do by chance."""
        text = comparable(cell)
        return text in self.paths or text.rpartition("/")[2] in self.names


def _paths(member: Member, table: Member) -> list[str]:
    folders = table.folders
    shared = 0
    while shared < len(folders) and member.folders[shared : shared + 1] == (folders[shared],):
        shared += 1
    parts = member.path.split("/")
    return ["/".join(parts[depth:]) for depth in range(shared + 1)]


def _put(known: dict[str, int], key: str, place: int) -> None:
    known[key] = place if known.get(key, place) == place else AMBIGUOUS


def comparable(text: str) -> str:
    """The form in which names are compared."""
    composed = unicodedata.normalize("NFC", text.strip()).replace("\\", "/").casefold()
    while composed.startswith(("./", "/")):
        composed = composed.removeprefix("./").removeprefix("/")
    return composed
