"""What was computed again on another processor beside what was told."""

import pytest

from registry.serving.experiments.agreement import same

TOLD = {
    "verdict": {"outcome": "b_better", "sentence": "B is better."},
    "shares": {"a": 0.1, "b": 0.9},
    "ended": True,
    "none": None,
}


@pytest.mark.parametrize(
    ("again", "told"),
    [
        (TOLD, TOLD), (0.1 + 0.2, 0.3), ([1, {"a": 3.756140943715576e-15}], [1, {"a": 3.756140943715578e-15}]), (1, 1.0),
        (1e12 + 0.001, 1e12), ("a", "a"), (None, None), (0.0, 1e-15),
    ],
)  # fmt: skip
def test_the_last_digits_may_differ(again, told):
    assert same(again, told)


@pytest.mark.parametrize(
    ("again", "told"),
    [
        (0.3000001, 0.3), (1, 2), ("b_better", "b_worse"), (True, 1), (None, 0.0), ([1], [1, 2]), ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 2}, {"a": 1}), ([1], {"0": 1}), (1e-6, 0.0), (TOLD | {"ended": False}, TOLD),
        (float("nan"), float("nan")), ("0.3", 0.3),
    ],
)  # fmt: skip
def test_anything_else_is_another_result(again, told):
    assert not same(again, told)
    assert not same(told, again)
