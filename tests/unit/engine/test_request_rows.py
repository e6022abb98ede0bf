"""Rows of a request become the same inputs as the same values in a table, to the bit."""

import math
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.preprocessing import fit_preprocessor
from dlplatform.engine.request_rows import RequestRows
from dlplatform.engine.schema import Column
from dlplatform.engine.table import Table

ROWS = [
    {"age": 31, "count": "7", "city": "Ulm", "open": True, "at": "2026-03-01T12:00:00Z", "note": "Warm and dry"},
    {"age": None, "count": 2, "city": None, "open": "no", "at": None, "note": None},
    {"age": 1e300, "count": 0.1, "city": "never seen", "open": None, "at": "1969-12-31", "note": "ÄÖÜ, dry"},
    {"age": " 2.5 ", "count": "", "city": "Kiel", "open": 0, "at": "2026-03-01T12:00:00+02:00", "note": ""},
]
TYPES = {"age": "number", "count": "integer", "city": "category", "open": "boolean", "at": "datetime", "note": "text"}
SAME = Table(
    {
        "age": np.array([31.0, math.nan, 1e300, 2.5]),
        "count": np.array([7.0, 2.0, 0.1, math.nan]),
        "city": pa.array(["Ulm", None, "never seen", "Kiel"]),
        "open": np.array([1.0, 0.0, math.nan, 0.0]),
        "at": np.array(
            [
                datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp(),
                math.nan,
                datetime(1969, 12, 31, tzinfo=UTC).timestamp(),
                datetime(2026, 3, 1, 10, tzinfo=UTC).timestamp(),
            ]
        ),
        "note": pa.array(["Warm and dry", None, "ÄÖÜ, dry", ""]),
    },
    4,
)


def preprocessor(names=tuple(TYPES), **config):
    fitted_on = SAME.replace("city", pa.array(["Ulm", "Kiel", "Ulm", None])).replace("age", np.array([1.0, 2, 3, 4]))
    return fit_preprocessor(fitted_on, tuple(Column(name, TYPES[name]) for name in names), TrainingConfig(**config))


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (tuple(TYPES), {}),
        (tuple(TYPES), {"text_encoder": "transformer", "tokenizer": "byte"}),
        (("age", "count", "open", "city"), {}),
        (("city",), {}),
        (("age",), {}),
        (("note", "at"), {}),
    ],
)
@pytest.mark.parametrize("some", [slice(0, 4), slice(0, 1), slice(1, 2)])
def test_rows_and_tables_are_encoded_alike(names, config, some):
    fitted = preprocessor(names, **config)
    rows = [{name: row[name] for name in names if fitted_name_needed(fitted, name, row)} for row in ROWS[some]]
    made = RequestRows(fitted).inputs(rows)
    expected = fitted.transform(SAME.take(np.arange(4)[some]))
    for kind in ("numbers", "categories", "tokens", "sequences", "images"):
        ours, table = getattr(made, kind), getattr(expected, kind)
        assert ours.shape == table.shape
        assert ours.dtype == table.dtype
        assert ours.tobytes() == table.tobytes(), kind


def fitted_name_needed(fitted, name, row):
    """A column that had missing values may be left out where it is missing."""
    nullable = next(each.nullable for each in fitted.codings if each.column.name == name)
    return not nullable or row[name] is not None


def test_of_several_faults_the_first_column_is_told():
    with pytest.raises(PredictionInputError) as told:
        RequestRows(preprocessor(("age", "at"))).inputs([{"age": 1, "at": "soon"}, {"age": "old", "at": None}])
    assert (told.value.row, told.value.column, told.value.code) == (1, "age", "bad_number")


def test_names_are_checked_and_targets_ignored():
    reader = RequestRows(preprocessor(("age",)), {"label", None})
    assert reader.inputs([{"age": 2, "label": "x"}]).numbers.shape == (1, 1)
    with pytest.raises(PredictionInputError, match="no column 'aeg'; its columns are age"):
        reader.inputs([{"age": 2}, {"aeg": 2}])
    with pytest.raises(PredictionInputError, match="'age' is missing"):
        reader.inputs([{}])
