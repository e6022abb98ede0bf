"""Integers and decimal numbers written as text, a column at a time.

`accepts` answers whether every non-null value reads that way; `parse` gives null where one does not;
`strict` is the fast road for a column without blemish, None when there is none or it is not taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Array = Any

# 007 is a code, not seven; 0x1F is not a decimal number either.
LEADING_ZERO = r"^[+-]?0[0-9xX]"
PLAIN = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity|nan)$"
DECIMAL_COMMA = r"^[+-]?(?:\d{1,3}(?:[. \x{2019}']\d{3})+|\d+)?(?:,\d+)?(?:[eE][+-]?\d+)?$"
THOUSANDS = r"^[+-]?(?:\d{1,3}(?:[, \x{2019}']\d{3})+)(?:\.\d+)?$"


def has_leading_zero(values: Array) -> bool:
    """Whether a value such as 00123 occurs; the plain prefix test spares most columns the regular
    expression.
    """
    if not any(pc.any(pc.starts_with(values, prefix)).as_py() for prefix in ("0", "-0", "+0")):
        return False
    return bool(pc.any(pc.match_substring_regex(values, LEADING_ZERO)).as_py())


def try_cast(values: Array, type_: Any) -> Array | None:
    """The cast array, or None when a value does not read that way."""
    try:
        return pc.cast(values, type_)
    except pa.ArrowInvalid:
        return None


def keep_matching(values: Array, pattern: str) -> Array:
    """The values that match, null for the others."""
    return pc.if_else(pc.match_substring_regex(values, pattern), values, pa.scalar(None, pa.string()))


@dataclass(frozen=True, slots=True)
class Integers:
    """Whole numbers that fit 64 bits."""

    key: str = "integer"
    kind: str = "integer"

    def accepts(self, values: Array) -> bool:
        try:
            pc.cast(_unsigned(values), pa.int64())
        except pa.ArrowInvalid:
            return False
        return not has_leading_zero(values)

    def strict(self, values: Array) -> Array | None:
        return try_cast(values, pa.int64())

    def parse(self, values: Array) -> Array:
        try:
            return pc.cast(values, pa.int64())
        except pa.ArrowInvalid:
            matching = _unsigned(keep_matching(values, r"^[+-]?\d{1,18}$"))
            rest = keep_matching(_unsigned(values), r"^-?\d{19}$")
            return pc.coalesce(pc.cast(matching, pa.int64()), _cast_singly(rest))


@dataclass(frozen=True, slots=True)
class Numbers:
    """Decimal point, optional exponent."""

    key: str = "number"
    kind: str = "number"

    def accepts(self, values: Array) -> bool:
        try:
            pc.cast(values, pa.float64())
        except pa.ArrowInvalid:
            return False
        return not has_leading_zero(values)

    def strict(self, values: Array) -> Array | None:
        return try_cast(values, pa.float64())

    def parse(self, values: Array) -> Array:
        try:
            return pc.cast(values, pa.float64())
        except pa.ArrowInvalid:
            return pc.cast(keep_matching(values, PLAIN), pa.float64())


@dataclass(frozen=True, slots=True)
class GroupedNumbers:
    """Numbers with a decimal comma (1.234,5) or with separated thousands (1,234.5)."""

    key: str
    pattern: str
    grouping: str
    decimal: str
    kind: str = "number"

    def accepts(self, values: Array) -> bool:
        return pc.all(self._matches(values)).as_py() is not False and not has_leading_zero(values)

    def strict(self, values: Array) -> Array | None:
        return None

    def parse(self, values: Array) -> Array:
        matching = pc.if_else(self._matches(values), values, pa.scalar(None, pa.string()))
        bare = pc.replace_substring_regex(matching, self.grouping, "")
        return pc.cast(pc.replace_substring(bare, self.decimal, "."), pa.float64())

    def _matches(self, values: Array) -> Array:
        written = pc.match_substring_regex(values, self.pattern)
        plain = pc.match_substring_regex(values, r"^[+-]?\d+$" if self.decimal == "," else PLAIN)
        return pc.and_(pc.or_(written, plain), pc.match_substring_regex(values, r"\d"))


INTEGERS = Integers()
NUMBERS = Numbers()
DECIMAL_COMMA_NUMBERS = GroupedNumbers("decimal_comma", DECIMAL_COMMA, r"[. \x{2019}']", ",")
THOUSANDS_NUMBERS = GroupedNumbers("thousands", THOUSANDS, r"[, \x{2019}']", ".")


def numeric_mask(values: Array) -> Array:
    """True for values that read as a plain number, codes with leading zeros excluded."""
    return pc.and_not(pc.match_substring_regex(values, PLAIN), pc.match_substring_regex(values, LEADING_ZERO))


def _unsigned(values: Array) -> Array:
    """Without the plus sign, which Arrow's integer parser refuses."""
    if pc.any(pc.starts_with(values, "+")).as_py():
        return pc.replace_substring_regex(values, r"^\+", "")
    return values


def _cast_singly(values: Array) -> Array:
    """Nineteen digits may or may not fit 64 bits; there are few of them."""
    limit = 2**63
    numbers = [None if text is None or not -limit <= int(text) < limit else int(text) for text in values.to_pylist()]
    return pa.array(numbers, pa.int64())
