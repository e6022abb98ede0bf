"""The unit in which the axis of a bandit counts its time."""

import pytest

from registry.serving.experiments.views import time_unit


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [
        (0.0, "seconds"), (2.5, "seconds"), (179.9, "seconds"), (180.0, "minutes"), (10_799.0, "minutes"), (10_800.0, "hours"),
        (71 * 3600.0, "hours"), (72 * 3600.0, "days"), (400 * 86_400.0, "days"),
    ],
)  # fmt: skip
def test_a_time_is_counted_in_what_gives_it_three_or_more(seconds: float, unit: str) -> None:
    found, length = time_unit(seconds)
    assert found == unit
    assert unit == "days" or seconds < 3 * length * 60
