"""Moments of arms, and the verdicts that are made of them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from registry.serving.statistics.moments import Moments, effective_size, squared_error
from registry.serving.statistics.planning import Design, Plan, plan_mean, plan_proportion
from registry.serving.statistics.proportions import newcombe
from registry.serving.statistics.spending import boundaries
from registry.serving.statistics.verdict import Metric, Outcome, verdict

PLAN = plan_proportion(rate=0.1, minimum_effect=0.01, design=Design(looks=10))


def arm(successes: int, count: int) -> Moments:
    return Moments.of_proportion(successes, count)


# --- moments ------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=60), st.integers(1, 59))
def test_moments_add_up_to_those_of_all_values(values, cut):
    both = Moments.of(values[:cut]) + Moments.of(values[cut:])
    assert both.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert both.variance == pytest.approx(np.var(values, ddof=1), rel=1e-6, abs=1e-4)


def test_moments_that_no_values_have_are_refused():
    for wrong, name in (
        ((-1, 0, 0), "count"),
        ((3, 30.0, 10.0), "squares"),
        ((0, 1.0, 1.0), "total"),
        ((True, 1, 1), "count"),
    ):
        with pytest.raises(ValueError, match=name):
            Moments(*wrong)
    with pytest.raises(ValueError, match="successes"):
        Moments.of_proportion(4, 3)
    with pytest.raises(ValueError, match="total"):
        Moments(3, float("nan"), 1.0)
    with pytest.raises(ValueError, match="count"):
        _ = Moments(0, 0.0, 0.0).mean
    with pytest.raises(ValueError, match="count"):
        _ = Moments(1, 2.0, 4.0).variance
    assert effective_size(0, 0) == 0


# --- verdicts -----------------------------------------------------------------------------------------


def test_a_better_b_is_promoted_with_its_interval():
    a, b = arm(619, 6189), arm(780, 6189)
    told = verdict(a, b, plan=PLAN, looks=(0.1, 0.2, 0.3))
    assert (told.outcome, told.ended) == (Outcome.B_BETTER, True)
    assert told.low < told.gain < told.observed < told.high
    assert told.observed == pytest.approx(b.mean - a.mean)
    assert told.sentence == "B is better by 2.5 points, interval 0.7 to 4.5; promote."


def test_a_worse_b_is_not():
    told = verdict(arm(1000, 7000), arm(800, 7000), plan=PLAN)
    assert (told.outcome, told.ended) == (Outcome.B_WORSE, True)
    assert told.high < 0
    assert told.sentence.startswith("B is worse by 2.9 points")
    assert told.sentence.endswith("keep A.")


def test_less_is_better_for_errors():
    told = verdict(arm(1000, 7000), arm(800, 7000), plan=PLAN, metric=Metric(higher_is_better=False))
    assert told.outcome == Outcome.B_BETTER
    assert told.low > 0


def test_no_difference_of_the_size_asked_for():
    n = PLAN.units_a
    told = verdict(arm(1500, n), arm(1502, n), plan=PLAN)
    assert (told.outcome, told.ended) == (Outcome.NO_DIFFERENCE, True)
    assert "No difference of the size you asked for (1.00 points)" in told.sentence


def test_the_end_of_the_plan_may_leave_it_open():
    n = PLAN.units_a
    told = verdict(arm(1500, n), arm(1590, n), plan=PLAN)
    assert (told.outcome, told.ended) == (Outcome.UNDECIDED, True)
    assert "neither shown nor excluded" in told.sentence


def test_not_enough_data_says_how_many_days():
    told = verdict(arm(300, 3000), arm(330, 3000), plan=PLAN, per_day=2000)
    assert (told.outcome, told.ended) == (Outcome.NOT_ENOUGH, False)
    assert told.days == -(-(PLAN.units - 6000) // 2000)
    assert f"Not enough data: {told.days} days more at most." in told.sentence
    last_day = verdict(arm(1400, 15_000), arm(1450, 15_000), plan=PLAN, per_day=20_000)
    assert "1 day more at most" in last_day.sentence
    assert "go on" in verdict(arm(300, 3000), arm(330, 3000), plan=PLAN).sentence


@pytest.mark.parametrize(
    ("a", "b"),
    [((0, 0), (0, 0)), ((1, 1), (0, 1)), ((9, 900), (40, 900)), ((0, 500), (0, 500)), ((895, 900), (890, 900))],
)
def test_small_counts_never_decide(a, b):
    told = verdict(arm(*a), arm(*b), plan=PLAN)
    assert (told.outcome, told.ended, told.z) == (Outcome.NOT_ENOUGH, False, None)
    if b[1] < 2:
        assert told.gain is None and "too few outcomes" in told.sentence
    else:
        assert told.low < told.gain < told.high or told.gain == 0
        assert "So far the difference lies between" in told.sentence and "score interval" in told.sentence


@pytest.mark.parametrize(
    ("a", "b", "higher_is_better", "outcome"),
    [
        ((1, 900), (40, 900), True, Outcome.B_BETTER), ((1, 900), (40, 900), False, Outcome.B_WORSE),
        ((40, 900), (1, 900), True, Outcome.B_WORSE), ((3, 900), (5, 900), False, Outcome.NO_DIFFERENCE),
        ((0, 900), (0, 900), False, Outcome.NO_DIFFERENCE), ((3, 900), (9, 900), False, Outcome.UNDECIDED),
    ],
)  # fmt: skip
def test_small_counts_at_the_end_end_by_a_score_interval(a, b, higher_is_better, outcome):
    plan = Plan(Design(looks=4), 0.012, 900, 900)
    told = verdict(arm(*a), arm(*b), plan=plan, metric=Metric(higher_is_better=higher_is_better))
    assert (told.outcome, told.ended) == (outcome, True), told
    assert told.low <= told.gain <= told.high and "score interval" in told.sentence
    assert told.high - told.low < 0.05


@pytest.mark.parametrize("rate", [0.0005, 0.002, 0.005, 0.01])
@pytest.mark.parametrize("count", [200, 800])
def test_few_failures_find_nothing_that_is_not_there(rate, count):
    """Exact: every pair of counts, weighed by its probability. Newcombe's interval misses less than it may."""
    common = [(k, p) for k, p in enumerate(binom.pmf(range(60), count, rate)) if p > 1e-8]
    misses = 0.0
    for first, p in common:
        for second, q in common:
            low, high = newcombe(arm(first, count), arm(second, count))
            misses += p * q * (low > 0 or high < 0)
    assert misses <= 0.05


