"""The mean of curves and the band around it."""

import pytest

from training.bands import banded, line


def test_the_mean_and_one_standard_deviation_at_every_step():
    found = banded([[(1, 1.0), (2, 2.0), (3, 3.0)], [(1, 3.0), (2, 2.0), (3, 5.0)]])
    assert found["points"] == [(1, 2.0), (2, 2.0), (3, 4.0)]
    assert found["band"] == [(1, 1.0, 3.0), (2, 2.0, 2.0), (3, 3.0, 5.0)]


def test_curves_with_other_steps_are_straight_between_theirs_and_end_where_they_end():
    found = banded([[(0, 0.0), (10, 10.0)], [(5, 1.0)]])
    assert found["points"] == [(0, 0.0), (5, pytest.approx(3.0)), (10, 10.0)]
    assert found["band"][2] == (10, 10.0, 10.0)


def test_long_curves_are_thinned_and_a_single_one_has_no_band():
    found = banded([[(step, 1.0) for step in range(5000)]] * 2)
    assert len(found["points"]) <= 400
    assert line("a", 0, [[(1, 1.0)]]) == {"name": "a", "points": [(1, 1.0)], "color": 0}
