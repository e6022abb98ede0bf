"""What was decided about a column, told to the user."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from datasets.ingestion import booleans, dates, numerals
from datasets.ingestion.conversion import ColumnConverter
from datasets.ingestion.inference import TEXTS, ColumnEvidence, Reading
from datasets.ingestion.result import Findings, Rejected, shown
from datasets.ingestion.sources import Source

PROMPT_AND_COMPLETION: Final = frozenset({"prompt", "completion"})


def written_columns(names: Collection[str]) -> frozenset[str]:
    """Columns whose values are what somebody writes, whatever they look like: a prompt beside its completion. An answer “5” or
    “yes” is learnt by a language model as it is written."""
    return PROMPT_AND_COMPLETION if set(names) >= PROMPT_AND_COMPLETION else frozenset()


def forced_reading(kind: str, evidence: ColumnEvidence, delimiter: str | None) -> Reading:
    """The reading for a type the user chose; the evidence picks among several ways to write it."""
    decided = evidence.decide(delimiter)
    return decided if decided.kind == kind else DEFAULT_READINGS.get(kind, TEXTS)


DEFAULT_READINGS: dict[str, Reading] = {
    "boolean": booleans.ANY_BOOLEAN,
    "integer": numerals.INTEGERS,
    "number": numerals.NUMBERS,
    "datetime": dates.ISO_DATES,
}


def typed_converter(name: str, kind: str, chosen: str | None) -> ColumnConverter:
    """For a column that arrives typed, as from Parquet; raises Rejected when it cannot become what was
    chosen.
    """
    if chosen is None or chosen == kind or {chosen, kind} <= {"text", "category"}:
        return ColumnConverter.typed(kind)
    if kind == "text":
        return ColumnConverter(DEFAULT_READINGS[chosen], forced=True)
    if chosen in ("text", "category"):
        return ColumnConverter.typed("text")
    if (kind, chosen) in (("integer", "number"), ("boolean", "integer"), ("boolean", "number")):
        return ColumnConverter.typed(chosen)
    raise Rejected(
        "unknown_type",
        f"Column {shown(name)} is {kind} in the Parquet file and cannot become {chosen}. Choose {kind} or text.",
        column=name,
    )


def describe_evidence(
    name: str, evidence: ColumnEvidence, reading: Reading, source: Source, findings: Findings
) -> None:
    """Warnings about how the type of a column was decided."""
    if reading.kind == "text" and evidence.mixed():
        _describe_mixed(name, evidence, source, findings)
    if reading.kind == "text" and evidence.leading_zero and evidence.numeric < evidence.values:
        findings.warn(
            "leading_zeros",
            f"Column {shown(name)} holds codes such as 00123, whose leading zeros a number would lose; it "
            "is kept as text. If the zeros mean nothing, remove them in the file.",
            column=name,
        )
    if reading.kind == "number" and evidence.overflow:
        findings.warn(
            "integer_overflow",
            f"Column {shown(name)} holds integers beyond 64 bits; they became numbers with about 16 exact "
            "digits. If they are identifiers, write them with a letter in front, such as id-123.",
            column=name,
        )
    if reading.kind == "number" and evidence.ambiguous_separators():
        meaning = "1,234 is a decimal" if reading.key == "decimal_comma" else "1,234 is one thousand and more"
        findings.warn(
            "ambiguous_number",
            f"Column {shown(name)}: a comma could separate decimals or thousands; it was read so that "
            f"{meaning}. "
            "Write numbers with a decimal point and no separators to be sure.",
            column=name,
        )
    if reading.kind == "datetime" and evidence.ambiguous_days():
        order = "month before day" if reading.key == "mdy" else "day before month"
        findings.warn(
            "ambiguous_date",
            f"Column {shown(name)}: no date tells day and month apart; they were read {order}. "
            "Write dates as 2024-12-31 to be sure.",
            column=name,
        )


def describe_written(name: str, reading: Reading, findings: Findings) -> None:
    """A notice about a column of `written_columns` whose values would have been read as `reading`."""
    if reading.kind != "text":
        findings.warn(
            "kept_as_text",
            f"Column {shown(name)} stands beside its {_other(name)} and was kept as texts, though its values read as "
            f"{reading.kind}. If no language model is to write or read them, choose another type for it at upload.",
            column=name,
        )


def _other(name: str) -> str:
    return next(iter(PROMPT_AND_COMPLETION - {name}))


def _describe_mixed(name: str, evidence: ColumnEvidence, source: Source, findings: Findings) -> None:
    found = ", ".join(f"row {source.row_number(record)}: {shown(text, 30)}" for record, text in evidence.offenders)
    others = evidence.values - evidence.numeric
    findings.warn(
        "mixed_types",
        f"Column {shown(name)} is {100 * evidence.numeric / evidence.values:.1f} % numbers, but {others} of "
        f"{evidence.values} values are not ({found}), so it is kept as text. Correct them, or leave "
        "them empty to have them read as missing.",
        row=source.row_number(evidence.offenders[0][0]),
        column=name,
    )


def describe_conversion(name: str, converter: ColumnConverter, source: Source, findings: Findings) -> None:
    """Warnings about values that became missing."""
    if converter.marker_examples:
        findings.warn(
            "missing_markers",
            f"Column {shown(name)}: {converter.markers} cells such as "
            f"{', '.join(shown(text) for text in converter.marker_examples)} count as missing. "
            "If they are values, write them as words that no program takes for a gap.",
            column=name,
        )
    if converter.infinite:
        findings.warn(
            "infinite_values",
            f"Column {shown(name)}: {converter.infinite} infinite values count as missing, since no model "
            "can be "
            "fitted on them. Replace them with a large number if they mean one.",
            column=name,
        )
    if converter.unreadable:
        found = ", ".join(
            f"row {source.row_number(record)}: {shown(text, 30)}" for record, text in converter.unreadable_examples
        )
        findings.warn(
            "unreadable_values",
            f"Column {shown(name)}: {converter.unreadable} values do not read as {converter.reading.kind} "
            "and count "
            f"as missing ({found}). Correct them or choose another type.",
            row=source.row_number(converter.unreadable_examples[0][0]),
            column=name,
        )
    if converter.formulas:
        first = converter.formula_examples[0]
        findings.warn(
            "formula",
            f"Column {shown(name)}: {converter.formulas} cells look like spreadsheet formulas, first in row "
            f"{source.row_number(first[0])}: {shown(first[1], 30)}. They are kept as text and never run; "
            "exports put "
            "an apostrophe before them.",
            row=source.row_number(first[0]),
            column=name,
        )