def test_a_test_that_has_nothing_to_say_at_its_end_goes_on():
    plan = plan_mean(deviation=1, minimum_effect=1.0, design=Design(looks=4))
    same = Moments.of([2.0] * 40)
    told = verdict(same, same, plan=plan, metric=Metric(proportion=False))
    assert (told.outcome, told.ended) == (Outcome.NOT_ENOUGH, False) and told.fraction < 1
    more, less = Moments.of([2.0, 3.0] * 20), Moments.of([1.0, 2.0] * 20)
    after = verdict(more, less, plan=plan, metric=Metric(proportion=False), looks=[told.fraction])
    assert after.outcome == Outcome.B_WORSE


def test_a_broken_assignment_withholds_the_verdict():
    told = verdict(arm(1000, 9000), arm(800, 4000), plan=PLAN, balanced=False)
    assert (told.outcome, told.ended, told.gain) == (Outcome.UNBALANCED, False, None)
    assert "did not arrive" in told.sentence


def test_a_look_taken_again_costs_nothing():
    a, b = arm(300, 3000), arm(330, 3000)
    first = verdict(a, b, plan=PLAN, looks=(0.1,))
    again = verdict(a, b, plan=PLAN, looks=(0.1, first.fraction))
    assert again == first
    assert verdict(a, b, plan=PLAN, looks=(0.1, again.fraction, again.fraction)) == first


