"""What the paths in an archive mean: which files are images, which is the table, and which folders are classes.

Recognised are class folders (`cat/1.jpg`), class folders within split folders (`train/cat/1.jpg`), files beside one
table that names them, and files without any label. A folder around everything means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets.ingestion.images.members import Member
from datasets.ingestion.names import clean_header
from datasets.ingestion.result import Findings, shown

IMAGES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff"})
FOREIGN_IMAGES = frozenset(
    {"heic", "heif", "avif", "jxl", "jp2", "j2k", "svg", "psd", "raw", "cr2", "cr3", "nef", "arw", "dng", "orf", "ico",
     "ppm", "pgm", "pbm", "pnm", "tga", "exr", "hdr", "dcm", "nii", "mp4", "avi", "mov", "mkv", "webm"}
)  # fmt: skip
TABLES = frozenset({"csv", "tsv", "ndjson", "jsonl", "parquet", "pq"})
ARCHIVES = frozenset({"zip", "tar", "tgz", "gz", "bz2", "xz", "zst", "7z", "rar"})
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})
NAMES_SHOWN = 5


@dataclass(slots=True)
class Contents:
    """The files of an archive by what they are for."""

    images: list[Member] = field(default_factory=list)
    tables: list[Member] = field(default_factory=list)
    foreign: list[Member] = field(default_factory=list)
    archives: list[Member] = field(default_factory=list)
    ignored: list[Member] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Placed:
    """An image with what its path says. `label` and `split` are None where it says nothing."""

    member: Member
    label: str | None
    split: str | None


@dataclass(frozen=True, slots=True)
class Folders:
    """What the folders say about all images."""

    placed: list[Placed]
    has_labels: bool
    has_splits: bool


def sort_members(members: Sequence[Member]) -> Contents:
    """By their endings; a file without one may be an image, as in MNIST-like dumps, and is looked at."""
    contents = Contents()
    for member in members:
        _group_of(member.ending, contents).append(member)
    return contents


def _group_of(ending: str, contents: Contents) -> list[Member]:
    if ending in IMAGES or not ending or ending.isdigit():
        return contents.images
    if ending in TABLES:
        return contents.tables
    if ending in FOREIGN_IMAGES:
        return contents.foreign
    return contents.archives if ending in ARCHIVES else contents.ignored


def report_others(contents: Contents, findings: Findings) -> None:
    """Warnings about files that are passed over; of pictures in formats that are not read each by itself."""
    for member in contents.foreign:
        findings.warn(
            "unknown_format",
            f"{shown(member.path, 120)} has a format that is not read here; convert it to PNG or JPEG.",
            file=member.path,
        )
    for member in contents.archives:
        findings.warn(
            "nested_archive",
            f"{shown(member.path, 120)} is an archive within the archive and was passed over; unpack it first.",
            file=member.path,
        )
    if contents.ignored:
        findings.warn("ignored_files", f"{_named(contents.ignored)}: neither images nor a table; passed over.")


def _named(members: Sequence[Member]) -> str:
    names = ", ".join(shown(member.path, 80) for member in members[:NAMES_SHOWN])
    more = len(members) - NAMES_SHOWN
    return f"{names} and {more:,} more" if more > 0 else names


def read_folders(images: Sequence[Member]) -> Folders:
    """Classes and splits from the folders. The class is the outermost folder that tells images apart."""
    paths = _without_common([member.folders for member in images])
    names = {path[0].lower() if path else "" for path in paths}
    splits: list[str | None] = [None] * len(paths)
    if names <= SPLITS:
        splits = [path[0] if len(names) > 1 else None for path in paths]
        paths = _without_common([path[1:] for path in paths])
    labels = [clean_header(path[0]) or None if path else None for path in paths]
    placed = [Placed(*each) for each in zip(images, labels, splits, strict=True)]
    return Folders(placed, has_labels=any(labels), has_splits=any(splits))


def _without_common(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without the outermost folders that are the same for all images; a split folder says something."""
    shortest = min(len(path) for path in paths)
    for depth in range(shortest):
        names = {path[depth] for path in paths}
        if len(names) > 1 or next(iter(names)).lower() in SPLITS:
            return [path[depth:] for path in paths]
    return [path[shortest:] for path in paths]
