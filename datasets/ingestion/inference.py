"""The type of every text column, decided over the whole file.

A column starts with every reading alive; each batch kills the readings it contradicts. What survives to the
end decides, so a single word in row 900,000 demotes a column to text and loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from datasets.ingestion import booleans, dates, numerals

Array = Any

MISSING = (
    "",
    "NA",
    "N/A",
    "n/a",
    "<NA>",
    "#N/A",
    "#NA",
    "NULL",
    "Null",
    "null",
    "NaN",
    "nan",
    "NAN",
    "None",
    "-",
    "?",
)
_MISSING_ARRAY = pa.array(MISSING)
HEAD_ROWS = 64
OFFENDERS_KEPT = 5
MOSTLY = 0.75  # the share of numbers from which on the others look like mistakes
# A column this far from numeric is not examined for stray words any longer.
HOPELESS_VALUES = 2_000


class Reading(Protocol):
    """One way to read a text column."""

    @property
    def key(self) -> str: ...
    @property
    def kind(self) -> str: ...
    def accepts(self, values: Array) -> bool: ...
    def strict(self, values: Array) -> Array | None: ...
    def parse(self, values: Array) -> Array: ...


@dataclass(frozen=True, slots=True)
class Texts:
    """Everything reads as text."""

    key: str = "text"
    kind: str = "text"

    def accepts(self, values: Array) -> bool:
        return True

    def strict(self, values: Array) -> Array | None:
        return values

    def parse(self, values: Array) -> Array:
        return values


TEXTS = Texts()
READINGS: tuple[Reading, ...] = (
    booleans.TRUE_FALSE,
    booleans.YES_NO,
    booleans.T_F,
    booleans.Y_N,
    numerals.INTEGERS,
    numerals.NUMBERS,
    numerals.DECIMAL_COMMA_NUMBERS,
    numerals.THOUSANDS_NUMBERS,
    dates.ISO_DATES,
    dates.YMD_DATES,
    dates.DMY_DATES,
    dates.MDY_DATES,
    dates.DAY_FIRST_NAMES,
    dates.MONTH_FIRST_NAMES,
)
BY_KEY = {reading.key: reading for reading in READINGS}
# Readings that accept whatever the key accepts, so that they need no test of their own.
IMPLIED = {
    "integer": {"integer", "number", "decimal_comma", "thousands"},
    "number": {"number", "thousands"},
    "iso": {"iso"},
}


def cleaned(values: Array) -> Array:
    """Trimmed values with missing markers as null."""
    trimmed = pc.utf8_trim_whitespace(values)
    return without_markers(trimmed)


def without_markers(values: Array) -> Array:
    """Missing markers as null, everything else untouched."""
    marked = pc.is_in(values, _MISSING_ARRAY)
    return pc.if_else(marked, pa.scalar(None, pa.string()), values) if pc.any(marked).as_py() else values


@dataclass(slots=True)
class ColumnEvidence:
    """What is known of one column so far."""

    alive: list[Reading] = field(default_factory=lambda: list(READINGS))
    values: int = 0
    numeric: int = 0
    offenders: list[tuple[int, str]] = field(default_factory=list)
    leading_zero: bool = False
    overflow: bool = False
    letters: set[str] = field(default_factory=set)
    separators: set[str] = field(default_factory=set)

    def observe(self, raw: Array, first_record: int) -> None:
        """Take one batch of the column into account."""
        if not self.alive and self._hopeless():
            self.values += len(raw) - raw.null_count
            return
        if self._observe_numeric(raw):
            return
        values = cleaned(raw)
        present = len(values) - values.null_count
        if not present or self._observe_numeric(values):
            return
        self._eliminate(values)
        self._count_numeric(values, first_record)
        self.values += present
        self._note_details(values)

    def _hopeless(self) -> bool:
        return self.values - self.numeric > HOPELESS_VALUES and self.numeric < 0.5 * self.values

    def _observe_numeric(self, values: Array) -> bool:
        """The common case without cleaning: a column of integers or numbers stays one."""
        keys = {reading.key for reading in self.alive}
        for reading in (numerals.INTEGERS, numerals.NUMBERS):
            if reading.key in keys and len(values) > values.null_count and _head(values, reading):
                if not reading.accepts(values):
                    continue
                if reading is numerals.NUMBERS:
                    self._note_overflow(values, "integer" in keys)
                self._keep_implied(reading.key, values)
                self.values += len(values) - values.null_count
                self.numeric += len(values) - values.null_count
                return True
        return False

    def _keep_implied(self, key: str, values: Array) -> None:
        implied = IMPLIED[key]
        self.alive = [
            reading
            for reading in self.alive
            if reading.key in implied or (reading.key == "decimal_comma" and _accepts(reading, values))
        ]

    def _eliminate(self, values: Array) -> None:
        if any(reading.key == "iso" for reading in self.alive) and _accepts(dates.ISO_DATES, values):
            self.alive = [reading for reading in self.alive if reading.key == "iso"]
            return
        self.alive = [reading for reading in self.alive if _accepts(reading, values)]

    def _count_numeric(self, values: Array, first_record: int) -> None:
        if self._hopeless():
            return
        mask = numerals.numeric_mask(values)
        self.numeric += pc.sum(mask).as_py() or 0
        if len(self.offenders) < OFFENDERS_KEPT:
            others = pc.indices_nonzero(pc.and_kleene(pc.invert(mask), pc.is_valid(values)))
            for index in others[: OFFENDERS_KEPT - len(self.offenders)].to_pylist():
                self.offenders.append((first_record + index, values[index].as_py()))
        if not self.leading_zero:
            self.leading_zero = numerals.has_leading_zero(values)

    def _note_details(self, values: Array) -> None:
        keys = {reading.key for reading in self.alive}
        if keys & {"t_f", "y_n"}:
            self.letters |= {value.lower() for value in pc.unique(values).to_pylist() if value}
        if {"dmy", "mdy"} <= keys:
            self.separators |= {mark for mark in "/.-" if pc.any(pc.match_substring(values, mark)).as_py()}

    def _note_overflow(self, values: Array, integers_until_now: bool) -> None:
        if integers_until_now and not self.overflow:
            digits = pc.match_substring_regex(values, r"^[+-]?\d{19,}$")
            self.overflow = bool(pc.any(digits).as_py())

    def decide(self, delimiter: str | None) -> Reading:
        """The reading of the whole column; text when it holds nothing."""
        alive = {reading.key: reading for reading in self.alive}
        if not self.values:
            return TEXTS
        for key in ("t_f", "y_n"):
            # A column of nothing but "n" or "f" is as likely a code as an answer.
            if key in alive and len(self.letters) < 2:
                del alive[key]
        if {"decimal_comma", "thousands"} <= alive.keys() and "number" not in alive:
            del alive["thousands" if delimiter == ";" else "decimal_comma"]
        if {"dmy", "mdy"} <= alive.keys():
            del alive["dmy" if self.separators == {"/"} else "mdy"]
        return next((reading for reading in READINGS if reading.key in alive), TEXTS)

    def ambiguous_days(self) -> bool:
        """Whether day and month could be told apart nowhere in the column."""
        return {"dmy", "mdy"} <= {reading.key for reading in self.alive}

    def ambiguous_separators(self) -> bool:
        """Whether 1,234 could be a thousand or a decimal comma everywhere in the column."""
        keys = {reading.key for reading in self.alive}
        return {"decimal_comma", "thousands"} <= keys and "number" not in keys

    def mixed(self) -> bool:
        """Most of the values are numbers and the rest are not."""
        return bool(self.offenders) and self.numeric < self.values and self.numeric >= MOSTLY * self.values


def _head(values: Array, reading: Reading) -> bool:
    return reading.accepts(values[:HEAD_ROWS])


def _accepts(reading: Reading, values: Array) -> bool:
    """Most readings die on the first few values, which spares the whole array."""
    return reading.accepts(values[:HEAD_ROWS]) and reading.accepts(values)
