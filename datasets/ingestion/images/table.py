"""The table of an archive: taken out, opened like an uploaded one, and the column found that names files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from datasets.ingestion.csv_source import CsvSource, FastPathFailed
from datasets.ingestion.images.layout import IMAGES
from datasets.ingestion.images.members import Archive, Member, MemberDamaged
from datasets.ingestion.images.naming import ABSENT, AMBIGUOUS, FileNames, comparable
from datasets.ingestion.images.source import texts
from datasets.ingestion.result import Detected, Findings, Rejected, counted, shown
from datasets.ingestion.sources import Batch, Source

CHUNK = 1 << 20
MOST_TABLES = 5
LOOKED_AT = 20_000  # rows in which the column is looked for
NAMING = 0.5  # the share of a column's values that must name files
MOST_LEFT_OUT = 1_000_000
NAMED_COLUMNS = ("text", "integer")

# (path, file name, detected) → the source of a plain table
OpenTable = Callable[[Path, Path, str, Detected], Source]


@dataclass(slots=True)
class NamingTable:
    """A table with the column that names files; `position` is that of the column."""

    member: Member
    source: Source
    position: int
    files: FileNames
    detected: Detected
    wanted: set[int] = field(default_factory=set)

    @property
    def column(self) -> str:
        return self.source.names[self.position]


@dataclass(slots=True)
class Unfit:
    """A table that cannot be the one; why."""

    member: Member
    problem: Rejected


def find_table(
    archive: Archive, tables: Sequence[Member], images: Sequence[Member], work: Path, open_table: OpenTable
) -> tuple[NamingTable | None, list[Unfit]]:
    """The one table that names files, and why the others do not. Raises Rejected when several do."""
    if len(tables) > MOST_TABLES:
        raise Rejected("ambiguous_table", f"The archive holds {len(tables):,} tables; leave the one that names files.")
    naming: list[NamingTable] = []
    unfit: list[Unfit] = []
    for member in tables:
        try:
            naming.append(_opened(archive, member, images, work, open_table))
        except Rejected as problem:
            if problem.problem.code == "ambiguous_file_column":
                raise
            unfit.append(Unfit(member, problem))
    if len(naming) > 1:
        names = ", ".join(shown(each.member.path, 80) for each in naming)
        raise Rejected(
            "ambiguous_table", f"Several tables name the files of the archive: {names}. Join them, or leave one."
        )
    return (naming[0] if naming else None), unfit


def _opened(
    archive: Archive, member: Member, images: Sequence[Member], work: Path, open_table: OpenTable
) -> NamingTable:
    folder = work / f"table-{member.place}"
    folder.mkdir()
    path = folder / "table"
    _take_out(archive, member, path)
    detected = Detected()
    source = open_table(path, folder, member.name, detected)
    files = FileNames.of(images, member)
    return NamingTable(member, source, _naming_column(source, files, member, len(images)), files, detected)


def _take_out(archive: Archive, member: Member, path: Path) -> None:
    """Under a name of ours. The sum of all sizes has been checked before."""
    with path.open("wb") as out:
        for _, read in archive.contents({member.place}):
            try:
                while chunk := read(CHUNK):
                    out.write(chunk)
            except MemberDamaged as error:
                sentence = f"{shown(member.path, 80)} cannot be unpacked ({error}). Make the archive anew."
                raise Rejected("damaged_archive", sentence) from error


# --- the column ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """How many of a column's values name files, how many do so with the file's ending, how many look like files, and
    which files are named.
    """

    values: int = 0
    named: int = 0
    written_out: int = 0
    like_files: int = 0
    places: set[int] = field(default_factory=set)

    @property
    def share(self) -> float:
        return self.named / self.values if self.values else 0.0

    @property
    def rank(self) -> int:
        """A name with its ending is surer than one without, which any number may be."""
        return 2 if 2 * self.written_out >= self.named else 1

    def names_most(self, images: int) -> bool:
        """Whether most of the archive's images are named, of those that the rows looked at can name."""
        return 2 * len(self.places) > min(images, LOOKED_AT)


def _naming_column(source: Source, files: FileNames, member: Member, images: int) -> int:
    tallies = {place: _Tally() for place in _possible(source)}
    rows = 0
    for batch in exactly(source):
        for place, tally in tallies.items():
            _count(batch.column(place), files, tally)
        rows += batch.num_rows
        if rows >= LOOKED_AT:
            break
    naming = {place: tally for place, tally in tallies.items() if tally.share >= NAMING}
    if not naming:
        raise _no_column(source, tallies, member)
    best = max(tally.rank for tally in naming.values())
    by_chance = best == 1 and not any(tally.names_most(images) for tally in naming.values())
    if by_chance and (lost := _lost_names(tallies, naming)) is not None:
        raise _no_column(source, tallies, member, lost)
    places = [place for place, tally in naming.items() if tally.rank == best]
    if len(places) > 1:
        names = " and ".join(shown(source.names[place]) for place in places)
        raise Rejected(
            "ambiguous_file_column",
            f"In {shown(member.path, 80)} the columns {names} all name files of the archive. Leave one of them.",
            column=source.names[places[1]],
        )
    return places[0]


