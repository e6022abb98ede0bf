"""From an archive to a source of rows: listed, its layout recognised, every image looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from datasets.ingestion.images.extraction import Extracted, extract_images
from datasets.ingestion.images.layout import Contents, read_folders, report_others, sort_members
from datasets.ingestion.images.members import Archive, Member, list_members
from datasets.ingestion.images.source import FolderSource, ImageSource, TableSource, require_usable
from datasets.ingestion.images.table import NamingTable, OpenTable, Unfit, find_table, match_rows
from datasets.ingestion.images.tar_archive import TarArchive
from datasets.ingestion.images.zip_archive import ZipArchive
from datasets.ingestion.limits import Limits
from datasets.ingestion.result import Detected, Findings, Rejected, shown

REPORTED_FILES = 1_000  # problems kept of an archive, where a table keeps a hundred

Progress = Callable[[float, str], None]


def open_images(
    source: Path,
    kind: str,
    work: Path,
    limits: Limits,
    findings: Findings,
    detected: Detected,
    on_progress: Progress,
    open_table: OpenTable,
) -> ImageSource:
    """Packs and index are written into `work`. Raises Rejected for what holds no usable images."""
    findings.capacity = max(findings.capacity, REPORTED_FILES)
    on_progress(0.0, "listing the files")
    archive: Archive = ZipArchive(source, limits) if kind == "zip" else TarArchive(source, findings)
    contents = sort_members(list_members(archive, source.stat().st_size, limits, findings))
    _require_images(contents)
    report_others(contents, findings)
    table, unfit = find_table(archive, contents.tables, contents.images, work, open_table)
    if table is not None:
        _report_tables(unfit, findings)
        return _by_table(archive, table, contents.images, work, findings, detected, on_progress)
    return _by_folders(archive, contents.images, unfit, work, findings, detected, on_progress)


def _require_images(contents: Contents) -> None:
    if contents.images:
        return
    if contents.tables:
        name = shown(contents.tables[0].path, 80)
        raise Rejected("archive_file", f"The archive holds no images. Unpack it and upload one table, such as {name}.")
    if contents.foreign:
        raise Rejected(
            "unknown_format",
            f"The archive holds no images of a known format; {shown(contents.foreign[0].path, 80)} is none. Convert "
            "them to PNG or JPEG.",
        )
    raise Rejected(
        "archive_file",
        "The archive holds no images, which come as PNG, JPEG, WebP, GIF, BMP or TIFF files. Unpack it if it holds a "
        "table, and upload that as one CSV, NDJSON or Parquet file.",
    )


def _by_table(
    archive: Archive,
    table: NamingTable,
    images: Sequence[Member],
    work: Path,
    findings: Findings,
    detected: Detected,
    on_progress: Progress,
) -> ImageSource:
    detected.layout = "table"
    detected.encoding, detected.delimiter = table.detected.encoding, table.detected.delimiter
    detected.quotechar, detected.header = table.detected.quotechar, table.detected.header
    named = match_rows(table, images, findings)
    extracted = extract_images(archive, named, work, findings, on_progress) if named else Extracted()
    require_usable(extracted)
    return TableSource(table.source, table.position, table.files, extracted)


def _by_folders(
    archive: Archive,
    images: Sequence[Member],
    unfit: Sequence[Unfit],
    work: Path,
    findings: Findings,
    detected: Detected,
    on_progress: Progress,
) -> ImageSource:
    folders = read_folders(images)
    if unfit and not folders.has_labels:
        raise unfit[0].problem
    _report_tables(unfit, findings)
    detected.layout = "folders" if folders.has_labels else "flat"
    if not folders.has_labels:
        findings.warn(
            "no_labels",
            "The images lie in no class folders and no table names them, so there is nothing to predict. Put the images "
            "of each class in a folder of its name, or add a CSV file with their paths and labels.",
        )
    extracted = extract_images(archive, images, work, findings, on_progress)
    require_usable(extracted)
    return FolderSource(folders, extracted)


def _report_tables(unfit: Sequence[Unfit], findings: Findings) -> None:
    for each in unfit:
        findings.warn(
            "table_ignored",
            f"{shown(each.member.path, 80)} was not used. {each.problem.problem.detail}",
            file=each.member.path,
        )
