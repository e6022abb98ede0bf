"""What a trial measures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from dlplatform.engine.trial import _peak_of_main_memory

LARGE = 600 * 1000 * 1000


def test_the_peak_of_a_process_is_not_that_of_whoever_started_it() -> None:
    held = np.ones(LARGE // 8)
    told = subprocess.run(
        [sys.executable, "-c", "from dlplatform.engine.trial import _peak_of_main_memory as peak; print(peak())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert held.nbytes < _peak_of_main_memory()
    assert 0 < int(told.stdout) < LARGE
