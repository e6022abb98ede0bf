"""Names from outside made safe to keep: file labels and column headers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

MAX_COLUMN_NAME = 200
MAX_FILENAME = 120


def clean_filename(label: str) -> str:
    """A file name to show and to offer for download; never a path. At most 120 characters, never empty."""
    base = re.split(r"[\\/]", unicodedata.normalize("NFC", label))[-1]
    kept = "".join(char for char in base if char.isprintable() and char not in '<>:"|?*')
    kept = re.sub(r"\s+", " ", kept).strip(" .")
    if len(kept) > MAX_FILENAME:
        stem, dot, suffix = kept.rpartition(".")
        kept = (
            stem[: MAX_FILENAME - len(suffix) - 1] + dot + suffix if dot and len(suffix) < 12 else kept[:MAX_FILENAME]
        )
    return kept or "upload"


def clean_header(cell: str) -> str:
    """One header cell without control or format characters, trimmed, at most 200 characters."""
    spaced = re.sub(r"\s", " ", cell)
    visible = "".join(char for char in spaced if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    single = re.sub(r"\s+", " ", unicodedata.normalize("NFC", visible))
    return single.strip()[:MAX_COLUMN_NAME].strip()


def unique_names(cells: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
    """Column names for header cells: blank → column_3, a repeated one → name_2.

    Returns the names, the positions that were blank and the positions that were repeated.
    """
    cleaned = [clean_header(cell) for cell in cells]
    taken = {name for name in cleaned if name}
    used: set[str] = set()
    names: list[str] = []
    blank: list[int] = []
    repeated: list[int] = []
    for position, name in enumerate(cleaned):
        if not name:
            blank.append(position)
            name = _free(f"column_{position + 1}", taken | used)
        elif name in used:
            repeated.append(position)
            name = _free(name, taken | used)
        used.add(name)
        names.append(name)
    return names, blank, repeated


def _free(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
