"""Answers of every task as columns."""

import pyarrow as pa
import pytest

from registry.serving.answer_columns import MOST_CLASSES, with_answers

ROWS = pa.table({"a": [1, 2], "predicted": [5, 6]})
SURE = {"x": 0.9, "y": 0.1}


@pytest.mark.parametrize(
    ("answers", "added"),
    [
        ([{"label": "x", "probabilities": SURE}] * 2,
         {"predicted 2": ["x", "x"], "probability": [0.9, 0.9], "probability of x": [0.9, 0.9], "probability of y": [0.1, 0.1]}),
        ([{"labels": ["x", "y"], "probabilities": SURE}, {"labels": [], "probabilities": SURE}],
         {"predicted 2": ["x; y", ""], "probability of x": [0.9, 0.9], "probability of y": [0.1, 0.1]}),
        ([{"value": 1.5}, {"value": 2.5}], {"predicted 2": [1.5, 2.5]}),
        ([{"values": {"u": 1.0, "v": 2.0}}] * 2, {"predicted u": [1.0, 1.0], "predicted v": [2.0, 2.0]}),
        ([{"text": "so"}, {"text": ""}], {"predicted 2": ["so", ""]}),
    ],
)  # fmt: skip
def test_answers_become_columns_in_names_that_are_free(answers, added):
    table = with_answers(ROWS, answers)
    assert table.to_pydict() == {**ROWS.to_pydict(), **added}


def test_of_many_classes_only_the_likeliest_is_told():
    sure = {str(number): 1 / (MOST_CLASSES + 1) for number in range(MOST_CLASSES + 1)}
    table = with_answers(pa.table({"a": [1]}), [{"label": "3", "probabilities": sure}])
    assert table.column_names == ["a", "predicted", "probability"]
