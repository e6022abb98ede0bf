"""From typed columns to the arrays a network takes: codes for categories, tokens for texts, pixels for images.

What is fitted here is only vocabulary and units; centre, scale and quantiles are fitted per training
fold in `dlplatform.engine.statistics` and live in the network.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.fields import SEQUENTIAL
from dlplatform.engine.framing import Framing, framing_of
from dlplatform.engine.image_arrays import Pixels, Source, encode_images, suggested_shape
from dlplatform.engine.schema import NUMBER_LIKE, Column
from dlplatform.engine.table import Table, missing
from dlplatform.engine.tokens import Tokenizer, encode_rows, fit_tokenizer
from dlplatform.engine.transformers_config import longest_text
from dlplatform.engine.transformers_pixels import ImageProcessor
from dlplatform.engine.transformers_tokens import as_transformers_tokenizer

UNKNOWN: Final = 0
MISSING: Final = 1
SPECIAL: Final = 2
VOCABULARY_LIMIT: Final = 10_000
TEXT_BUCKETS: Final = 8192
TEXT_TOKENS: Final = 64
SAMPLED_TEXTS: Final = 2000
TEXT_CHARACTERS: Final = 8192
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
    tokens (n, X, L) int32 of hashed texts and sequences (n, S, L) int32 of texts in order, both with 0 for
    padding, and images (n, I, channels, side, side) uint8, black when missing."""

    numbers: Floats
    categories: Codes
    tokens: Codes
    sequences: Codes
    images: Pixels


@dataclass(frozen=True)
class InputSizes:
    """How many inputs of each kind, which fixes the shapes of a network.

    ``indicators``: positions of the numbers that get a missing-value indicator. ``vocabularies``: codes of
    each category column, the special ones included. ``texts``: hashed text columns. ``sequences``: text
    columns read in order, of at most ``sequence_length`` tokens of ``sequence_vocabulary`` codes.
    """

    numbers: int
    indicators: tuple[int, ...]
    vocabularies: tuple[int, ...]
    texts: int
    buckets: int = TEXT_BUCKETS
    tokens: int = TEXT_TOKENS
    sequences: int = 0
    sequence_length: int = 0
    sequence_vocabulary: int = 0
    images: int = 0
    image_channels: int = 0
    image_size: int = 0


@dataclass(frozen=True)
class ColumnCoding:
    """How one column becomes inputs: the unit of its number, its vocabulary, the tokens of its texts or the
    shape of its images. ``length``: tokens of a text that is read in order; 0 hashes it. ``framing``: how images are brought
    to their side; None letterboxes them."""

    column: Column
    offset: float = 0.0
    unit: float = 1.0
    nullable: bool = False
    vocabulary: tuple[str, ...] = ()
    length: int = 0
    channels: int = 0
    side: int = 0
    framing: Framing | None = None

    @cached_property
    def kind(self) -> str:
        """The array of `Inputs` that it goes into."""
        if self.width:
            return "numbers"
        if self.column.type == "text":
            return "sequences" if self.length else "tokens"
        return "images" if self.column.type == "image" else "categories"

    @cached_property
    def width(self) -> int:
        """Numeric inputs the column gives."""
        if self.column.type == "datetime":
            return 1 + 2 * len(CYCLES)
        return 1 if self.column.type in NUMBER_LIKE else 0


