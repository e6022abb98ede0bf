"""From typed columns to the arrays a network takes: codes for categories, hashed tokens for texts.

What is fitted here is only vocabulary and units; centre, scale and quantiles are fitted per training
fold in `dlplatform.engine.statistics` and live in the network.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlplatform.engine.schema import NUMBER_LIKE, Column
from dlplatform.engine.table import Table, missing

UNKNOWN: Final = 0
MISSING: Final = 1
SPECIAL: Final = 2
VOCABULARY_LIMIT: Final = 10_000
TEXT_BUCKETS: Final = 8192
TEXT_TOKENS: Final = 64
DAY: Final = 86_400.0
YEAR: Final = 365.2425 * DAY
# 1970-01-01 was a Thursday: shifting by four days starts the week on a Sunday.
CYCLES: Final[dict[str, tuple[float, float]]] = {
    "day": (DAY, 0.0),
    "week": (7 * DAY, 4 * DAY),
    "year": (YEAR, 0.0),
}
_WORD: Final = re.compile(r"\w+")

Floats = np.ndarray[Any, np.dtype[np.float32]]
Codes = np.ndarray[Any, np.dtype[np.int32]]
Beat = Callable[[], None]


@dataclass(frozen=True)
class Inputs:
    """Rows ready for a network: numbers (n, D) float32 with NaN for missing, categories (n, C) int32,
    tokens (n, X, L) int32 with 0 for padding."""

    numbers: Floats
    categories: Codes
    tokens: Codes


@dataclass(frozen=True)
class InputSizes:
    """How many inputs of each kind, which fixes the shapes of a network.

    ``indicators``: positions of the numbers that get a missing-value indicator. ``vocabularies``: codes of
    each category column, the special ones included. ``texts``: text columns.
    """

    numbers: int
    indicators: tuple[int, ...]
    vocabularies: tuple[int, ...]
    texts: int
    buckets: int = TEXT_BUCKETS
    tokens: int = TEXT_TOKENS

    @property
    def total(self) -> int:
        """Number of inputs of any kind."""
        return self.numbers + len(self.indicators) + len(self.vocabularies) + self.texts


@dataclass(frozen=True)
class ColumnCoding:
    """How one column becomes inputs: the unit of its number, or its vocabulary."""

    column: Column
    offset: float = 0.0
    unit: float = 1.0
    nullable: bool = False
    vocabulary: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Numeric inputs the column gives."""
        if self.column.type == "datetime":
            return 1 + 2 * len(CYCLES)
        return 1 if self.column.type in NUMBER_LIKE else 0


