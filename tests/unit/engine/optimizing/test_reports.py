"""The report of a variant: both measured in turns, and what speaks against it by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dlplatform.engine.optimizing.report import notes, paired, problems, quality, report, wilson
from tests.unit.engine.optimizing.conftest import Trained


def test_the_report_measures_both_in_turns(perceptron: Trained, tmp_path: Path) -> None:
    perceptron.variant(tmp_path / "made", "onnx-int8-dynamic")
    told = report(perceptron.package, tmp_path / "made", perceptron.rows, 0.5)
    assert set(told["latency"]) == {"1", "32", "64"}
    for each in told["latency"].values():
        assert each["runs"] >= 60
        assert each["ratio"][0] <= each["ratio"][1] <= each["ratio"][2]
        assert 0 < each["variant"]["p50"] <= each["variant"]["p99"]
        assert each["whole"]["parent"]["throughput"] > 0
    assert told["size"]["variant"]["bytes"] < told["size"]["parent"]["bytes"]
    low, share, high = told["quality"]["variant"]
    assert 0 <= low < share < high <= 1
    assert told["agreement"] > 0.9
    assert json.loads(json.dumps(told)) == told


def a_report(**changed: Any) -> dict[str, Any]:
    turn = {"ratio": [0.9, 1.0, 1.04], "work": [0.9, 1.0, 1.04]}
    told = {
        "tolerance": 0.5, "rows": {"held_out": 500},
        "quality": {"name": "accuracy", "change": [-0.2, 0.0, 0.2]},
        "latency": {"1": turn, "64": turn},
        "size": {"parent": {"bytes": 10**6, "compressed": 9**6}, "variant": {"bytes": 10**6, "compressed": 9**6}},
    }  # fmt: skip
    return told | changed


def test_what_speaks_against_a_variant_is_said_by_name() -> None:
    assert problems(a_report()) == []
    assert notes(a_report()) == ["It is neither faster nor smaller than its parent."]
    slow = problems(
        a_report(
            latency={
                "1": {"ratio": [1.2, 1.3, 1.5], "work": [1.1, 1.2, 1.3]},
                "64": {"ratio": [0.5, 0.6, 0.7], "work": [0.5, 0.6, 0.7]},
            }
        )
    )
    assert [each["code"] for each in slow] == ["slower"]
    assert "1.30 times as long for one row" in slow[0]["sentence"]
    busy = {"1": {"ratio": [1.2, 1.3, 1.5], "work": [0.9, 1.0, 1.1]}}  # interrupted more often, no more work
    assert problems(a_report(latency=busy)) == []
    big = {"parent": {"bytes": 10**6, "compressed": 1}, "variant": {"bytes": 2 * 10**6, "compressed": 1}}
    assert [each["code"] for each in problems(a_report(size=big))] == ["bigger"]
    worse = a_report(quality={"name": "accuracy", "change": [-2.0, -0.8, 0.1]})
    assert [each["code"] for each in problems(worse)] == ["worse"]
    unsure = a_report(quality={"name": "accuracy", "change": [-0.9, -0.3, 0.3]})
    assert "cannot be ruled out" in notes(unsure)[0]


def test_intervals_hold_what_they_promise() -> None:
    """Simulated: of 400 experiments about 95 in 100 intervals hold the truth."""
    random = np.random.default_rng(0)
    held = changed = 0
    for _ in range(400):
        before = (random.random(200) < 0.9).astype(float)
        flips = random.random(200) < 0.06
        after = np.where(flips, 1 - before, before)
        low, _, high = wilson(before)
        held += low <= 0.9 <= high
        low, _, high = paired(before, after)
        changed += low <= 0.06 * (0.1 - 0.9) <= high
    assert held > 365
    assert changed > 365
    same = np.ones(50)
    assert paired(same, same)[0] < 0 < paired(same, same)[2]  # no flipped row is no certainty
    assert quality(same, same, "number")["change"] == [0.0, 0.0, 0.0]
