"""Predictions from a package: load once, answer batches."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dlplatform.engine import package
from dlplatform.engine.errors import EngineError, PredictionInputError
from dlplatform.engine.image_arrays import Source, source_in
from dlplatform.engine.images import ImageError, decode
from dlplatform.engine.language import LanguageNetwork
from dlplatform.engine.preprocessing import Inputs
from dlplatform.engine.runners import GraphRunner, Runner, torch_runner
from dlplatform.engine.schema import STRING_LIKE
from dlplatform.engine.table import Table, Values
from dlplatform.engine.writer import Writer


class Predictor:
    """A loaded model package. Safe to share between threads that only predict."""

    def __init__(self, directory: Path, images: Path | None = None, *, sandboxed: bool = False) -> None:
        """Verify and load a package. ``images``: where tables' images lie, as in a job directory. ``sandboxed``: this
        process is a sandbox, in which code that came with the package may be run.

        Raises PackageError.
        """
        self._source: Source = source_in(images) if images else bytes
        self.writer: Writer | None = None
        self.network: Any = None
        loaded = self._loaded(Path(directory), sandboxed)
        self.description = loaded.description
        self._preprocessor = loaded.preprocessor
        self._codings = loaded.preprocessor.codings
        self._columns = {each.column.name for each in self._codings}
        self._accepted = self._columns | {self.description.get("target"), *self.description.get("targets", ())}

    def _loaded(self, directory: Path, sandboxed: bool) -> package.Package | package.GraphPackage:
        """The package; sets what answers: ``run``, or ``writer`` for texts."""
        if package.is_graph(directory):
            graph = package.load_graph(directory)
            self.run: Runner = GraphRunner(graph.session)
            return graph
        loaded = package.load(directory, sandboxed=sandboxed)
        self.network = loaded.network
        if isinstance(loaded.network, LanguageNetwork):
            assert loaded.preprocessor.tokenizer is not None
            self.writer = Writer(loaded.network, loaded.preprocessor.tokenizer)
        else:
            self.run = torch_runner(loaded.network, loaded.description)
        return loaded

    def encode(self, table: Table) -> Inputs:
        """The rows of a typed table as the network takes them. Raises EngineError for images that cannot be read."""
        return self._preprocessor.transform(table, source=self._source)

    def predict(self, instances: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One answer for each row: {"label", "probabilities": {label: p}}, {"labels", "probabilities"}, {"value"}
        or {"values": {target: number}}.

        An image is its file's content in base64, or a data URL. A value of None is missing and filled as fitted; a column may be left out when the training data
        had missing values in it. The target column is accepted and ignored. Raises PredictionInputError.
        """
        if not instances:
            return []
        if self.writer is not None:
            return [{"text": "".join(self.writer.stream(row, each))} for row, each in enumerate(instances)]
        table = self._table(instances)
        return self._answers(self.predict_table(table))

    def predict_table(self, table: Table) -> np.ndarray[Any, Any]:
        """(n, K) probabilities, or values in the targets' units, for a typed table. Raises EngineError for images
        that cannot be read, and for models that answer no tables."""
        if self.writer is not None:
            raise EngineError("bad_data", "A language model does not answer tables of rows.")
        predicted: np.ndarray[Any, Any] = self.run(self.encode(table)).mean(0)
        output = self.description["output"]
        if output["kind"] in ("number", "numbers"):
            predicted = predicted * np.array(output["unit"]) + np.array(output["offset"])
        return predicted

    def _answers(self, predicted: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
        output = self.description["output"]
        if output["kind"] == "number":
            return [{"value": float(value)} for value in predicted[:, 0]]
        classes = output["classes"]
        if output["kind"] == "numbers":
            return [{"values": dict(zip(classes, row.tolist(), strict=True))} for row in predicted]
        if output["kind"] == "labels":
            return [
                {
                    "labels": [name for name, share in zip(classes, row, strict=True) if share >= 0.5],
                    "probabilities": dict(zip(classes, row.tolist(), strict=True)),
                }
                for row in predicted
            ]
        return [
            {
                "label": classes[int(row.argmax())],
                "probabilities": dict(zip(classes, row.tolist(), strict=True)),
            }
            for row in predicted
        ]

    def _table(self, instances: Sequence[Mapping[str, Any]]) -> Table:
        for row, instance in enumerate(instances):
            self._check_names(row, instance)
        columns: dict[str, Values] = {}
        for coding in self._codings:
            name, type_ = coding.column.name, coding.column.type
            values = [parse_value(row, name, type_, each.get(name)) for row, each in enumerate(instances)]
            columns[name] = _column(type_, values)
        return Table(columns, len(instances))

    def _check_names(self, row: int, instance: Any) -> None:
        if not isinstance(instance, Mapping):
            raise PredictionInputError(row, None, "not_an_object", "A row must be an object of column values.")
        for name in instance:
            if name not in self._accepted:
                shown = str(name)[:80]
                known = ", ".join(sorted(self._columns)[:20])
                message = f"The model has no column {shown!r}; its columns are {known}."
                raise PredictionInputError(row, shown, "unknown_column", message)
        for coding in self._codings:
            if coding.column.name not in instance and not coding.nullable:
                message = f"The column {coding.column.name!r} is missing; give a value, or null if it is unknown."
                raise PredictionInputError(row, coding.column.name, "missing_column", message)


def _column(type_: str, values: list[Any]) -> Values:
    if type_ == "image":
        return pa.array(values, pa.binary())
    return pa.array(values, pa.string()) if type_ in STRING_LIKE else np.array(values, np.float64)


def parse_value(row: int, name: str, type_: str, value: Any) -> float | str | bytes | None:
    """A JSON value as it is stored for its column type: a float (NaN for missing), a string, an image's bytes, or
    None.

    Raises PredictionInputError with a code of wrong_type, bad_number, bad_datetime or bad_image.
    """
    if value is None:
        return None if type_ in STRING_LIKE else math.nan
    if type_ == "image":
        return _parse_image(row, name, value)
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


def _parse_image(row: int, name: str, value: Any) -> bytes | None:
    """The bytes of an image that can be decoded."""
    if value == "":
        return None
    content = value if isinstance(value, bytes) else _from_base64(row, name, value)
    try:
        decode(content)
    except ImageError as error:
        raise PredictionInputError(row, name, "bad_image", f"The column {name!r}: {error}") from None
    return content


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
