"""Ticks and labels of charts, asked of the script itself."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

SCALE = Path(__file__).resolve().parents[3] / "static" / "js" / "scale.js"
NODE = shutil.which("node")


@pytest.fixture
def ask(tmp_path):
    if NODE is None:
        pytest.skip("node is not installed")
    shutil.copy(SCALE, tmp_path / "scale.mjs")

    def run(expression):
        code = f'import * as scale from "./scale.mjs"; console.log(JSON.stringify({expression}));'
        (tmp_path / "ask.mjs").write_text(code)
        done = subprocess.run([NODE, "ask.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize(
    ("ticks", "told"),
    [
        ([0.00025, 0.0005, 0.00075, 0.001], ["2.5e-4", "5e-4", "7.5e-4", "0.001"]),
        ([0, 0.2, 0.4, 0.6], ["0", "0.2", "0.4", "0.6"]),
        ([12000, 12250, 12500], ["12k", "12.25k", "12.5k"]),
        ([1_000_000, 1_000_100], ["1M", "1.0001M"]),
        ([0.91, 0.915, 0.92], ["0.91", "0.915", "0.92"]),
        ([-0.0002, 0, 0.0002], ["-2e-4", "0", "2e-4"]),
        ([1e-5, 1e-3, 10], ["1e-5", "0.001", "10"]),
        ([7], ["7"]),
    ],
)
def test_labels_tell_every_tick_as_it_is(ask, ticks, told):
    assert ask(f"scale.labels({ticks})") == told


@pytest.mark.parametrize(
    ("low", "high", "whole"),
    [(1, 825, True), (1, 2, True), (1, 3, True), (3, 4, True), (1, 12, True), (0, 1, False), (0.93, 0.97, False),
     (-5, 7.3, False), (0.00012, 0.00098, False), (499, 501, True), (1, 90_000, True)],
)  # fmt: skip
def test_an_axis_has_about_five_ticks_and_at_least_two(ask, low, high, whole):
    ticks = ask(f"scale.linear([{low}, {high}], [0, 100]).ticks(5, {str(whole).lower()})")
    assert 2 <= len(ticks) <= 7 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks), ticks
    assert not whole or all(float(tick).is_integer() for tick in ticks)
    assert len(set(ask(f"scale.labels({ticks})"))) == len(ticks)


def test_an_axis_of_one_value_has_that_tick(ask):
    assert ask("scale.linear([5, 5], [0, 100]).ticks(5)") == [5]
