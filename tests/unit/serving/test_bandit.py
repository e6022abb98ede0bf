"""Thompson sampling with exact propensities."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta

from registry.serving.statistics.bandit import (
    BetaArm,
    choose,
    estimate_value,
    expected_losses,
    probabilities_best,
    propensities,
)


@pytest.mark.parametrize(
    ("first", "second"),
    [((1, 1), (1, 1)), ((3, 5), (4, 4)), ((30, 70), (45, 60)), ((1, 1), (900, 100)), ((2, 400), (1, 300))],
)
def test_the_probability_to_be_best_is_the_integral(first, second):
    one, other = beta(*first), beta(*second)
    expected = quad(lambda rate: one.pdf(rate) * other.cdf(rate), 0, 1, limit=500, points=[one.mean(), other.mean()])[0]
    assert probabilities_best([BetaArm(*first), BetaArm(*second)])[0] == pytest.approx(expected, abs=2e-4)


def test_several_arms_agree_with_draws():
    arms = [BetaArm(30, 70), BetaArm(40, 60), BetaArm(3, 3)]
    drawn = np.stack(
        [np.random.default_rng(7 + i).beta(arm.successes, arm.failures, 400_000) for i, arm in enumerate(arms)]
    )
    shares = np.bincount(drawn.argmax(axis=0), minlength=3) / 400_000
    assert probabilities_best(arms) == pytest.approx(shares, abs=0.004)
    lost = drawn.max(axis=0).mean() - drawn.mean(axis=1)
    assert expected_losses(arms) == pytest.approx(lost, abs=0.002)


def test_ten_arms_share_what_is_left_above_the_floor_and_lose_by_what_they_lack():
    """Far apart, the best one is certain: it loses nothing, and the others their distance. Alike, all lose alike."""
    arms = [
        BetaArm(1 + 400 * rate, 1 + 400 * (1 - rate)) for rate in (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5, 0.1)
    ]
    shares, lost = propensities(arms, floor=0.01), expected_losses(arms)
    assert shares == pytest.approx([0.01] * 8 + [0.91, 0.01], abs=1e-9) and sum(shares) == pytest.approx(1.0)
    assert lost == pytest.approx([arms[8].mean - arm.mean for arm in arms], abs=1e-5)
    alike = expected_losses([BetaArm(30, 70)] * 10)
    assert max(alike) == min(alike) > 0.05 and expected_losses([BetaArm(30, 70)]) == pytest.approx((0.0,), abs=1e-5)


def test_millions_of_rewards_are_as_exact():
    certain = probabilities_best([BetaArm(100_000, 900_000), BetaArm(101_500, 900_000)])
    assert certain[1] > 0.999
    assert probabilities_best([BetaArm(5e5, 5e5), BetaArm(5e5, 5e5)]) == pytest.approx((0.5, 0.5))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=1, max_size=6), st.floats(0, 0.15))
def test_propensities_add_up_and_keep_the_floor(known, floor):
    shares = propensities([BetaArm(*arm) for arm in known], floor=floor)
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) >= floor - 1e-12


def test_the_same_seed_draws_the_same_arms_as_often_as_it_says():
    shares = (0.05, 0.15, 0.8)
    first, again = random.Random(3), random.Random(3)
    drawn = [choose(shares, first) for _ in range(20_000)]
    assert drawn == [choose(shares, again) for _ in range(20_000)]
    counts = np.bincount([choice.arm for choice in drawn]) / 20_000
    assert counts == pytest.approx(shares, abs=0.012)
    assert all(choice.propensity == shares[choice.arm] for choice in drawn)


def test_it_earns_more_than_an_even_split_and_its_log_is_unbiased():
    rates, randomness = (0.10, 0.20), random.Random(11)
    arms, log, earned = [BetaArm(), BetaArm()], [], 0
    for _ in range(100):
        shares = propensities(arms)
        for _ in range(40):
            choice = choose(shares, randomness)
            rewarded = randomness.random() < rates[choice.arm]
            arms[choice.arm] = arms[choice.arm].after(rewarded)
            log.append((choice, rewarded))
            earned += rewarded
    assert earned / 4000 > 0.18
    for index, rate in enumerate(rates):
        value = estimate_value((reward, choice.propensity) for choice, reward in log if choice.arm == index)
        assert value == pytest.approx(rate, abs=0.06)
    assert arms[1].mean == pytest.approx(0.2, abs=0.03)


def test_wrong_arguments_are_named():
    for wrong, name in (((0.5, 1), "successes"), ((1, float("nan")), "failures")):
        with pytest.raises(ValueError, match=name):
            BetaArm(*wrong)
    with pytest.raises(ValueError, match="arms"):
        propensities([])
    with pytest.raises(ValueError, match="arms"):
        probabilities_best([])
    with pytest.raises(ValueError, match="arms"):
        expected_losses([])
    with pytest.raises(ValueError, match="floor"):
        propensities([BetaArm(), BetaArm()], floor=0.6)
    for shares in ((), (0.5, 0.4), (1.5, -0.5)):
        with pytest.raises(ValueError, match="shares"):
            choose(shares, random.Random(0))
    with pytest.raises(ValueError, match="rewards"):
        estimate_value([])
    for propensity in (0.0, 1.2):
        with pytest.raises(ValueError, match="propensity"):
            estimate_value([(1.0, propensity)])
