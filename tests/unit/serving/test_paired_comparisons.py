"""Paired comparisons on shadow traffic, and variance taken out by a covariate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from registry.serving.statistics.covariate import CovariateMoments, adjust
from registry.serving.statistics.moments import Moments, squared_error
from registry.serving.statistics.paired import PairedAnswers, labels_needed, mcnemar_p, paired_verdict, plan_pairs
from registry.serving.statistics.planning import Design
from registry.serving.statistics.verdict import Metric, Outcome

PLAN = plan_pairs(deviation=0.3, minimum_effect=0.02)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_value_is_that_of_the_binomial_test(only_a, only_b):
    told = mcnemar_p(PairedAnswers(10, only_a, only_b, 3))
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert told == pytest.approx(expected)


def test_answers_become_differences():
    differences = PairedAnswers(both=50, only_a=5, only_b=15, neither=10, alike=20).differences
    values = [0] * 80 + [-1] * 5 + [1] * 15
    assert (differences.count, differences.mean) == (100, 0.1)
    assert differences.variance == pytest.approx(np.var(values, ddof=1))


def test_requests_answered_alike_need_no_label():
    labelled = PairedAnswers(both=900, only_a=20, only_b=60, neither=20)
    spared = PairedAnswers(both=0, only_a=20, only_b=60, neither=0, alike=920)
    assert labelled.differences == spared.differences


def test_a_better_shadow_is_found_and_a_like_one_is_not():
    better = paired_verdict(PairedAnswers(1500, 50, 150, 100).differences, plan=PLAN)
    assert better.outcome == Outcome.B_BETTER
    assert better.low <= 0.056 <= better.high
    like = PairedAnswers(1600, 42, 40, 200)
    assert paired_verdict(like.differences, plan=PLAN).outcome == Outcome.NO_DIFFERENCE
    early = paired_verdict(PairedAnswers(160, 12, 14, 20).differences, plan=PLAN, per_day=100)
    assert early.outcome == Outcome.NOT_ENOUGH
    assert early.days == -(-(PLAN.units_b - 206) // 100)


def test_losses_are_compared_too():
    random = np.random.default_rng(0)
    losses = random.normal(-0.2, 1.0, 2000)
    plan = plan_pairs(deviation=1.0, minimum_effect=0.1)
    told = paired_verdict(Moments.of(losses), plan=plan, metric=Metric(proportion=False, higher_is_better=False))
    assert told.outcome == Outcome.B_BETTER


@pytest.mark.parametrize(
    "answers",
    [PairedAnswers(0, 0, 0, 0), PairedAnswers(1, 0, 0, 0), PairedAnswers(400, 0, 9, 0), PairedAnswers(5, 5, 6, 5)],
)
def test_few_disagreements_never_decide(answers):
    told = paired_verdict(answers.differences, plan=PLAN)
    assert (told.outcome, told.ended) == (Outcome.NOT_ENOUGH, False)
    assert (told.gain is None) == (answers.count < 2)


@pytest.mark.parametrize(
    ("only_a", "only_b", "outcome"),
    [(0, 9, Outcome.B_BETTER), (8, 0, Outcome.B_WORSE), (3, 4, Outcome.NO_DIFFERENCE), (2, 7, Outcome.UNDECIDED)],
)
def test_few_disagreements_at_the_end_end_by_a_score_interval(only_a, only_b, outcome):
    plan = plan_pairs(deviation=0.2, minimum_effect=0.028)
    answers = PairedAnswers(plan.units_b - only_a - only_b, only_a, only_b, 0)
    told = paired_verdict(answers.differences, plan=plan)
    assert (told.outcome, told.ended) == (outcome, True), told
    assert told.low < told.gain < told.high


def test_false_verdicts_on_like_models_are_rare():
    random, looks = np.random.default_rng(1), 8
    plan, wrong = plan_pairs(deviation=0.45, minimum_effect=0.03, design=Design(looks=looks)), 0
    size = plan.units_b // looks + 1
    for _ in range(300):
        counts, fractions = np.zeros(4, int), []
        for _ in range(looks):
            counts = counts + random.multinomial(size, [0.7, 0.1, 0.1, 0.1])
            told = paired_verdict(PairedAnswers(*counts.tolist()).differences, plan=plan, looks=fractions)
            fractions.append(told.fraction)
            if told.ended:
                break
        wrong += told.outcome in (Outcome.B_BETTER, Outcome.B_WORSE)
    assert wrong / 300 < 0.085  # 0.05, and four of its standard errors less one


def test_pairs_save_labels():
    """Independent scores: half the labels, as each judges both; alike ones: many more."""
    assert labels_needed(variance_a=0.1, variance_b=0.1, variance_difference=0.2, effect=0.02).saving == pytest.approx(
        2, rel=1e-3
    )
    alike = labels_needed(variance_a=0.1, variance_b=0.1, variance_difference=0.06, effect=-0.02, share_differing=0.1)
    assert alike.saving == pytest.approx(0.4 / 0.06, rel=1e-3)
    assert alike.differing == pytest.approx(alike.paired / 10, abs=1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("variance_a", {"variance_a": -1.0}), ("variance_difference", {"variance_difference": 0.0}),
        ("effect", {"effect": 0.0}), ("share_differing", {"share_differing": 1.5}),
    ],
)  # fmt: skip
def test_wrong_variances_are_named(name, wrong):
    with pytest.raises(ValueError, match=name):
        labels_needed(**{"variance_a": 0.1, "variance_b": 0.1, "variance_difference": 0.1, "effect": 0.1, **wrong})


def test_wrong_pairs_are_named():
    with pytest.raises(ValueError, match="only_b"):
        PairedAnswers(1, 1, -1, 1)
    with pytest.raises(ValueError, match="deviation"):
        plan_pairs(deviation=0, minimum_effect=0.1)
    with pytest.raises(ValueError, match="per_day"):
        paired_verdict(PairedAnswers(1500, 50, 150, 100).differences, plan=PLAN, per_day=-1)


# --- covariates ---------------------------------------------------------------------------------------


def arms(correlation: float, count: int = 4000, shift: float = 0.0):
    random = np.random.default_rng(5)
    known = []
    for gain in (0.0, shift):
        x = random.normal(50, 10, count)
        y = correlation * (x - 50) / 10 + np.sqrt(1 - correlation**2) * random.normal(size=count) + gain
        known.append((y, x))
    return known


def test_the_adjustment_is_that_of_the_values_themselves():
    (y_a, x_a), (y_b, x_b) = arms(0.7, 300, 0.2)
    adjusted = adjust(CovariateMoments.of(y_a, x_a), CovariateMoments.of(y_b, x_b))
    within = [x - x.mean() for x in (x_a, x_b)]
    theta = sum((w * y).sum() for w, y in zip(within, (y_a, y_b), strict=True)) / sum((w**2).sum() for w in within)
    assert adjusted.theta == pytest.approx(theta)
    centre = np.concatenate([x_a, x_b]).mean()
    for told, y, x in ((adjusted.a, y_a, x_a), (adjusted.b, y_b, x_b)):
        values = y - theta * (x - centre)
        assert (told.mean, told.variance) == pytest.approx((values.mean(), values.var(ddof=1)))


def test_it_saves_the_square_of_the_correlation_and_keeps_the_effect():
    (y_a, x_a), (y_b, x_b) = arms(0.7, shift=0.3)
    adjusted = adjust(CovariateMoments.of(y_a, x_a), CovariateMoments.of(y_b, x_b))
    assert adjusted.variance_left == pytest.approx(1 - 0.7**2, abs=0.03)
    error = np.sqrt(squared_error(adjusted.a) + squared_error(adjusted.b))
    assert abs(adjusted.b.mean - adjusted.a.mean - 0.3) < 4 * error


def test_a_covariate_that_never_varies_changes_nothing():
    (y_a, _), (y_b, _) = arms(0.7, 50)
    adjusted = adjust(CovariateMoments.of(y_a, [3.0] * 50), CovariateMoments.of(y_b, [3.0] * 50))
    assert (adjusted.theta, adjusted.variance_left) == (0.0, pytest.approx(1.0))
    same = CovariateMoments.of([2.0, 2.0], [1.0, 2.0])
    assert adjust(same, same).variance_left == 1.0


def test_covariate_moments_add_up():
    (y, x), _ = arms(0.5, 40)
    both = CovariateMoments.of(y[:15], x[:15]) + CovariateMoments.of(y[15:], x[15:])
    whole = CovariateMoments.of(y, x)
    assert both.products == pytest.approx(whole.products)
    assert both.outcome.squares == pytest.approx(whole.outcome.squares)


def test_wrong_covariates_are_named():
    moments = Moments.of([1.0, 2.0])
    with pytest.raises(ValueError, match="covariate"):
        CovariateMoments(moments, Moments.of([1.0]), 1.0)
    with pytest.raises(ValueError, match="products"):
        CovariateMoments(moments, moments, 50.0)
    with pytest.raises(ValueError, match="products"):
        CovariateMoments(moments, moments, float("inf"))
    single, pair = CovariateMoments.of([1.0], [1.0]), CovariateMoments.of([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="b must have"):
        adjust(pair, single)