def test_a_look_before_there_was_anything_does_not_count():
    a, b = arm(300, 3000), arm(330, 3000)
    empty = verdict(arm(0, 1), arm(0, 0), plan=PLAN)
    assert verdict(a, b, plan=PLAN, looks=(empty.fraction, 0.00002)) == verdict(a, b, plan=PLAN)


def test_looks_that_cannot_be_are_refused():
    a, b = arm(300, 3000), arm(330, 3000)
    with pytest.raises(ValueError, match="looks must rise"):
        verdict(a, b, plan=PLAN, looks=(0.9,))
    with pytest.raises(ValueError, match="looks must lie below 1"):
        verdict(arm(3000, 30_000), arm(3000, 30_000), plan=PLAN, looks=(1.2,))
    with pytest.raises(ValueError, match="looks must rise"):
        verdict(a, b, plan=PLAN, looks=(0.15, 0.1))
    with pytest.raises(ValueError, match="looks"):
        verdict(a, b, plan=PLAN, looks=(float("nan"),))
    with pytest.raises(ValueError, match="per_day"):
        verdict(a, b, plan=PLAN, per_day=0)
    with pytest.raises(ValueError, match="b must hold outcomes of 0 and 1"):
        verdict(a, Moments.of([1.5] * 50), plan=PLAN)


def test_numbers_are_told_in_their_unit():
    random = np.random.default_rng(2)
    plan = plan_mean(deviation=20, minimum_effect=3)
    metric = Metric(proportion=False, higher_is_better=False, unit="ms")
    a, b = (Moments.of(random.normal(mean, 20, plan.units_a)) for mean in (120, 112))
    told = verdict(a, b, plan=plan, metric=metric)
    assert told.outcome == Outcome.B_BETTER
    assert " ms, interval " in told.sentence
    few = verdict(Moments.of([1.0, 2.0] * 10), Moments.of([1.0, 2.0] * 10), plan=plan, metric=metric)
    assert few.outcome == Outcome.NOT_ENOUGH


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 4000), st.integers(0, 4000), st.booleans())
def test_a_verdict_and_its_mirror_agree(first, second, last):
    """Exchanging the arms exchanges better and worse, and the interval with its sign."""
    n = 4000
    told = verdict(arm(first, n), arm(second, n), plan=PLAN, last=last)
    mirrored = verdict(arm(second, n), arm(first, n), plan=PLAN, last=last)
    swapped = {Outcome.B_BETTER: Outcome.B_WORSE, Outcome.B_WORSE: Outcome.B_BETTER}
    assert mirrored.outcome == swapped.get(told.outcome, told.outcome)
    if told.gain is not None:
        assert (mirrored.low, mirrored.high) == pytest.approx((-told.high, -told.low))
        assert mirrored.gain == pytest.approx(-told.gain, abs=1e-9)
        assert (told.outcome == Outcome.B_BETTER) == (told.low >= 0 and (told.ended or told.z is not None))


def test_the_interval_is_as_wide_as_the_look_allows():
    a, b = arm(300, 3000), arm(330, 3000)
    told = verdict(a, b, plan=PLAN)
    error = np.sqrt(squared_error(a) + squared_error(b))
    assert told.edge == boundaries((told.fraction,)).edges[0]
    assert told.high - told.low == pytest.approx(2 * told.edge * error)


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(ValueError, match="units_b"):
        Plan(Design(), 0.01, 100, 1)


def test_the_web_process_imports_it_cheaply():
    """Neither numpy nor scipy nor Django comes with the import."""
    names = ("verdict", "guardrails", "balance", "paired", "covariate", "bandit")
    program = (
        f"import importlib, json, sys; [importlib.import_module('registry.serving.statistics.' + n) for n in {names}];"
        "print(json.dumps([n for n in ('numpy', 'scipy', 'django', 'torch') if n in sys.modules]))"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == []
