"""What pages compute before they show it."""

import pytest

from datasets.models import DatasetVersion
from datasets.templatetags.figures import histogram
from registry.forms import TryForm
from training import estimate, findings
from training.run_form import suggested_target, suggested_task


def test_a_metric_is_better_in_its_own_direction():
    evaluation = {
        "metrics": {"accuracy": 0.9, "log_loss": 0.2, "rmse": 3.0},
        "baseline": {"metrics": {"accuracy": 0.5, "log_loss": 0.7, "rmse": 2.0}},
    }
    assert [tile["verdict"] for tile in findings.tiles(evaluation)] == ["better", "better", "worse"]


def test_the_matrix_is_shaded_by_the_share_of_the_row():
    drawn = findings.matrix({"labels": ["a", "b"], "confusion_matrix": [[9, 1], [0, 0]]})
    assert [[cell["heat"] for cell in row["cells"]] for row in drawn["rows"]] == [[5, 1], [0, 0]]
    assert findings.matrix({}) is None


def test_many_classes_are_cut_and_the_rest_counted():
    count = findings.MATRIX_CLASSES + 5
    drawn = findings.matrix({"labels": list(range(count)), "confusion_matrix": [[1] * count] * count})
    assert drawn["left_out"] == 5 and len(drawn["rows"][0]["cells"]) == findings.MATRIX_CLASSES


def test_bars_of_importance_never_go_below_nothing():
    drawn = findings.importance({"importance": [{"column": "a", "increase": 2.0}, {"column": "b", "increase": -1.0}]})
    assert [one["length"] for one in drawn] == [100.0, 0.0]


def test_regression_is_drawn_as_points_and_residuals():
    points = {"actual": [1.0, 2.0], "predicted": [1.5, 2.0], "residual": [-0.5, 0.0]}
    drawn = findings.charts({"points": points, "residual_histogram": {"counts": [2], "edges": [-1, 0]}})
    assert [one["kind"] for one in drawn] == ["scatter", "scatter", "histogram"]
    assert findings.charts({}) == []


@pytest.mark.parametrize(
    ("type_", "distinct", "task"),
    [("number", 400, "regression"), ("integer", 3, "classification"), ("category", 5, "classification"),
     ("boolean", 2, "classification")],
)  # fmt: skip
def test_the_task_is_suggested_from_the_target(type_, distinct, task):
    version = DatasetVersion(columns=[{"name": "y", "type": type_}], profile={"y": {"distinct": distinct}})
    assert suggested_task(version, "y") == task


def test_the_last_column_that_can_be_predicted_is_the_suggested_target():
    version = DatasetVersion(columns=[{"name": "x", "type": "number"}, {"name": "t", "type": "datetime"}])
    assert suggested_target(version) == "x"
    assert suggested_target(DatasetVersion(columns=[])) == ""


def test_an_estimate_is_said_with_two_digits_at_most():
    words = estimate.Estimate(rows=1797, features=64, parameters=838_896, seconds=95, measured=True).words
    assert "1,797 rows × 64 features" in words and "about 838,000 parameters" in words and "2 minutes" in words


def test_a_histogram_keeps_small_counts_visible_and_escapes_its_label():
    drawn = histogram({"edges": ["<a>", 2, 3], "counts": [1000, 1]})
    assert drawn.count("<rect") == 2 and 'height="1.00"' in drawn and "<a>" not in drawn
    assert histogram(None) == "" and histogram({"counts": []}) == ""


def test_what_is_typed_into_the_try_form_becomes_a_typed_row():
    inputs = [{"name": "n", "type": "integer"}, {"name": "t", "type": "text"}, {"name": "d", "type": "datetime"}]
    form = TryForm({"input-0": "7", "input-1": " kept ", "input-2": ""}, inputs=inputs)
    assert form.is_valid()
    assert form.instance() == {"n": 7, "t": " kept ", "d": None}
    assert TryForm.example([{"name": "f", "type": "number", "example": 5.0}]) == {"input-0": "5"}