@dataclass(frozen=True)
class Preprocessor:
    """The fitted codings of all feature columns, in order."""

    codings: tuple[ColumnCoding, ...]

    def transform(self, table: Table, beat: Beat = lambda: None) -> Inputs:
        """Encode the feature columns of a table; ``beat`` is called between pieces of work."""
        numbers, categories, tokens = [], [], []
        for coding in self.codings:
            beat()
            values = table.columns[coding.column.name]
            if coding.width:
                numbers.append(encode_numbers(coding, np.asarray(values)))
            elif coding.column.type == "category":
                categories.append(encode_category(coding, values))
            else:
                tokens.append(encode_text(values, beat))
        return Inputs(
            numbers=np.concatenate(numbers, axis=1) if numbers else np.zeros((table.rows, 0), np.float32),
            categories=np.stack(categories, axis=1) if categories else np.zeros((table.rows, 0), np.int32),
            tokens=np.stack(tokens, axis=1) if tokens else np.zeros((table.rows, 0, TEXT_TOKENS), np.int32),
        )

    def sizes(self) -> InputSizes:
        """Shapes that `transform` gives."""
        indicators, position = [], 0
        for coding in self.codings:
            if coding.width and coding.nullable:
                indicators.append(position)
            position += coding.width
        vocabularies = [len(each.vocabulary) + SPECIAL for each in self.codings if each.column.type == "category"]
        texts = sum(coding.column.type == "text" for coding in self.codings)
        return InputSizes(position, tuple(indicators), tuple(vocabularies), texts)

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON form."""
        return [
            {
                "name": each.column.name,
                "type": each.column.type,
                "offset": each.offset,
                "unit": each.unit,
                "nullable": each.nullable,
                "vocabulary": list(each.vocabulary),
            }
            for each in self.codings
        ]

    @staticmethod
    def from_dict(raw: list[dict[str, Any]]) -> Preprocessor:
        """Read what `to_dict` wrote."""
        return Preprocessor(
            tuple(
                ColumnCoding(
                    Column(str(each["name"]), str(each["type"])),
                    float(each["offset"]),
                    float(each["unit"]),
                    bool(each["nullable"]),
                    tuple(map(str, each["vocabulary"])),
                )
                for each in raw
            )
        )


def fit_preprocessor(table: Table, features: tuple[Column, ...]) -> Preprocessor:
    """Fit units and vocabularies on the given (training) rows."""
    return Preprocessor(tuple(_fit_coding(column, table) for column in features))


def _fit_coding(column: Column, table: Table) -> ColumnCoding:
    values = table.columns[column.name]
    absent = missing(values)
    nullable = bool(absent.any())
    if column.type == "text":
        return ColumnCoding(column, nullable=nullable)
    if column.type == "category":
        return ColumnCoding(column, nullable=nullable, vocabulary=_vocabulary(values))
    present = np.asarray(values)[~absent]
    if not len(present):
        return ColumnCoding(column, nullable=nullable)
    # An affine change of unit keeps float32 exact enough for large numbers (years, identifiers); the
    # normalisation proper is fitted per fold and does not depend on it.
    offset = float(np.median(present))
    unit = float(np.max(np.abs(present - offset)))
    return ColumnCoding(column, offset, unit if np.isfinite(unit) and unit > 0 else 1.0, nullable)


def _vocabulary(values: pa.StringArray) -> tuple[str, ...]:
    """Values by falling frequency, then alphabetically."""
    counts = pc.value_counts(values.drop_null())
    pairs = zip(counts.field("counts").to_pylist(), counts.field("values").to_pylist(), strict=True)
    ordered = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    return tuple(value for _, value in ordered[:VOCABULARY_LIMIT])


def encode_numbers(coding: ColumnCoding, values: np.ndarray[Any, Any]) -> Floats:
    """(n,) values to (n, width) inputs: the value in its unit and, for datetimes, three cycles."""
    parts = [(values - coding.offset) / coding.unit]
    if coding.column.type == "datetime":
        for period, shift in CYCLES.values():
            angle = (values + shift) % period * (2 * np.pi / period)
            parts += [np.sin(angle), np.cos(angle)]
    # A prediction may hold a number that float32 cannot.
    return np.clip(np.stack(parts, axis=1), -1e30, 1e30).astype(np.float32)


def encode_category(coding: ColumnCoding, values: pa.StringArray) -> Codes:
    """(n,) strings to (n,) codes: unknown 0, missing 1, the vocabulary from 2 on."""
    found = pc.index_in(values, value_set=pa.array(coding.vocabulary, pa.string()))
    codes: Codes = np.asarray(pc.fill_null(found, UNKNOWN - SPECIAL), dtype=np.int32) + np.int32(SPECIAL)
    codes[missing(values)] = MISSING
    return codes


def encode_text(values: pa.StringArray, beat: Beat) -> Codes:
    """(n,) strings to (n, L) hashed words and character trigrams, padded with 0."""
    encoded = np.zeros((len(values), TEXT_TOKENS), np.int32)
    for row, text in enumerate(values.to_pylist()):
        if text:
            tokens = tokenize(text)
            encoded[row, : len(tokens)] = tokens
        if row % 4096 == 0:
            beat()
    return encoded


def tokenize(text: str) -> list[int]:
    """Distinct buckets (from 1 on) of the words and then of their trigrams, at most `TEXT_TOKENS`."""
    words = list(dict.fromkeys(_WORD.findall(text[:2048].lower())))[:TEXT_TOKENS]
    grams = [f"<{word}>"[start : start + 3] for word in words for start in range(len(word))]
    pieces = dict.fromkeys([*(f"w:{word}" for word in words), *(f"g:{gram}" for gram in grams)])
    buckets = (zlib.crc32(piece.encode()) % (TEXT_BUCKETS - 1) + 1 for piece in pieces)
    return list(dict.fromkeys(buckets))[:TEXT_TOKENS]