@dataclass(frozen=True)
class Preprocessor:
    """The fitted codings of all feature columns, in order, and the tokenizer of the texts read in order."""

    codings: tuple[ColumnCoding, ...]
    tokenizer: Tokenizer | None = None

    def transform(self, table: Table, beat: Beat = lambda: None, source: Source = bytes) -> Inputs:
        """Encode the feature columns of a table; ``beat`` is called between pieces of work, ``source`` reads images."""
        numbers, categories, others = [], [], {}
        for coding in self.codings:
            beat()
            values = table.columns[coding.column.name]
            if coding.kind == "numbers":
                numbers.append(encode_numbers(coding, np.asarray(values)))
            elif coding.kind == "categories":
                categories.append(encode_category(coding, values))
            else:
                others[coding.column.name] = values.to_pylist()
        return self.assembled(
            np.concatenate(numbers, axis=1) if numbers else np.zeros((table.rows, 0), np.float32),
            _stacked(categories, np.zeros((table.rows, 0), np.int32)),
            others,
            table.rows,
            beat,
            source,
        )

    def assembled(
        self,
        numbers: Floats,
        categories: Codes,
        others: Mapping[str, Any],
        rows: int,
        beat: Beat = lambda: None,
        source: Source = bytes,
    ) -> Inputs:
        """Encoded numbers and categories with texts and images, which are encoded here. ``others``: values by column, or
        the pixels of images as `encode_images` gives them."""
        encoded: dict[str, list[Any]] = {"tokens": [], "sequences": [], "images": []}
        for coding in self.codings:
            if coding.kind in encoded:
                encoded[coding.kind].append(self._encode(coding, others[coding.column.name], beat, source))
        sizes = self._sizes
        pixels = (rows, 0, sizes.image_channels, sizes.image_size, sizes.image_size)
        return Inputs(
            numbers=numbers,
            categories=categories,
            tokens=_stacked(encoded["tokens"], np.zeros((rows, 0, TEXT_TOKENS), np.int32)),
            sequences=_stacked(encoded["sequences"], np.zeros((rows, 0, sizes.sequence_length), np.int32)),
            images=_stacked(encoded["images"], np.zeros(pixels, np.uint8)),
        )

    def _encode(self, coding: ColumnCoding, values: Any, beat: Beat, source: Source) -> np.ndarray[Any, Any]:
        beat()
        if isinstance(values, np.ndarray):
            return values
        if coding.kind == "tokens":
            return encode_text(values, beat)
        if coding.kind == "images":
            return encode_images(values, coding.channels, coding.side, source, beat, coding.framing)
        assert self.tokenizer is not None
        return encode_rows(self.tokenizer, values, coding.length, beat)

    def sizes(self) -> InputSizes:
        """Shapes that `transform` gives."""
        return self._sizes

    @cached_property
    def _sizes(self) -> InputSizes:
        indicators, position = [], 0
        for coding in self.codings:
            if coding.width and coding.nullable:
                indicators.append(position)
            position += coding.width
        vocabularies = [len(each.vocabulary) + SPECIAL for each in self.codings if each.kind == "categories"]
        images = [each for each in self.codings if each.kind == "images"]
        lengths = [each.length for each in self.codings if each.kind == "sequences"]
        return InputSizes(
            position,
            tuple(indicators),
            tuple(vocabularies),
            sum(each.kind == "tokens" for each in self.codings),
            sequences=len(lengths),
            sequence_length=max(lengths, default=0),
            sequence_vocabulary=self.tokenizer.size if self.tokenizer and lengths else 0,
            images=len(images),
            image_channels=images[0].channels if images else 0,
            image_size=images[0].side if images else 0,
        )

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON form of the codings."""
        return [_coding_to_dict(each) for each in self.codings]

    @staticmethod
    def from_dict(raw: list[dict[str, Any]], tokenizer: Tokenizer | None = None) -> Preprocessor:
        """Read what `to_dict` wrote."""
        return Preprocessor(tuple(map(_coding_from_dict, raw)), tokenizer)


def _stacked(columns: list[Any], nothing: np.ndarray[Any, Any]) -> Any:
    """(n, …) arrays → (n, columns, …); a single one is not copied."""
    if not columns:
        return nothing
    return columns[0][:, None] if len(columns) == 1 else np.stack(columns, axis=1)


def _coding_to_dict(coding: ColumnCoding) -> dict[str, Any]:
    described = {
        "name": coding.column.name,
        "type": coding.column.type,
        "offset": coding.offset,
        "unit": coding.unit,
        "nullable": coding.nullable,
        "vocabulary": list(coding.vocabulary),
    }
    framing = coding.framing.to_dict() if coding.framing else None
    extra = {"length": coding.length, "channels": coding.channels, "side": coding.side, "framing": framing}
    return described | {name: value for name, value in extra.items() if value}


def _coding_from_dict(raw: dict[str, Any]) -> ColumnCoding:
    return ColumnCoding(
        Column(str(raw["name"]), str(raw["type"])),
        float(raw["offset"]),
        float(raw["unit"]),
        bool(raw["nullable"]),
        tuple(map(str, raw["vocabulary"])),
        int(raw.get("length", 0)),
        int(raw.get("channels", 0)),
        int(raw.get("side", 0)),
        framing_of(raw.get("framing")),
    )


def fit_preprocessor(
    table: Table,
    features: tuple[Column, ...],
    config: TrainingConfig | None = None,
    source: Source = bytes,
    tokenizer: Tokenizer | None = None,
    processor: ImageProcessor | None = None,
) -> Preprocessor:
    """Fit units, vocabularies, tokenizer and image shape on the given (training) rows.

    ``config`` has settled settings (see `dlplatform.engine.defaults.resolve`). ``tokenizer``: one that was fitted
    already, or that belongs to a pretrained model. ``processor``: how a pretrained model wants images.
    """
    config = config or TrainingConfig()
    codings = [_fit_coding(column, table) for column in features]
    texts = [column for column in features if column.type == "text"]
    fitted = None
    if texts and config.text_encoder in SEQUENTIAL:
        fitted = tokenizer or _fit_tokenizer(table, texts, config)
        length = _text_length(table, texts, fitted, config)
        codings = [replace(each, length=length) if each.column.type == "text" else each for each in codings]
    images = [column for column in features if column.type == "image"]
    if images:
        channels, side = _image_shape(table, images, config, source, processor)
        framing = processor.framing_for(side) if processor else None
        codings = [
            replace(each, channels=channels, side=side, framing=framing) if each.column.type == "image" else each
            for each in codings
        ]
    return Preprocessor(tuple(codings), fitted)


def _fit_tokenizer(table: Table, texts: list[Column], config: TrainingConfig) -> Tokenizer:
    content = (text for column in texts for text in table.columns[column.name].drop_null().to_pylist())
    size = config.vocabulary if isinstance(config.vocabulary, int) else max(512, min(8192, table.rows))
    return read_as(config, fit_tokenizer(content, config.tokenizer, size))


def read_as(config: TrainingConfig, tokenizer: Tokenizer) -> Tokenizer:
    """A fitted tokenizer as the network wants its codes, our own or one of the transformers library."""
    if config.text_model is None:
        return tokenizer
    return as_transformers_tokenizer(tokenizer, longest_text(config.text_model))


def _text_length(table: Table, texts: list[Column], tokenizer: Tokenizer, config: TrainingConfig) -> int:
    """Long enough for 95 % of the texts, at most what the tokenizer says, unless it was set."""
    if isinstance(config.text_length, int):
        return config.text_length
    lengths: list[int] = []
    for column in texts:
        sample = table.columns[column.name].drop_null()[:SAMPLED_TEXTS].to_pylist()
        lengths += map(len, tokenizer.encode([text[:TEXT_CHARACTERS] for text in sample]))
    needed = int(np.quantile(lengths, 0.95)) if lengths else 1
    return min(max(8, -(-needed // 8) * 8), tokenizer.longest)


def _image_shape(
    table: Table, images: list[Column], config: TrainingConfig, source: Source, processor: ImageProcessor | None
) -> tuple[int, int]:
    if processor is not None:
        return processor.channels, config.image_size if isinstance(config.image_size, int) else processor.side
    shapes = [suggested_shape(table.columns[column.name].to_pylist(), source) for column in images]
    side = config.image_size if isinstance(config.image_size, int) else max(side for _, side in shapes)
    return max(channels for channels, _ in shapes), side


def _fit_coding(column: Column, table: Table) -> ColumnCoding:
    values = table.columns[column.name]
    absent = missing(values)
    nullable = bool(absent.any())
    if column.type in ("text", "image"):
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
    return as_numbers(np.stack(parts, axis=1))


def as_numbers(values: np.ndarray[Any, Any]) -> Floats:
    """For the network: a prediction may hold a number that float32 cannot."""
    return values.clip(-1e30, 1e30).astype(np.float32, order="C")


def encode_category(coding: ColumnCoding, values: pa.StringArray) -> Codes:
    """(n,) strings to (n,) codes: unknown 0, missing 1, the vocabulary from 2 on."""
    found = pc.index_in(values, value_set=pa.array(coding.vocabulary, pa.string()))
    codes: Codes = np.asarray(pc.fill_null(found, UNKNOWN - SPECIAL), dtype=np.int32) + np.int32(SPECIAL)
    codes[missing(values)] = MISSING
    return codes


def encode_text(values: Sequence[str | None], beat: Beat) -> Codes:
    """(n,) strings to (n, L) hashed words and character trigrams, padded with 0."""
    encoded = np.zeros((len(values), TEXT_TOKENS), np.int32)
    for row, text in enumerate(values):
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
