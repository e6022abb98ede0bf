"""Rows sent as JSON to join those of a version: whether they fit its columns, and the columns they make.

A value must be written as its column's type: a number without quotes, a date as ISO 8601 text. The one thing a
column learns from added rows is fractions: an integer column becomes a number column. Everything else that does not
fit is an error of that row, for a single stray word would turn a column of numbers into text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from datasets.ingestion.dates import ISO_DATES
from datasets.ingestion.limits import Limits
from datasets.ingestion.names import clean_header
from datasets.ingestion.parts import ARROW_TYPES
from datasets.ingestion.result import Column, Findings, Problem, shown

Misfit = tuple[str, str]  # a code, and the rest of the sentence
LARGEST_INTEGER = 2**63 - 1
NAMES_SHOWN = 20


def misfits(rows: Sequence[Any], columns: Sequence[Column], limits: Limits) -> list[Problem]:
    """What keeps the rows from joining columns, in row order, at most `limits.problems`.

    Rows count from 1. Without columns, where no version is known yet, only what no version could hold is found.
    """
    findings = Findings(limits.problems)
    kinds = {column.name: column.type for column in columns}
    for number, row in enumerate(rows, start=1):
        for problem in _row_problems(number, row, kinds, limits):
            findings.add(problem)
        if findings.count >= limits.problems:
            return findings.listed()
    for column in columns:
        if column.type == "datetime":
            _check_dates(rows, column.name, findings)
    return sorted(findings.listed(), key=lambda problem: problem.row or 0)


def _row_problems(number: int, row: Any, kinds: dict[str, str], limits: Limits) -> Iterator[Problem]:
    if not isinstance(row, dict) or not row:
        found = "has no values" if row == {} else "is not an object"
        detail = f'Row {number} {found}. Write it as {{"column": value, …}}.'
        yield Problem(code="not_an_object" if row != {} else "empty_row", detail=detail, row=number)
        return
    for name, value in row.items():
        if kinds and name not in kinds:
            yield Problem(
                code="unknown_column", detail=_unknown(number, name, kinds), row=number, column=clean_header(name)
            )
            continue
        misfit = _misfit(value, kinds.get(name), limits) or _unwritable(name)
        if misfit is not None:
            code, text = misfit
            detail = f"Row {number}, column {shown(name)}: {text}"
            yield Problem(code=code, detail=detail, row=number, column=clean_header(name))


def _unknown(number: int, name: str, kinds: dict[str, str]) -> str:
    names = ", ".join(shown(known) for known in list(kinds)[:NAMES_SHOWN])
    more = ", …" if len(kinds) > NAMES_SHOWN else ""
    return (
        f"Row {number}: there is no column {shown(name)}. Columns: {names}{more}. Upload a new version to add a column."
    )


def _misfit(value: Any, kind: str | None, limits: Limits) -> Misfit | None:
    if value is None:
        return None
    if isinstance(value, dict | list):
        return "nested_value", "the value is a list or an object. Send one plain value for each column."
    if isinstance(value, str) and (found := _unwritable(value) or _too_long(value, limits)):
        return found
    if isinstance(value, float) and not math.isfinite(value):
        return "infinite_value", "the number is infinite. Send null for what is not known."
    return None if kind is None else CHECKS[kind](value)


def _unwritable(text: str) -> Misfit | None:
    if "\x00" in text:
        return "nul_byte", "the text holds a NUL character. Remove it."
    try:
        text.encode()
    except UnicodeEncodeError:
        return "invalid_text", "the text holds half a surrogate pair, which is no character. Remove it."
    return None


def _too_long(text: str, limits: Limits) -> Misfit | None:
    size = len(text.encode())
    if size <= limits.cell_bytes:
        return None
    return "cell_too_long", f"the text has {size:,} bytes, the limit is {limits.cell_bytes:,}. Shorten it."


def _check_number(value: Any) -> Misfit | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "wrong_type", f"{shown(value, 30)} is not a number. Write a number without quotes, or null."
    try:
        float(value)
    except OverflowError:
        return "number_too_large", "the number has more than 308 digits. Send a smaller one, or null."
    return None


def _check_boolean(value: Any) -> Misfit | None:
    if isinstance(value, bool):
        return None
    return "wrong_type", f"{shown(value, 30)} is neither true nor false. Write true, false or null without quotes."


def _check_text(value: Any) -> Misfit | None:
    if isinstance(value, str):
        return None
    return "wrong_type", f"{shown(value, 30)} is not text. Write it in quotes, or null."


def _check_date(value: Any) -> Misfit | None:
    """Whether the text is a date is asked for the whole column at once."""
    return None if isinstance(value, str) else _no_date(value)


def _no_date(value: Any) -> Misfit:
    return "wrong_type", f"{shown(value, 30)} is not a date. Write it as “2026-12-31” or “2026-12-31T23:59:00Z”."


CHECKS: dict[str, Callable[[Any], Misfit | None]] = {
    "number": _check_number,
    "integer": _check_number,
    "boolean": _check_boolean,
    "category": _check_text,
    "text": _check_text,
    "datetime": _check_date,
}


def _check_dates(rows: Sequence[Any], name: str, findings: Findings) -> None:
    texts = [row.get(name) if isinstance(row, dict) else None for row in rows]
    given = [(number, text) for number, text in enumerate(texts, start=1) if isinstance(text, str)]
    if not given:
        return
    parsed = ISO_DATES.parse(pa.array([text for _, text in given], pa.string()))
    for (number, text), date in zip(given, parsed, strict=True):
        if not date.is_valid:
            code, detail = _no_date(text)
            findings.error(code, f"Row {number}, column {shown(name)}: {detail}", row=number, column=name)


def widened(rows: Sequence[dict[str, Any]], columns: Sequence[Column], findings: Findings) -> list[Column]:
    """The columns after the rows have joined; a warning for each one whose type changes."""
    return [_widened(column, rows, findings) for column in columns]


def _widened(column: Column, rows: Sequence[dict[str, Any]], findings: Findings) -> Column:
    if column.type != "integer":
        return column
    for number, row in enumerate(rows, start=1):
        value = row.get(column.name)
        if value is not None and (value != int(value) or abs(value) > LARGEST_INTEGER):
            findings.warn(
                "type_widened",
                f"Column {shown(column.name)} held integers and became a number column, since row {number} of those "
                f"added holds {shown(value, 30)}.",
                row=number,
                column=column.name,
            )
            return replace(column, type="number")
    return column


def typed_batch(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> Any:
    """One record batch of rows that fit the columns; a column that a row leaves out is missing there."""
    arrays = [_typed([row.get(column.name) for row in rows], column.type) for column in columns]
    return pa.RecordBatch.from_arrays(arrays, names=[column.name for column in columns])


def _typed(values: list[Any], kind: str) -> Any:
    if kind == "datetime":
        return pc.cast(ISO_DATES.parse(pa.array(values, pa.string())), ARROW_TYPES[kind])
    if kind == "number":
        values = [None if value is None else float(value) for value in values]
    if kind == "integer":
        values = [None if value is None else int(value) for value in values]
    return pa.array(values, ARROW_TYPES[kind])
