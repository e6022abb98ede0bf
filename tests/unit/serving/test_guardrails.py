"""Confidence sequences of guardrails, and the alarm of a sample-ratio mismatch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2, chisquare, norm

from registry.serving.statistics.balance import check_balance, chi_square_p, chi_square_tail, mixture_evidence
from registry.serving.statistics.guardrails import _mixture as mixture
from registry.serving.statistics.guardrails import check_difference, check_rate, edge_of_difference
from registry.serving.statistics.moments import Moments


def arm(failures: int, count: int) -> Moments:
    return Moments.of_proportion(failures, count)


# --- two arms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "time", "prior"), [(3.0, 10.0, 4.0), (-5.0, 30.0, 9.0), (40.0, 100.0, 20.0)])
def test_the_mixture_is_the_integral_that_it_stands_for(score, time, prior):
    def weighted(slope):
        return 2 * norm.pdf(slope, scale=1 / math.sqrt(prior)) * math.exp(slope * score - slope**2 * time / 2)

    assert mixture(score, time, prior) == pytest.approx(math.log(quad(weighted, 0, 10, limit=200)[0]), abs=1e-6)


def test_far_on_the_harmless_side_the_mixture_falls_as_one_over_the_score():
    for score in (-200.0, -1e4, -1e8):
        assert mixture(score, 10.0, 4.0) == pytest.approx(math.log(math.sqrt(8 / math.pi) / -score), abs=1e-3)


def test_harm_raises_the_alarm_and_its_opposite_does_not():
    found = check_difference(arm(40, 4000), arm(140, 4000), tuned_units=2000)
    assert found.alarm
    assert 0 < found.low < found.harm == pytest.approx(0.025)
    assert not check_difference(arm(140, 4000), arm(40, 4000), tuned_units=2000).alarm
    assert check_difference(arm(140, 4000), arm(40, 4000), tuned_units=2000, higher_is_worse=False).alarm


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 990), st.integers(10, 990), st.floats(0, 0.2), st.integers(50, 10**6), st.integers(1, 5))
def test_an_alarm_means_that_the_lower_bound_is_above_the_tolerance(first, second, tolerance, tuned, guardrails):
    found = check_difference(
        arm(first, 1000), arm(second, 1000), tuned_units=tuned, tolerance=tolerance, guardrails=guardrails
    )
    if abs(found.low - tolerance) > 1e-9:
        assert found.alarm == (found.low > tolerance)
    assert found.low < found.harm


def test_few_units_and_few_failures_are_silent():
    assert not check_difference(arm(0, 99), arm(90, 99), tuned_units=100).alarm
    assert check_difference(arm(0, 5000), arm(19, 5000), tuned_units=100).harm is None
    assert check_difference(arm(200, 200), arm(200, 200), tuned_units=100).harm is None
    assert edge_of_difference(99, 500, tuned_units=100) is None


def test_the_sequence_is_narrowest_about_where_it_is_tuned():
    edges = {tuned: edge_of_difference(1000, 1000, tuned_units=tuned) for tuned in (10, 1000, 100_000)}
    assert min(edges, key=edges.get) == 1000
    assert edges[1000] > norm.ppf(0.99)  # looking always costs more than looking once


def test_more_guardrails_share_one_error_rate():
    assert edge_of_difference(500, 500, tuned_units=500, guardrails=4) == pytest.approx(
        edge_of_difference(500, 500, tuned_units=500, alpha=0.0025)
    )


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tolerance", {"tolerance": -0.1}),
        ("tuned_units", {"tuned_units": 0}),
        ("alpha", {"alpha": 0.0}),
        ("guardrails", {"guardrails": 0}),
    ],
)
def test_a_guardrail_names_what_is_wrong_with_it(name, wrong):
    with pytest.raises(ValueError, match=name):
        check_difference(arm(10, 500), arm(10, 500), **{"tuned_units": 100, **wrong})


def test_skewed_latencies_seldom_alarm_at_their_worst_look():
    random, looks = np.random.default_rng(3), np.arange(100, 3001, 25)
    edges = np.array([edge_of_difference(size, size, tuned_units=1000, alpha=0.05) for size in looks.tolist()])
    means, errors = 0.0, 0.0
    for sign in (-1, 1):
        values = random.exponential(size=(2000, looks[-1]))
        total, squares = (part.cumsum(axis=1)[:, looks - 1] for part in (values, values**2))
        means = means + sign * total / looks
        errors = errors + (squares - total**2 / looks) / (looks - 1) / looks
    assert (means / np.sqrt(errors) >= edges).any(axis=1).mean() <= 0.05


# --- one arm ------------------------------------------------------------------------------------------


def test_a_rate_above_its_limit_is_told_early_and_one_below_never():
    assert check_rate(12, 100, limit=0.02).alarm
    assert check_rate(5, 5, limit=0.1).alarm
    assert not check_rate(0, 0, limit=0.02).alarm
    assert not check_rate(200, 10_000, limit=0.02).alarm
    assert check_rate(0, 10_000, limit=0.02).evidence < -1


def test_the_evidence_of_a_rate_is_a_martingale_at_the_limit():
    """What is expected after one more request is what there is."""
    for failures, count in ((0, 0), (3, 40), (30, 200)):
        now = math.exp(check_rate(failures, count, limit=0.05).evidence)
        failed, well = (math.exp(check_rate(failures + more, count + 1, limit=0.05).evidence) for more in (1, 0))
        assert 0.05 * failed + 0.95 * well == pytest.approx(now)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("limit", {"limit": 1.0}),
        ("failures", {"failures": 11}),
        ("failures", {"failures": -1}),
        ("count", {"count": 2.5}),
    ],
)
def test_a_limit_names_what_is_wrong_with_it(name, wrong):
    with pytest.raises(ValueError, match=name):
        check_rate(**{"failures": 1, "count": 10, "limit": 0.1, **wrong})


# --- assignment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", range(1, 9))
@pytest.mark.parametrize("statistic", [0.0, 0.3, 2.0, 11.0, 60.0])
def test_the_tail_of_chi_square_is_scipys(degrees, statistic):
    assert chi_square_tail(statistic, degrees) == pytest.approx(chi2.sf(statistic, degrees), rel=1e-10)


def test_the_p_value_is_scipys():
    expected = chisquare([480, 260, 260], [500, 250, 250]).pvalue
    assert chi_square_p([480, 260, 260], weights=[2, 1, 1]) == pytest.approx(expected)
    assert chi_square_p([0, 0]) == 1.0


def test_a_fair_split_is_explained_by_chance_and_a_broken_one_is_not():
    fair = check_balance([24_950, 25_050], planned=50_000)
    assert not fair.alarm
    assert "chance explains that" in fair.sentence
    broken = check_balance([24_500, 25_500], planned=50_000)
    assert broken.alarm
    assert "49.00 / 51.00 % of 50,000 units where 50.00 / 50.00 % were meant" in broken.sentence
    assert check_balance([650, 350], planned=50_000).alarm  # grossly broken: told at once
    assert check_balance([900, 100], planned=50_000, weights=[9, 1]).alarm is False


def test_the_evidence_of_the_counts_is_a_martingale():
    now = math.exp(mixture_evidence([70, 55, 20], weights=[2, 2, 1]))
    after = [[71, 55, 20], [70, 56, 20], [70, 55, 21]]
    expected = sum(
        share * math.exp(mixture_evidence(counts, weights=[2, 2, 1]))
        for share, counts in zip((0.4, 0.4, 0.2), after, strict=True)
    )
    assert expected == pytest.approx(now)


def test_the_chi_square_test_is_made_at_halvings_of_the_plan_and_at_its_end():
    tested: tuple[int, ...] = ()
    for total in range(100, 3300, 100):
        tested = check_balance([total // 2, total // 2], planned=3200, tested=tested).tested
    assert tested == (100, 200, 300, 500, 900, 1700, 3200)
    beyond = check_balance([1650, 1650], planned=3200, tested=tested)
    assert (beyond.p_value, beyond.tested) == (None, tested)


def test_no_units_are_no_alarm():
    empty = check_balance([0, 0], planned=100)
    assert (empty.alarm, empty.tested) == (False, ())


@pytest.mark.parametrize(
    ("name", "counts", "more"),
    [
        ("counts", [5], {}), ("counts", [5, -1], {}), ("weights", [5, 5], {"weights": [1]}),
        ("weights", [5, 5], {"weights": [1, 0]}), ("planned", [5, 5], {"planned": 0}),
        ("tested", [5, 5], {"tested": (11,)}), ("tested", [5, 5], {"tested": (4, 4)}), ("alpha", [5, 5], {"alpha": 2}),
    ],
)  # fmt: skip
def test_a_wrong_split_is_named(name, counts, more):
    with pytest.raises(ValueError, match=name):
        check_balance(counts, **{"planned": 100, **more})


def test_degrees_of_freedom_are_named():
    with pytest.raises(ValueError, match="degrees"):
        chi_square_tail(1.0, 0)
