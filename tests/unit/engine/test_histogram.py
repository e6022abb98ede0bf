"""Residuals of any size have a histogram."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlplatform.engine.metrics import histogram
from dlplatform.engine.run import run_job
from tests.unit.engine.conftest import read_spool


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([0.0, 1.0, 2.0, 3.0], [2, 2]),
        ([1e300, np.nextafter(1e300, 2e300)], [2]),  # too close together for the bins
        ([-1.5e308, 1.5e308], [2]),  # too far apart: their distance is no number
        ([np.inf, 1.0, 2.0, -np.inf], [1, 1]),
        ([np.inf], []),
    ],
)
def test_of_what_floats_can_divide(values: list[float], counts: list[int]) -> None:
    found, edges = histogram(np.array(values), 2)
    assert found.tolist() == counts
    assert len(edges) == (len(counts) + 1 if counts else 0) and np.isfinite(edges).all()


def test_targets_as_large_as_numbers_get_end_in_a_package(job: Callable[..., Path]) -> None:
    signs = [1 if row % 2 else -1 for row in range(40)]
    table = {"x": ("number", [float(sign) for sign in signs]), "y": ("number", [1e308 * sign for sign in signs])}
    made = job(table, task="regression", config={"epochs": 2, "threads": 1})
    assert run_job(made) == 0, read_spool(made)[-1]
