"""Boundaries and plans of group-sequential tests."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from registry.serving.statistics.planning import Design, plan_mean, plan_proportion
from registry.serving.statistics.spending import (
    boundaries,
    crossing_probabilities,
    equal_fractions,
    median_unbiased_drift,
    obrien_fleming_spent,
)

# --- boundaries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "known"),
    [
        (1, [1.960]),
        (2, [2.963, 1.969]),
        (3, [3.710, 2.511, 1.993]),
        (5, [4.877, 3.357, 2.680, 2.290, 2.031]),
    ],
)
def test_boundaries_at_equal_distances_are_those_of_the_tables(looks, known):
    assert boundaries(equal_fractions(looks)).edges == pytest.approx(known, abs=6e-4)


def test_a_fifth_of_the_information_may_spend_almost_nothing():
    assert obrien_fleming_spent(0.2, 0.05) == pytest.approx(5.4e-7 * 2, rel=0.01)
    assert obrien_fleming_spent(0, 0.05) == 0
    assert obrien_fleming_spent(1.3, 0.05) == 0.05


@pytest.mark.parametrize("fractions", [(0.35, 0.8), (0.5, 0.55, 1.0), (0.3, 0.7, 1.2)])
def test_the_spent_error_is_that_of_the_joint_normal_distribution(fractions):
    known = boundaries(fractions, 0.05)
    times = np.array(fractions)
    covariance = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    edges = np.array(known.edges)
    inside = multivariate_normal(cov=covariance, abseps=1e-9, releps=1e-9, maxpts=10**7).cdf(edges, lower_limit=-edges)
    assert known.spent[-1] == pytest.approx(1 - inside, abs=2e-6)


def test_a_last_look_spends_what_is_left():
    early = boundaries((0.3, 0.6), last=True)
    assert early.spent[-1] == pytest.approx(0.05, abs=1e-9)
    assert early.edges[-1] < boundaries((0.3, 0.6)).edges[-1]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.01, 0.25), min_size=1, max_size=12),
    st.sampled_from([0.001, 0.01, 0.05, 0.2]),
)
def test_no_more_than_alpha_is_spent_wherever_the_looks_lie(steps, alpha):
    fractions = np.cumsum(steps).tolist()
    known = boundaries(fractions, alpha)
    assert known.spent[-1] <= alpha + 1e-8
    assert known.spent[-1] == pytest.approx(obrien_fleming_spent(fractions[-1], alpha), abs=1e-8)
    assert list(known.spent) == sorted(known.spent)
    above, below = crossing_probabilities(known, 0.0)
    assert sum(above) == pytest.approx(known.spent[-1] / 2, abs=1e-8)
    assert below == above


def test_looks_that_lie_close_are_integrated_as_finely_as_they_need():
    known = boundaries((0.5, 0.5001, 1.0))
    plain = boundaries((0.5, 1.0))
    assert known.edges[0] == pytest.approx(plain.edges[0], abs=1e-6)
    assert known.edges[2] == pytest.approx(plain.edges[1], abs=1e-3)


def test_crossing_is_as_probable_as_in_a_simulation():
    known = boundaries(equal_fractions(4))
    random = np.random.default_rng(0)
    scores = random.normal(2.5 / 4, 0.5, (200_000, 4)).cumsum(axis=1)
    crossed = scores / np.sqrt(known.fractions) >= known.edges
    first = np.bincount(crossed.argmax(axis=1)[crossed.any(axis=1)], minlength=4) / len(scores)
    assert crossing_probabilities(known, 2.5)[0] == pytest.approx(first, abs=0.004)


def test_the_estimate_of_a_test_that_ended_is_unbiased_in_the_median():
    known = boundaries(equal_fractions(3))
    random = np.random.default_rng(1)
    scores = random.normal(3.0 / 3, np.sqrt(1 / 3), (1_500, 3)).cumsum(axis=1)
    z = scores / np.sqrt(known.fractions)
    ends = np.where(np.abs(z) >= known.edges, True, [False, False, True]).argmax(axis=1)
    prefixes = [boundaries(known.fractions[: look + 1]) for look in range(3)]
    estimates = [median_unbiased_drift(prefixes[look], z[test, look]) for test, look in enumerate(ends)]
    plain = np.take_along_axis(scores / known.fractions, ends[:, None], axis=1)
    assert np.mean(np.array(estimates) > 3.0) == pytest.approx(0.5, abs=0.04)
    assert np.mean(plain > 3.0) > 0.53  # the plain estimate is too large more often than not


def test_without_earlier_looks_the_estimate_is_the_plain_one():
    assert median_unbiased_drift(boundaries((0.64,)), -2.0) == pytest.approx(-2.0 / 0.8, abs=1e-6)


@pytest.mark.parametrize(
    "fractions", [(), (0.5, 0.5), (0.6, 0.5), (0.0, 1.0), (-0.1,), (float("nan"),), (0.5, 0.50005)]
)
def test_fractions_that_do_not_rise_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions"):
        boundaries(fractions)


def test_other_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="fractions"):
        boundaries([look / 101 for look in range(1, 102)])
    with pytest.raises(ValueError, match="alpha"):
        boundaries((0.5,), 1.0)
    with pytest.raises(ValueError, match="looks"):
        equal_fractions(0)
    with pytest.raises(ValueError, match="drift"):
        crossing_probabilities(boundaries((1.0,)), float("inf"))


# --- plans --------------------------------------------------------------------------------------------


def test_a_single_look_needs_what_the_textbook_says():
    """Two arms of (1.95996 + 0.84162)² · (p·q + p'·q') / effect²."""
    plan = plan_proportion(rate=0.1, minimum_effect=0.01, design=Design(looks=1))
    z = norm.ppf(0.975) + norm.ppf(0.8)
    assert plan.units_a == plan.units_b == pytest.approx(z**2 * (0.09 + 0.11 * 0.89) / 0.01**2, abs=2)
    mean = plan_mean(deviation=12, minimum_effect=2, design=Design(looks=1, power=0.9))
    assert mean.units_a == pytest.approx(2 * (norm.ppf(0.975) + norm.ppf(0.9)) ** 2 * 36, abs=1)


def test_looking_often_costs_little():
    assert Design(looks=1).inflation == 1.0
    assert Design(looks=5).inflation == pytest.approx(1.0247, abs=5e-4)
    assert 1.03 < Design(looks=28).inflation < 1.06
    assert Design(looks=28).expected_share(1.0) < 0.75
    assert Design(looks=28).expected_share(2.0) < 0.45
    assert Design(looks=28).expected_share(0.0) == pytest.approx(0.99, abs=0.01)


@pytest.mark.parametrize(("power", "looks", "alpha"), [(0.8, 28, 0.05), (0.95, 7, 0.01), (0.5, 2, 0.1)])
def test_a_design_has_the_power_that_it_promises(power, looks, alpha):
    design = Design(alpha, power, looks)
    above, below = crossing_probabilities(design.boundaries, design.drift)
    assert sum(above) + sum(below) == pytest.approx(power, abs=1e-6)


def test_days_come_from_the_traffic_and_uneven_arms_need_more_units():
    plan = plan_proportion(rate=0.1, minimum_effect=0.01, per_day=1000)
    assert plan.days == -(-plan.units // 1000)
    assert plan.usual_days < plan.days
    uneven = plan_proportion(rate=0.1, minimum_effect=0.01, share_b=0.1)
    assert uneven.units_a == pytest.approx(9 * uneven.units_b, rel=1e-3)
    assert uneven.units > 2.5 * plan.units
    assert uneven.effective_size == pytest.approx(plan.effective_size, rel=0.05)  # B varies more


def test_a_covariate_saves_the_square_of_its_correlation():
    plain, adjusted = (plan_mean(deviation=3, minimum_effect=0.1, correlation=share) for share in (0.0, 0.7))
    assert adjusted.units_a == pytest.approx(plain.units_a * 0.51, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rate", {"rate": 0.0}), ("rate", {"rate": 1.2}), ("minimum_effect", {"minimum_effect": -0.01}),
        ("minimum_effect", {"minimum_effect": 0.95}), ("share_b", {"share_b": 1.0}), ("per_day", {"per_day": 0}),
        ("per_day", {"per_day": float("nan")}),
    ],
)  # fmt: skip
def test_a_plan_names_what_is_wrong_with_it(name, wrong):
    with pytest.raises(ValueError, match=name):
        plan_proportion(**{"rate": 0.1, "minimum_effect": 0.01, **wrong})


@pytest.mark.parametrize(
    ("name", "wrong"), [("deviation", {"deviation": 0}), ("correlation", {"correlation": 1.0}), ("rate", None)]
)
def test_a_plan_of_a_mean_names_what_is_wrong_with_it(name, wrong):
    if wrong is None:
        with pytest.raises(ValueError, match="power"):
            Design(alpha=0.3, power=0.2)
        return
    with pytest.raises(ValueError, match=name):
        plan_mean(**{"deviation": 1.0, "minimum_effect": 0.1, **wrong})
