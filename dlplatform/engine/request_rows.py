"""Rows of a request: JSON values, checked and encoded as the network takes them.

The values become what `preprocessing.Preprocessor.transform` makes of the same values in a table, without tables in between:
for a request of one row these cost ten times as much as the network.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.image_arrays import Pixels, image_array, room
from dlplatform.engine.images import ImageError, is_light, upright
from dlplatform.engine.preprocessing import (
    MISSING,
    SPECIAL,
    UNKNOWN,
    Codes,
    ColumnCoding,
    Floats,
    Inputs,
    Preprocessor,
    as_numbers,
    encode_numbers,
)
from dlplatform.engine.schema import STRING_LIKE

Instances = Sequence[Mapping[str, Any]]


class _TooHeavy(Exception):
    """Nobody knows how long such a row takes."""


class RequestRows:
    """Reads rows for one preprocessor. ``ignored``: columns that may be there and are not looked at."""

    def __init__(self, preprocessor: Preprocessor, ignored: Collection[str | None] = ()) -> None:
        self._preprocessor = preprocessor
        self._codings = preprocessor.codings
        self._columns = {each.column.name for each in self._codings}
        self._accepted: set[str | None] = {*self._columns, *ignored}
        self._required = [each.column.name for each in self._codings if not each.nullable]
        self._numbers = [each for each in self._codings if each.kind == "numbers"]
        self._plain = all(each.width == 1 for each in self._numbers)
        self._offsets = np.array([each.offset for each in self._numbers])
        self._units = np.array([each.unit for each in self._numbers])
        self._codes = [
            (each, {value: code for code, value in enumerate(each.vocabulary, SPECIAL)})
            for each in self._codings if each.kind == "categories"
        ]  # fmt: skip
        self._others = [each for each in self._codings if each.kind not in ("numbers", "categories")]

    @property
    def steady(self) -> bool:
        """Whether it is known how long a row may take: numbers and categories take the same time whatever they are, and images
        no longer than `example` where they are `light`."""
        return all(each.kind == "images" for each in self._others)

    @property
    def plain(self) -> bool:
        """Whether all are numbers and categories."""
        return not self._others

    def example(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """A row that takes as long as any that is `light`. ``told``: an example of each column that is no image."""
        return {**told, **{each.column.name: _noise(each) for each in self._others if each.kind == "images"}}

    def light(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        """The rows, images as the bytes of their files, if all images are of no more pixels than the network looks at;
        else None, also where something is wrong with them."""
        try:
            return [self._light(row, instance) for row, instance in enumerate(instances)]
        except (_TooHeavy, PredictionInputError):
            return None

    def _light(self, row: int, instance: dict[str, Any]) -> dict[str, Any]:
        found = dict(instance)
        for each in self._others:
            name = each.column.name
            content = _image_content(row, name, found.get(name))
            if content is not None:
                if not is_light(content, each.side**2):
                    raise _TooHeavy
                found[name] = content
        return found

    def inputs(self, instances: Instances) -> Inputs:
        """Raises PredictionInputError."""
        for row, instance in enumerate(instances):
            self._check_names(row, instance)
        # One column after the other, in the order of the model: of several faults the same one is told as for a table.
        values = {each.column.name: self._values(each, instances) for each in self._codings}
        others = {each.column.name: values[each.column.name] for each in self._others}
        return self._preprocessor.assembled(
            self._encoded_numbers(values, len(instances)), self._encoded_categories(values, len(instances)), others,
            len(instances),
        )  # fmt: skip

    def _values(self, coding: ColumnCoding, instances: Instances) -> Any:
        name, type_ = coding.column.name, coding.column.type
        if type_ == "image":
            return _pixels(coding, instances)
        return [parse_value(row, name, type_, each.get(name)) for row, each in enumerate(instances)]

    def _encoded_numbers(self, values: dict[str, Any], rows: int) -> Floats:
        """(n, D) as `encode_numbers` gives for each column."""
        columns = [values[each.column.name] for each in self._numbers]
        if not columns:
            return np.zeros((rows, 0), np.float32)
        if self._plain:
            return as_numbers((np.array(columns, np.float64).T - self._offsets) / self._units)
        parts = [
            encode_numbers(each, np.array(column, np.float64))
            for each, column in zip(self._numbers, columns, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def _encoded_categories(self, values: dict[str, Any], rows: int) -> Codes:
        """(n, C) as `encode_category` gives for each column."""
        codes = np.zeros((rows, len(self._codes)), np.int32)
        for column, (coding, known) in enumerate(self._codes):
            codes[:, column] = [
                MISSING if value is None else known.get(value, UNKNOWN) for value in values[coding.column.name]
            ]
        return codes

    def _check_names(self, row: int, instance: Any) -> None:
        if not isinstance(instance, Mapping):
            raise PredictionInputError(row, None, "not_an_object", "A row must be an object of column values.")
        for name in instance:
            if name not in self._accepted:
                shown = str(name)[:80]
                known = ", ".join(sorted(self._columns)[:20])
                message = f"The model has no column {shown!r}; its columns are {known}."
                raise PredictionInputError(row, shown, "unknown_column", message)
        for name in self._required:
            if name not in instance:
                message = f"The column {name!r} is missing; give a value, or null if it is unknown."
                raise PredictionInputError(row, name, "missing_column", message)


def _pixels(coding: ColumnCoding, instances: Instances) -> Pixels:
    """(n, channels, side, side), black where there is no image. Each is decoded once: to see whether it is one is most of
    the work."""
    name = coding.column.name
    array = room((len(instances), coding.channels, coding.side, coding.side))
    for row, instance in enumerate(instances):
        content = _image_content(row, name, instance.get(name))
        if content is not None:
            try:
                array[row] = image_array(upright(content), coding.channels, coding.side, coding.framing)
            except ImageError as error:
                raise PredictionInputError(row, name, "bad_image", f"The column {name!r}: {error}") from None
    return array


def _noise(coding: ColumnCoding) -> bytes:
    """A PNG that is as hard to decode as any of its size, and has to be brought to the size of the network."""
    shape = (coding.side - 1, coding.side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels if coding.channels == 3 else pixels[..., 0]).save(file, "PNG")
    return file.getvalue()


def _image_content(row: int, name: str, value: Any) -> bytes | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, bytes) else _from_base64(row, name, value)


def parse_value(row: int, name: str, type_: str, value: Any) -> float | str | None:
    """A JSON value as it is stored for its column type: a float (NaN for missing), a string or None.

    Raises PredictionInputError with a code of wrong_type, bad_number or bad_datetime.
    """
    if value is None:
        return None if type_ in STRING_LIKE else math.nan
    if type_ in STRING_LIKE:
        return _parse_string(row, name, value)
    if type_ == "datetime":
        return _parse_datetime(row, name, value)
    return _parse_number(row, name, type_, value)


def _parse_string(row: int, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise PredictionInputError(row, name, "wrong_type", f"The column {name!r} takes a string.")


def _from_base64(row: int, name: str, value: Any) -> bytes:
    message = f"The column {name!r} takes an image file in base64, or a data URL."
    if not isinstance(value, str):
        raise PredictionInputError(row, name, "wrong_type", message)
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:
        raise PredictionInputError(row, name, "bad_image", message) from None


_BOOLEANS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "1": 1.0, "0": 0.0}


def _parse_number(row: int, name: str, type_: str, value: Any) -> float:
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return math.nan
        if type_ == "boolean" and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        try:
            value = float(text)
        except ValueError:
            kind = "true or false" if type_ == "boolean" else "a number"
            message = f"The column {name!r} takes {kind}, not {text[:40]!r}."
            raise PredictionInputError(row, name, "bad_number", message) from None
    if not isinstance(value, int | float):
        raise PredictionInputError(row, name, "wrong_type", f"The column {name!r} takes a number.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise PredictionInputError(row, name, "bad_number", f"The column {name!r} takes a finite number.")
    return number


def _parse_datetime(row: int, name: str, value: Any) -> float:
    """Seconds since 1970; a time without a zone is UTC."""
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, str):
        if not value.strip():
            return math.nan
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            message = f"The column {name!r} takes a date or time such as 2026-03-01T12:00:00Z."
            raise PredictionInputError(row, name, "bad_datetime", message) from None
    else:
        raise PredictionInputError(row, name, "wrong_type", f"The column {name!r} takes a date or time as text.")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
