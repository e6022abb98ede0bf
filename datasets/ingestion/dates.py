"""Dates and times written as text, a column at a time; everything becomes UTC microseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = Any

UTC = pa.timestamp("us", "UTC")
CLOCK = (
    r"(?:[T ,]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,]\d+)?)?"
    r"\s?(?P<half>[AaPp][Mm])?)?$"
)
NUMERIC_DATE = r"^(?P<first>\d{1,4})[-/.](?P<middle>\d{1,2})[-/.](?P<last>\d{1,4})" + CLOCK
DAY_MONTH_NAME = r"^(?P<day>\d{1,2})[ -](?P<month>[A-Za-z]{3,9})\.?[ -](?P<year>\d{4})" + CLOCK
MONTH_NAME_DAY = r"^(?P<month>[A-Za-z]{3,9})\.? (?P<day>\d{1,2}),? (?P<year>\d{4})" + CLOCK
ISO = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}(?::?\d{2}(?::?\d{2}(?:\.\d{1,9})?)?)?)?(?:Z|[+-]\d{2}(?::?\d{2})?)?$"
ZONE = r"\d{2}(?:\.\d+)?(?:Z|[+-]\d{2}(?::?\d{2})?)$"
MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class IsoDates:
    """ISO 8601, with or without a zone; without one it is taken as UTC."""

    key: str = "iso"
    kind: str = "datetime"

    def accepts(self, values: Array) -> bool:
        if _cast_iso(values) is not None:
            return True
        return bool(self.parse(values).null_count == values.null_count)

    def strict(self, values: Array) -> Array | None:
        return _cast_iso(values)

    def parse(self, values: Array) -> Array:
        """Null where a value is no ISO date or no day of the calendar."""
        whole = _cast_iso(values)
        if whole is not None:
            return whole
        matching = pc.if_else(pc.match_substring_regex(values, ISO), values, pa.scalar(None, pa.string()))
        matching = pc.replace_substring_regex(matching, r"(\.\d{6})\d+", r"\1")
        zoned = pc.and_(pc.match_substring_regex(matching, ZONE), pc.match_substring(matching, ":"))
        local = pc.if_else(zoned, pa.scalar(None, pa.string()), matching)
        offset = pc.if_else(zoned, matching, pa.scalar(None, pa.string()))
        return pc.coalesce(_cast_or_split(offset, UTC), pc.cast(_cast_or_split(local, pa.timestamp("us")), UTC))


@dataclass(frozen=True, slots=True)
class NumericDates:
    """Three numbers in the order `ymd`, `dmy` or `mdy`, with a four-digit year."""

    key: str
    kind: str = "datetime"

    def accepts(self, values: Array) -> bool:
        return bool(self.parse(values).null_count == values.null_count)

    def strict(self, values: Array) -> Array | None:
        return None

    def parse(self, values: Array) -> Array:
        fields = pc.extract_regex(values, NUMERIC_DATE)
        first, middle, last = (_integers(fields, name) for name in ("first", "middle", "last"))
        year, month, day = {
            "ymd": (first, middle, last),
            "dmy": (last, middle, first),
            "mdy": (last, first, middle),
        }[self.key]
        return _timestamps(year, month, day, fields)


@dataclass(frozen=True, slots=True)
class NamedMonthDates:
    """3 March 2024, 3-Mar-2024, March 3, 2024."""

    key: str
    pattern: str
    kind: str = "datetime"

    def accepts(self, values: Array) -> bool:
        return bool(self.parse(values).null_count == values.null_count)

    def strict(self, values: Array) -> Array | None:
        return None

    def parse(self, values: Array) -> Array:
        fields = pc.extract_regex(values, self.pattern)
        lowered = pc.utf8_lower(pc.struct_field(fields, "month"))
        full = pc.index_in(lowered, pa.array(MONTHS))
        short = pc.index_in(lowered, pa.array([name[:3] for name in MONTHS]))
        month = pc.add(pc.cast(pc.coalesce(full, short), pa.int64()), 1)
        year, day = _integers(fields, "year"), _integers(fields, "day")
        return _timestamps(year, pc.fill_null(month, 0).to_numpy(zero_copy_only=False), day, fields)


ISO_DATES = IsoDates()
YMD_DATES = NumericDates("ymd")
DMY_DATES = NumericDates("dmy")
MDY_DATES = NumericDates("mdy")
DAY_FIRST_NAMES = NamedMonthDates("day_month_name", DAY_MONTH_NAME)
MONTH_FIRST_NAMES = NamedMonthDates("month_name_day", MONTH_NAME_DAY)


def _cast_iso(values: Array) -> Array | None:
    """The whole array when all values are zoned, or none is; else None."""
    try:
        return pc.cast(pc.cast(values, pa.timestamp("us")), UTC)
    except pa.ArrowInvalid:
        pass
    try:
        return pc.cast(values, UTC)
    except pa.ArrowInvalid:
        return None


def _cast_or_split(values: Array, type_: Any) -> Array:
    """Cast; when a value is no day of the calendar (2023-02-30) halve until it stands alone as null."""
    try:
        return pc.cast(values, type_)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, type_)
    middle = len(values) // 2
    return pa.concat_arrays([_cast_or_split(values[:middle], type_), _cast_or_split(values[middle:], type_)])


def _integers(fields: Array, name: str) -> Any:
    """One captured field as int64; 0 where there is no match or the group is absent."""
    text = pc.struct_field(fields, name)
    text = pc.if_else(pc.equal(text, ""), pa.scalar("0"), text)
    return pc.fill_null(pc.cast(text, pa.int64()), 0).to_numpy(zero_copy_only=False)


def _timestamps(year: Any, month: Any, day: Any, fields: Array) -> Array:
    hour, minute, second = (_integers(fields, name) for name in ("hour", "minute", "second"))
    half = pc.fill_null(pc.utf8_lower(pc.struct_field(fields, "half")), "").to_numpy(zero_copy_only=False)
    valid = (year >= 1000) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    valid &= (hour < 24) & (minute < 60) & (second < 60) & ((half == "") | ((hour >= 1) & (hour <= 12)))
    valid &= pc.is_valid(fields).to_numpy(zero_copy_only=False)
    hour = np.where(half == "", hour, hour % 12 + np.where(half == "pm", 12, 0))
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0).astype("M8[M]")
    days = months.astype("M8[D]") + np.where(valid, day - 1, 0)
    valid &= days.astype("M8[M]") == months  # 31 April would roll over into May
    moments = days.astype("M8[s]") + hour * 3600 + minute * 60 + second
    return pc.cast(pa.array(moments.astype("M8[us]"), mask=~valid), UTC)