def _lost_names(tallies: dict[int, _Tally], naming: dict[int, _Tally]) -> int | None:
    """A column of file names that are not in the archive: beside it, labels such as 0 and 1 name files by chance alone."""
    others = (place for place in tallies if place not in naming)
    return next((place for place in others if 2 * tallies[place].like_files > tallies[place].values), None)


def _possible(source: Source) -> list[int]:
    if not source.typed:
        return list(range(len(source.names)))
    return [place for place, kind in enumerate(source.kinds) if kind in NAMED_COLUMNS]


def _count(cells: Any, files: FileNames, tally: _Tally) -> None:
    counts = pc.value_counts(texts(cells).drop_null())
    for name, count in zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True):
        tally.values += count
        tally.like_files += count if _like_file(name) else 0
        if (place := files.place(name)) != ABSENT:
            tally.named += count
            tally.places |= {place} - {AMBIGUOUS}
            tally.written_out += count if files.is_written_out(name) else 0


def _like_file(name: str) -> bool:
    """Whether this is written as the name of an image: not a format such as `png`, and not a web address."""
    stem, _, ending = comparable(name).rpartition("/")[2].rpartition(".")
    return bool(stem) and ending in IMAGES and "://" not in name


def _no_column(
    source: Source, tallies: dict[int, _Tally], member: Member, nearest_place: int | None = None
) -> Rejected:
    """``nearest_place``: the column that was meant, if that is known; else the one with the largest share of files."""
    place = (
        nearest_place if nearest_place is not None else max(tallies, key=lambda each: tallies[each].share, default=None)
    )
    nearest = ""
    if place is not None and (tallies[place].named or nearest_place is not None):
        tally = tallies[place]
        nearest = f" The nearest is {shown(source.names[place])}: {tally.named:,} of {tally.values:,} values name one."
    return Rejected(
        "no_file_column",
        f"No column of {shown(member.path, 80)} names the files of the archive.{nearest} Add a column with their paths, "
        "such as “images/0001.jpg”.",
    )


def exactly(source: Source) -> Iterator[Batch]:
    """The batches of a source; a CSV file that its fast reader stumbles over is read from the start by the exact one."""
    if isinstance(source, CsvSource):
        try:
            for _ in source.batches():
                pass
        except FastPathFailed:
            source.exact = True
    yield from source.batches()


# --- the rows -----------------------------------------------------------------------------------------


def match_rows(table: NamingTable, images: Sequence[Member], findings: Findings) -> list[Member]:
    """The files that rows name. Rows whose file is missing, and files that no row names, are reported."""
    absent = record = 0
    for batch in table.source.batches():
        encoded = texts(batch.column(table.position)).dictionary_encode()
        places = np.array([table.files.place(name) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
        table.wanted |= {int(place) for place in places if place >= 0}
        absent += _report_absent(table, encoded, places, record, findings)
        record += batch.num_rows
        if absent > MOST_LEFT_OUT:
            raise Rejected("missing_files", f"More than {MOST_LEFT_OUT:,} rows name files that are not there.")
    _report_unnamed([member for member in images if member.place not in table.wanted], findings)
    return [member for member in images if member.place in table.wanted]


def _report_absent(table: NamingTable, encoded: Any, places: Any, first: int, findings: Findings) -> int:
    wrong = np.flatnonzero(places < 0)
    if not len(wrong):
        return 0
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    records = np.flatnonzero(np.isin(indices, wrong))
    for index in records.tolist():
        name = encoded.dictionary[int(indices[index])].as_py()
        ambiguous = places[indices[index]] == AMBIGUOUS
        _report_row(table, first + index, name, ambiguous, findings)
    return len(records)


def _report_row(table: NamingTable, record: int, name: str, ambiguous: bool, findings: Findings) -> None:
    row = table.source.row_number(record)
    code, why = (
        ("ambiguous_file", "several files have this name; write its path")
        if ambiguous
        else ("missing_file", "the archive has no such file")
    )
    findings.warn(
        code,
        f"Row {row}, column {shown(table.column)}: {shown(name, 80)}: {why}. The row was left out.",
        row=row,
        column=table.column,
        file=name[:200],
    )


def _report_unnamed(unnamed: Sequence[Member], findings: Findings) -> None:
    if unnamed:
        first = ", ".join(shown(member.path, 80) for member in unnamed[:3])
        findings.warn(
            "unnamed_files",
            f"{counted(len(unnamed), 'file is', 'files are')} named by no row, such as {first}, and left out.",
            file=unnamed[0].path,
        )
