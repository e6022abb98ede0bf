"""The order of an ingestion: recognise, infer over the whole file, convert, store, profile, judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from datasets.ingestion.checks import probable_target, table_warnings
from datasets.ingestion.conversion import ColumnConverter
from datasets.ingestion.csv_source import CsvSource, FastPathFailed
from datasets.ingestion.extension import ExtendedSource, open_extension
from datasets.ingestion.images.source import ImageSource
from datasets.ingestion.inference import ColumnEvidence
from datasets.ingestion.limits import Limits
from datasets.ingestion.opening import open_source
from datasets.ingestion.parts import ARROW_TYPES, PartWriter
from datasets.ingestion.profile import TableProfiler
from datasets.ingestion.readings import (
    describe_conversion,
    describe_evidence,
    describe_written,
    forced_reading,
    typed_converter,
    written_columns,
)
from datasets.ingestion.result import (
    CHOOSABLE_TYPES,
    Base,
    Column,
    Detected,
    Findings,
    IngestResult,
    Part,
    Rejected,
    Reported,
)
from datasets.ingestion.sources import Source

Progress = Callable[[float, str], None]
INFER_SHARE = 0.4
IMAGES_SHARE = 0.9  # of the work on an archive, looking at its images


def ingest(
    source: Path,
    destination: Path,
    *,
    filename: str,
    content_type: str,
    limits: Limits,
    types: dict[str, str] | None = None,
    on_progress: Progress | None = None,
) -> IngestResult:
    """Ingest in this process; see `isolation.ingest_in_child` for the one to call on an uploaded file."""
    findings, detected = Findings(limits.problems), Detected()
    ingestion = _Ingestion(destination, limits, types or {}, on_progress or _silent, findings, detected)

    def opened() -> Source:
        return open_source(source, destination, filename, content_type, limits, findings, detected, ingestion.read)

    return _concluded(ingestion, source, opened)


def extend(
    source: Path, destination: Path, *, base: Base, limits: Limits, on_progress: Progress | None = None
) -> IngestResult:
    """Add the rows of `source`, one JSON object a line, to those of `base`; like `ingest` otherwise."""
    findings, detected = Findings(limits.problems), Detected(format="ndjson")
    ingestion = _Ingestion(destination, limits, {}, on_progress or _silent, findings, detected)
    return _concluded(ingestion, source, lambda: open_extension(source, base, limits, findings))


def _concluded(ingestion: _Ingestion, source: Path, opened: Callable[[], Source]) -> IngestResult:
    findings = ingestion.findings
    try:
        result = ingestion.run(opened())
    except Rejected as rejection:
        findings.add(rejection.problem)
        result = IngestResult(state="rejected")
    except Reported:
        result = IngestResult(state="rejected")
    finally:
        _remove_work(ingestion.destination)
    result.bytes = source.stat().st_size
    result.problems, result.problem_count = findings.listed(), findings.count
    result.detected = ingestion.detected
    return result


def _remove_work(destination: Path) -> None:
    for name in ("text.utf8", "staging.arrow"):
        (destination / name).unlink(missing_ok=True)
    for folder in destination.glob("table-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _silent(fraction: float, phase: str) -> None:
    return None


def _no_rows() -> Rejected:
    return Rejected(
        "no_rows",
        "The file has column names but no rows below them. Add at least one row and upload it again.",
    )


@dataclass(slots=True)
class _Ingestion:
    destination: Path
    limits: Limits
    types: dict[str, str]
    on_progress: Progress
    findings: Findings
    detected: Detected
    written: frozenset[str] = frozenset()  # kept as texts without anybody's choice
    reached: float = 0.0

    def report(self, fraction: float, phase: str) -> None:
        """Progress that never goes back, whatever the phases measure."""
        self.reached = max(self.reached, fraction)
        self.on_progress(self.reached, phase)

    def read(self, fraction: float, phase: str) -> None:
        """Progress of a format that is parsed, or of an archive that is gone through, while it is opened."""
        self.report((INFER_SHARE / 2 if phase == "reading" else IMAGES_SHARE) * fraction, phase)

    def run(self, source: Source) -> IngestResult:
        self._check_types(source.names)
        if not source.typed:
            self.written = written_columns(source.names) - self.types.keys()
            self.types = {**dict.fromkeys(self.written, "text"), **self.types}
        converters = self._converters(source)
        kept = [position for position, converter in enumerate(converters) if converter is not None]
        names = [source.names[position] for position in kept]
        chosen = [converter for converter in converters if converter is not None]
        stored_parts, stored_rows = _stored(source)
        rows, parts, profiler = self._convert(source, kept, names, chosen, stored_rows)
        if rows == 0:
            raise _no_rows()
        self.report(0.97, "profiling")
        for name, converter in zip(names, chosen, strict=True):
            describe_conversion(name, converter, source, self.findings)
        profile = profiler.finish()
        for name in names:
            profile[name]["type"] = self._final_type(name, profile[name], source)
        columns = [Column(name, profile[name]["type"], profile[name]["missing"] > 0) for name in names]
        if isinstance(source, ImageSource):
            self._describe_images(source, columns, profile, parts)
        table_warnings(columns, profile, profiler, self.findings)
        self.report(1.0, "done")
        return IngestResult(
            state="ready", rows=rows, columns=columns, parts=parts, profile=profile, kept=stored_parts,
            images=source.files if isinstance(source, ImageSource) else None,
        )  # fmt: skip

    def _describe_images(self, source: ImageSource, columns: list[Column], profile: Any, parts: list[Part]) -> None:
        source.describe(profile, self.findings)
        label = probable_target(columns, profile)
        if label is not None and profile[label]["type"] in ("category", "boolean"):
            source.warn_about_labels([self.destination / part.path for part in parts], label, self.findings)

    def _check_types(self, names: list[str]) -> None:
        for name, kind in self.types.items():
            if name not in names:
                raise Rejected("unknown_column", f"A type was chosen for a column the file does not have: {name!r}.")
            if kind not in CHOOSABLE_TYPES:
                raise Rejected(
                    "unknown_type",
                    f"{kind!r} is not a type; choose one of {', '.join(CHOOSABLE_TYPES)}.",
                    column=name,
                )

    def _converters(self, source: Source) -> list[ColumnConverter | None]:
        """A converter for every column; None for a nameless empty column, which is dropped."""
        if source.typed:
            return [
                typed_converter(name, kind, self.types.get(name))
                for name, kind in zip(source.names, source.kinds, strict=True)
            ]
        evidence = self._infer(source)
        converters: list[ColumnConverter | None] = []
        for position, (name, column) in enumerate(zip(source.names, evidence, strict=True)):
            if position in source.blank and not column.values:
                self.findings.warn(
                    "blank_column_dropped",
                    f"Column {position + 1} has no name and no values and was dropped. "
                    "Remove the extra delimiter from every line.",
                )
                converters.append(None)
                continue
            if isinstance(source, ImageSource) and name == source.image_column:
                converters.append(ColumnConverter.typed("image"))
                continue
            forced = self.types.get(name)
            reading = forced_reading(forced, column, source.delimiter) if forced else column.decide(source.delimiter)
            if not forced:
                describe_evidence(name, column, reading, source, self.findings)
            elif name in self.written:
                describe_written(name, column.decide(source.delimiter), self.findings)
            converters.append(ColumnConverter(reading, forced=forced is not None))
        return converters

    def _infer(self, source: Source) -> list[ColumnEvidence]:
        try:
            return self._evidence(source)
        except FastPathFailed:
            assert isinstance(source, CsvSource)
            source.exact = True
            return self._evidence(source)

    def _evidence(self, source: Source) -> list[ColumnEvidence]:
        evidence = [ColumnEvidence() for _ in source.names]
        first_record = 0
        for batch in source.batches():
            for column, values in zip(evidence, batch.columns, strict=True):
                column.observe(values, first_record)
            first_record += batch.num_rows
            self.report(INFER_SHARE * source.fraction(), "inferring types")
        if first_record == 0:
            raise _no_rows()
        if not any(column.values for column in evidence):
            raise Rejected("no_values", "Every cell of the file is empty. Check that the right file was exported.")
        return evidence

    def _convert(
        self, source: Source, kept: list[int], names: list[str], converters: list[ColumnConverter], stored: int
    ) -> tuple[int, list[Any], TableProfiler]:
        """Rows, parts and profile; the first `stored` rows are in parts already and are only profiled."""
        kinds = [converter.reading.kind for converter in converters]
        schema = pa.schema([(name, ARROW_TYPES[kind]) for name, kind in zip(names, kinds, strict=True)])
        writer = PartWriter(self.destination, schema)
        profiler = TableProfiler(names, kinds)
        begun = 0.0 if source.typed else INFER_SHARE
        rows = 0
        try:
            for batch in _filled(source.batches()):
                arrays = [
                    converter.convert(batch.column(position), rows)
                    for position, converter in zip(kept, converters, strict=True)
                ]
                typed = pa.RecordBatch.from_arrays(arrays, schema=schema)
                if rows >= stored:
                    writer.write(typed)
                profiler.observe(typed)
                rows += batch.num_rows
                self.report(begun + (0.96 - begun) * source.fraction(), "converting")
            return rows, writer.close(), profiler
        finally:
            writer.abandon()

    def _final_type(self, name: str, profile: dict[str, Any], source: Source) -> str:
        """Category and text are stored alike and told apart by how often values repeat."""
        forced = self.types.get(name)
        if isinstance(source, ImageSource) and name in source.labels:
            return "category"
        return forced if forced in ("category", "text") else str(profile["type"])


def _stored(source: Source) -> tuple[int, int]:
    """The parts, and the rows in them, with which the source begins and that need not be written again."""
    return (source.kept, source.kept_rows) if isinstance(source, ExtendedSource) else (0, 0)


def _filled(batches: Iterator[Any]) -> Iterator[Any]:
    return (batch for batch in batches if batch.num_rows)
