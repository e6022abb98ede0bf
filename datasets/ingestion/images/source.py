"""Archives of images as sources of rows: what the folders say, or a table that names the files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.ingestion.images.extraction import Extracted, report_counts
from datasets.ingestion.images.layout import Folders, Placed
from datasets.ingestion.images.naming import FileNames
from datasets.ingestion.result import Findings, ImageFiles, Rejected, counted, shown
from datasets.ingestion.sources import Batch, Source, internal_names

BATCH_ROWS = 16_384
IMAGE, LABEL, FILE, SPLIT = "image", "label", "file", "split"
CLASSES_SHOWN = 8

Profile = dict[str, dict[str, Any]]


class ImageSource(ABC):
    """Rows with a column of images, whose files have been looked at and packed already."""

    names: list[str]
    blank: set[int]
    typed: bool
    kinds: list[str]
    delimiter: str | None
    image_column: str
    labels: frozenset[str] = frozenset()  # columns that are categories whatever their values look like

    def __init__(self, extracted: Extracted) -> None:
        self._extracted = extracted

    @property
    def files(self) -> ImageFiles:
        assert self._extracted.files is not None
        return self._extracted.files

    @abstractmethod
    def batches(self) -> Iterator[Batch]: ...

    @abstractmethod
    def row_number(self, record: int) -> int: ...

    @abstractmethod
    def fraction(self) -> float: ...

    def describe(self, profile: Profile, findings: Findings) -> None:
        """Fill in the profile of the images, and warn about what was seen in them."""
        summary = self._extracted.summary
        profile[self.image_column] |= summary.profile()
        report_counts(self._extracted, findings)
        if said := summary.unequal_sizes():
            findings.warn("unequal_sizes", said, column=self.image_column)

    def warn_about_labels(self, parts: Sequence[Path], label: str, findings: Findings) -> None:
        """Equal images with different labels, and classes with a single image."""
        table = pq.read_table(parts, columns=[self.image_column, label])
        self._warn_about_conflicts(table, label, findings)
        counts = pc.value_counts(table.column(label).drop_null())
        single = counts.field("values").filter(pc.equal(counts.field("counts"), 1)).to_pylist()
        if single and len(single) < len(counts):
            findings.warn(
                "single_image_class",
                f"Column {shown(label)}: {counted(len(single), 'class has', 'classes have')} one image only ({_listed(single)}). Add images of "
                "them, or leave them out: one image cannot be in training and validation data both.",
                column=label,
            )

    def _warn_about_conflicts(self, table: Any, label: str, findings: Findings) -> None:
        grouped = table.drop_null().group_by(self.image_column).aggregate([(label, "count_distinct")])
        conflicting = grouped.filter(pc.greater(grouped.column(f"{label}_count_distinct"), 1))
        if not conflicting.num_rows:
            return
        digest = conflicting.column(self.image_column)[0].as_py()
        values = table.filter(pc.equal(table.column(self.image_column), digest)).column(label)
        findings.warn(
            "conflicting_labels",
            f"{counted(conflicting.num_rows, 'image occurs', 'images occur')} with different values of {shown(label)}, such as "
            f"{shown(self._extracted.first_names[digest], 80)} ({_listed(values.drop_null().unique().to_pylist())}). "
            "Decide which is right.",
            column=label,
            file=self._extracted.first_names[digest],
        )


def _listed(values: Sequence[Any]) -> str:
    more = f" and {len(values) - CLASSES_SHOWN:,} more" if len(values) > CLASSES_SHOWN else ""
    return ", ".join(shown(value, 40) for value in values[:CLASSES_SHOWN]) + more


def require_usable(extracted: Extracted) -> None:
    """Raises Rejected when no image is left."""
    if not extracted.digests:
        raise Rejected(
            "no_usable_images",
            f"None of the images can be used, {counted(extracted.unusable, 'file')}; what is wrong is listed below. "
            "Save the images as PNG or JPEG and upload them again.",
        )


class FolderSource(ImageSource):
    """One row for each usable file, in the order of their paths: image, file, and label and split where there are any."""

    def __init__(self, folders: Folders, extracted: Extracted) -> None:
        super().__init__(extracted)
        kept = [each for each in folders.placed if each.member.place in extracted.digests]
        self._rows = sorted(kept, key=lambda each: each.member.path)
        columns = [FILE, *([SPLIT] if folders.has_splits else []), IMAGE, *([LABEL] if folders.has_labels else [])]
        self.names, self.kinds = columns, [IMAGE if name == IMAGE else "text" for name in columns]
        self.typed, self.blank, self.delimiter = True, set(), None
        self.image_column = IMAGE
        self.labels = frozenset({LABEL, SPLIT}) & set(columns)
        self._done = 0

    def batches(self) -> Iterator[Batch]:
        self._done = 0
        for start in range(0, len(self._rows), BATCH_ROWS):
            rows = self._rows[start : start + BATCH_ROWS]
            arrays = [pa.array([self._value(row, name) for row in rows], pa.string()) for name in self.names]
            self._done += len(rows)
            yield pa.RecordBatch.from_arrays(arrays, names=internal_names(len(arrays)))

    def _value(self, row: Placed, name: str) -> str | None:
        if name == IMAGE:
            return self._extracted.digests[row.member.place]
        return {FILE: row.member.path, LABEL: row.label, SPLIT: row.split}[name]

    def row_number(self, record: int) -> int:
        return record + 1

    def fraction(self) -> float:
        return self._done / max(len(self._rows), 1)

    def describe(self, profile: Profile, findings: Findings) -> None:
        super().describe(profile, findings)
        profile[FILE]["names"] = IMAGE  # a name is no property of what the picture shows
        unlabelled = [row.member.path for row in self._rows if row.label is None]
        if LABEL in self.names and unlabelled:
            findings.warn(
                "no_class_folder",
                f"{counted(len(unlabelled), 'image lies', 'images lie')} in no class folder, such as "
                f"{shown(unlabelled[0], 80)}, and has no label.",
                column=LABEL,
            )


class TableSource(ImageSource):
    """The rows of a table in which one column names files; rows whose file is missing or unusable are left out."""

    def __init__(self, inner: Source, position: int, names: FileNames, extracted: Extracted) -> None:
        super().__init__(extracted)
        self._inner, self._position, self._files = inner, position, names
        self.names, self.blank, self.typed, self.delimiter = inner.names, inner.blank, inner.typed, inner.delimiter
        self.kinds = [IMAGE if place == position else kind for place, kind in enumerate(inner.kinds)]
        self.image_column = inner.names[position]
        self._left_out: list[int] = []

    def batches(self) -> Iterator[Batch]:
        self._left_out = []
        record = 0
        for batch in self._inner.batches():
            digests, kept = self._translated(batch.column(self._position))
            self._left_out += [record + index for index in np.flatnonzero(~kept).tolist()]
            record += batch.num_rows
            arrays = [digests if place == self._position else column for place, column in enumerate(batch.columns)]
            replaced = pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
            yield replaced.filter(pa.array(kept))

    def _translated(self, cells: Any) -> tuple[Any, Any]:
        """(digests of the cells' images, which rows stay); an empty cell is a row without an image."""
        encoded = texts(cells).dictionary_encode()
        digests = [self._extracted.digests.get(self._files.place(name)) for name in encoded.dictionary.to_pylist()]
        known = pa.array(digests, pa.string()).take(encoded.indices)
        stays = pc.or_(pc.is_valid(known), pc.is_null(encoded))
        return known, stays.to_numpy(zero_copy_only=False)

    def row_number(self, record: int) -> int:
        """Counted in the table as it was sent."""
        left_out = np.array(self._left_out, dtype=np.int64)
        before = np.searchsorted(left_out - np.arange(len(left_out)), record, side="right")
        return self._inner.row_number(record + int(before))

    def fraction(self) -> float:
        return self._inner.fraction()

    def describe(self, profile: Profile, findings: Findings) -> None:
        super().describe(profile, findings)
        if self._left_out:
            findings.warn(
                "rows_left_out",
                f"{counted(len(self._left_out), 'row was', 'rows were')} left out, since the file is missing or cannot be used.",
                column=self.image_column,
            )


def texts(cells: Any) -> Any:
    """Cells as text with blank ones missing; identifiers may be numbers."""
    if not pa.types.is_string(cells.type):
        cells = pc.cast(cells, pa.string())
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(cells), ""), pa.scalar(None, pa.string()), cells)
