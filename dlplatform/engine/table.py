"""Typed columns in memory, read from Parquet or from request rows.

Number, integer and boolean columns are float64 arrays with NaN for missing; datetime columns are float64
seconds since 1970 UTC with NaN for missing; category and text columns are Arrow string arrays with nulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlplatform.engine.errors import EngineError
from dlplatform.engine.schema import STRING_LIKE, Column

# Arrow has no type stubs; a Values is a float64 array or an Arrow string array.
Values: TypeAlias = Any


@dataclass(frozen=True)
class Table:
    """Columns of equal length by name."""

    columns: dict[str, Values]
    rows: int

    def take(self, index: np.ndarray[Any, Any]) -> Table:
        """The rows at the given positions."""
        taken = {name: take(values, index) for name, values in self.columns.items()}
        return Table(taken, len(index))

    def replace(self, name: str, values: Values) -> Table:
        """The same table with one column exchanged."""
        return Table({**self.columns, name: values}, self.rows)


def take(values: Values, index: np.ndarray[Any, Any]) -> Values:
    """The values at the given positions."""
    if isinstance(values, np.ndarray):
        return values[index]
    return values.take(pa.array(index))


def missing(values: Values) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """True where a value is missing."""
    if isinstance(values, np.ndarray):
        return np.isnan(values)
    absent: np.ndarray[Any, np.dtype[np.bool_]] = values.is_null().to_numpy(zero_copy_only=False)
    return absent


def read_table(paths: Sequence[Path], columns: Sequence[Column]) -> Table:
    """Read the given columns of all parts, in order. Raises EngineError ``bad_data``."""
    parts = [_read_part(path, [column.name for column in columns]) for path in paths]
    try:
        whole = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise EngineError("bad_data", "The data files do not have the same columns.", detail=str(error)) from error
    return Table({column.name: _values(whole, column) for column in columns}, whole.num_rows)


def _read_part(path: Path, names: list[str]) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        stored = file.schema_arrow.names
        for name in names:
            if stored.count(name) != 1:
                how_often = "is missing" if name not in stored else "occurs twice"
                raise EngineError("bad_data", f"Column {name!r} {how_often} in {path.name}.")
        return file.read(columns=names)
    except (pa.ArrowException, OSError) as error:
        raise EngineError("bad_data", f"{path.name} is not a readable Parquet file.", detail=str(error)) from error


def _values(table: pa.Table, column: Column) -> Values:
    chunked = table.column(column.name)
    try:
        if column.type in STRING_LIKE:
            return chunked.cast(pa.string()).combine_chunks()
        if column.type == "datetime":
            return seconds(chunked.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()))
        if pa.types.is_boolean(chunked.type):
            chunked = chunked.cast(pa.int8())
        return finite(chunked.cast(pa.float64(), safe=False).to_numpy())
    except pa.ArrowException as error:
        sentence = f"Column {column.name!r} does not hold values of the type {column.type}."
        raise EngineError("bad_data", sentence, detail=str(error)) from error


def seconds(microseconds: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Microseconds since 1970 to seconds; nulls to NaN."""
    return np.asarray(pc.cast(microseconds, pa.float64(), safe=False), dtype=np.float64) / 1e6


def finite(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Infinities count as missing: no scale can be fitted to them."""
    values = np.array(values, dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    return values
