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


HUGE = 1.7976931348623157e308


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1e308, 1e308), (-HUGE, HUGE), (0, HUGE), (-HUGE, -1e307), (-1e308, 5), (1e308, 1.5e308), (1e-320, 2e-320)],
)
def test_the_largest_and_smallest_numbers_are_drawn_in_their_place(ask, low, high):
    axis = f"scale.linear([{low!r}, {high!r}], [50, 650])"
    low_at, middle, high_at = ask(f"[{low!r}, {low!r} / 2 + {high!r} / 2, {high!r}].map({axis})")
    assert (low_at, high_at) == (50, 650) and middle == pytest.approx(350, abs=1)
    back = ask(f"[50, 650, 5000, -5000].map((one) => {axis}.invert(one))")
    assert back[:2] == pytest.approx([low, high], rel=1e-12, abs=1e-12 * (high / 2 - low / 2)) and None not in back
    assert None not in ask(f"[...scale.padded([{low!r}, {high!r}]), ...scale.padded([{high!r}, {high!r}])]")
    pixels = ask(f"scale.linear(scale.padded([{low!r}, {high!r}]), [50, 650])({low!r})")
    assert 50 <= pixels < 100


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize(("low", "high"), [(-1e308, 1e308), (-HUGE, HUGE), (0, HUGE), (-1.1e308, 1.1e308)])
def test_an_axis_of_the_largest_numbers_has_ticks(ask, low, high, count):
    ticks = ask(f"scale.linear([{low!r}, {high!r}], [0, 100]).ticks({count})")
    assert 2 <= len(ticks) <= 9 and None not in ticks and all(low <= tick <= high for tick in ticks)
    told = ask(f"scale.labels({ticks})")
    assert len(set(told)) == len(told) and all(len(one) < 10 for one in told), told


def test_huge_numbers_are_told_in_few_digits(ask):
    assert ask("[1e308, -1e308, 1e20, 12345].map(scale.exact)") == [
        "1.000e+308", "-1.000e+308", "100,000,000,000,000,000,000", "12,345",
    ]  # fmt: skip
    assert None not in ask("[1, 1e308].map(scale.logarithmic([0.9, Infinity], [0, 100]))")


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.5, 0.5000000000000004),
        (0.7, 0.7000000000000002),
        (1e300, 1.0000000000000002e300),
        (-7e15, -6999999999999999.0),
    ],
)
def test_an_axis_of_values_that_differ_in_their_last_bits_has_its_ends(ask, low, high):
    """A metric that hardly moves: to count up to it step by step would never end."""
    for scale in (f"scale.linear([{low!r}, {high!r}], [0, 100])", f"scale.linear([{low!r}, {high!r}], [0, 100], true)"):
        assert ask(f"{scale}.ticks(5)") == [low, high]
    assert ask(f"scale.linear(scale.padded([{low!r}, {high!r}]), [0, 100]).ticks(5).length") <= 12


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0 + 1e-9), (1e6, 1e6 + 1e-4)])
def test_an_axis_that_is_merely_short_has_ticks_in_between(ask, low, high):
    ticks = ask(f"scale.linear([{low!r}, {high!r}], [0, 100]).ticks(5)")
    assert len(ticks) >= 3 and ticks == sorted(set(ticks))


def test_an_axis_of_one_value_has_that_tick(ask):
    assert ask("scale.linear([5, 5], [0, 100]).ticks(5)") == [5]
