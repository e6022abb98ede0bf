"""What an experiment is planned with: its metric, its units, and what its deployment's own log says of both."""

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from django.utils import timezone

from registry.models import ModelVersion
from registry.serving.models import Deployment, Variant
from registry.serving.refusing import refused
from registry.serving.statistics.moments import Moments
from registry.serving.statistics.paired import labels_needed, plan_pairs
from registry.serving.statistics.planning import Design, Plan, plan_mean, plan_proportion
from registry.serving.statistics.verdict import Metric

from .measurable import refuse_unmeasured
from .models import Experiment
from .sums import Measure, Window, outcomes, pairs, window_until_now

SHARES = {Experiment.Metric.ACCURACY, Experiment.Metric.ERRORS}  # outcomes lie between 0 and 1
LOWER_IS_BETTER = {Experiment.Metric.ABSOLUTE_ERROR, Experiment.Metric.LATENCY, Experiment.Metric.ERRORS}
JUDGED = {Experiment.Metric.ACCURACY, Experiment.Metric.ABSOLUTE_ERROR}  # by a label, whoever got the answer
LOOKED_BACK = timedelta(days=14)
LEAST_MEASURED = 30  # units; fewer say nothing of a rate or a deviation
MOST_UNITS = 2**31 - 1


@dataclass(frozen=True)
class Traffic:
    """Of the last days: units a day that get an outcome, and A's rate or the standard deviation of a unit.

    ``baseline`` is None where too few units have an outcome.
    """

    per_day: float | None
    baseline: float | None
    units: int


@dataclass(frozen=True)
class Planned:
    """``labels_split``: of pairs, the labels that a split would take; None where nobody knows."""

    plan: Plan
    traffic: Traffic
    baseline: float
    paired: bool = False
    labels_split: int | None = None

    @property
    def sentence(self) -> str:
        told = self._told()
        if self.plan.days is None:
            return f"{told}; no outcome came within {LOOKED_BACK.days} days, so nobody knows how long that takes."
        days, usual = _days(self.plan.days), _days(self.plan.usual_days or 1)
        return f"{told}: {days} at {self.traffic.per_day:,.0f} a day, {usual} on average if B is better by just that."

    def _told(self) -> str:
        if not self.paired:
            return f"{self.plan.units_a:,} units of A and {self.plan.units_b:,} of B at most"
        told = f"{self.plan.units_b:,} requests with a label at most"
        if self.labels_split is None:
            return told
        times = self.labels_split / self.plan.units_b
        return f"{told}, where a split takes {self.labels_split:,} ({times:.1f} times as many)"


def _days(count: int) -> str:
    return f"{count:,} day{'' if count == 1 else 's'}"


def metric_of(experiment: Experiment) -> Metric:
    share = experiment.metric in SHARES
    unit = "ms" if experiment.metric == Experiment.Metric.LATENCY else ""
    return Metric(proportion=False, share=share, higher_is_better=experiment.higher_is_better, unit=unit)


def measure_of(experiment: Experiment) -> Measure:
    return Measure(experiment.metric, cap=experiment.cap, missing_as_zero=experiment.missing_as_zero)


def plan_of(experiment: Experiment) -> Plan:
    design = Design(experiment.alpha, experiment.power, experiment.looks)
    return Plan(design, experiment.minimum_effect, experiment.units_a, experiment.units_b)


def make_plan(
    *, deployment: Deployment, control: ModelVersion | None, metric: str, minimum_effect: float,
    challenger: ModelVersion | None = None, mode: str = Experiment.Mode.SPLIT, share: float = 0.5, alpha: float = 0.05, power: float = 0.8, looks: int = 28, cap: float | None = None, missing_as_zero: bool = False,
    baseline: float | None = None,
) -> Planned:  # fmt: skip
    """Units and days for an experiment here. Raises ValidationError.

    ``baseline`` where the log cannot tell it: A's share, or a unit's standard deviation; of pairs the share of requests that
    one version alone gets right, or the standard deviation of the difference on one request.
    """
    if mode == Experiment.Mode.BANDIT:
        raise refused("mode", "A bandit has no plan: it goes on until somebody ends it.")
    control = control or version_answering_most(deployment)
    if control is not None:
        refuse_unmeasured(metric, control)
    traffic = traffic_of(deployment, control, Measure(metric, cap=cap, missing_as_zero=missing_as_zero))
    paired = mode == Experiment.Mode.PAIRED
    measured = _pairs_baseline(deployment, control, challenger, metric, cap, traffic) if paired else traffic.baseline
    known = baseline if baseline is not None else measured
    if known is None:
        raise refused("baseline", _unknown(metric, traffic.units, paired=paired))
    try:
        design = Design(alpha, power, looks)
        if paired:
            return _planned_pairs(design, metric, minimum_effect, known, traffic)
        more: dict[str, Any] = {"design": design, "share_b": share, "per_day": traffic.per_day or None}
        if metric in SHARES:
            plan = plan_proportion(rate=known, minimum_effect=minimum_effect, **more)
        else:
            plan = plan_mean(deviation=known, minimum_effect=minimum_effect, **more)
    except (ValueError, OverflowError) as error:
        raise refused(FIELDS.get(str(error).split(" ")[0], "minimum_effect"), f"{error}.") from None
    if plan.units > MOST_UNITS:
        raise refused("minimum_effect", f"That takes {plan.units:,} units; look for a greater difference.")
    return Planned(plan, traffic, known)


FIELDS = {
    "rate": "baseline",
    "deviation": "baseline",
    "share_b": "share",
    "alpha": "alpha",
    "power": "power",
    "looks": "looks",
}


def _planned_pairs(design: Design, metric: str, effect: float, known: float, traffic: Traffic) -> Planned:
    """``known``: as the baseline of pairs. Raises ValueError, ValidationError."""
    share = metric in SHARES
    variance = known if share else known**2
    plan = plan_pairs(deviation=math.sqrt(variance), minimum_effect=effect, design=design)
    if plan.units > MOST_UNITS:
        raise refused("minimum_effect", f"That takes {plan.units_b:,} labels; look for a greater difference.")
    if traffic.per_day:
        days, usual = (plan.units_b * part / traffic.per_day for part in (1.0, design.expected_share(1.0)))
        plan = replace(plan, days=math.ceil(days), usual_days=math.ceil(usual))
    if traffic.baseline is None:
        return Planned(plan, traffic, known, paired=True)
    of_one = traffic.baseline * (1 - traffic.baseline) if share else traffic.baseline**2
    needed = labels_needed(
        variance_a=of_one, variance_b=of_one, variance_difference=variance, effect=effect, design=design
    )
    return Planned(plan, traffic, known, paired=True, labels_split=needed.split)


def _pairs_baseline(
    deployment: Deployment, control: ModelVersion | None, challenger: ModelVersion | None, metric: str, cap: float | None,
    traffic: Traffic,
) -> float | None:  # fmt: skip
    """From requests that both have answered; else as if they erred independently of one another, which takes most labels."""
    share = metric in SHARES
    differences = _differences(deployment, control, challenger, Measure(metric, cap=cap))
    if differences.count >= LEAST_MEASURED:
        if share:
            return (differences.squares + 1) / (differences.count + 2)
        return differences.variance**0.5 or None
    if traffic.baseline is None:
        return None
    return 2 * traffic.baseline * (1 - traffic.baseline) if share else 2**0.5 * traffic.baseline


def _differences(
    deployment: Deployment, control: ModelVersion | None, challenger: ModelVersion | None, measure: Measure
) -> Moments:
    """Of the last days, where the challenger was a shadow beside the control."""
    rows = Variant.objects.filter(deployment=deployment, arm="")
    live, shadow = (rows.filter(version=one).first() if one else None for one in (control, challenger))
    if live is None or shadow is None:
        return Moments(0, 0.0, 0.0)
    window = window_until_now(deployment.pk, timezone.now() - LOOKED_BACK)
    return pairs(measure, window, live.pk, shadow.pk).differences


def _unknown(metric: str, units: int, *, paired: bool) -> str:
    if paired:
        of = (
            "the share of requests that one version alone gets right"
            if metric in SHARES
            else "the deviation of the difference"
        )
        return f"Only {units} units had a label within {LOOKED_BACK.days} days: give {of}."
    what = "A's share, between 0 and 1" if metric in SHARES else "the standard deviation of a unit's outcome"
    return f"Only {units} units of A had an outcome within {LOOKED_BACK.days} days: give {what}."


def traffic_of(deployment: Deployment, control: ModelVersion | None, measure: Measure) -> Traffic:
    """What the log of the last days says; of A where it answered in them, else of all that answered."""
    window = window_until_now(deployment.pk, timezone.now() - LOOKED_BACK)
    variants = {row.pk: row.version_id for row in Variant.objects.filter(deployment=deployment)}
    found = outcomes(measure, window, list(variants))
    days = _days_of_log(deployment, window)
    every = sum((one.count for one in found.values()), 0)
    of_a = [found[pk] for pk, version in variants.items() if control is not None and version == control.pk]
    arm = _together(of_a)
    if arm.count < LEAST_MEASURED:
        arm = _together(list(found.values()))
    return Traffic(every / days if every else None, _baseline(measure, arm), arm.count)


def version_answering_most(deployment: Deployment) -> ModelVersion | None:
    """The live version with the greatest weight; of several the oldest, so that everybody means the same one."""
    live = deployment.variants.filter(removed_at=None, role=Variant.Role.LIVE).select_related("version")
    first = live.order_by("-weight", "version__created_at", "version_id").first()
    return first.version if first else None


def _days_of_log(deployment: Deployment, window: Window) -> float:
    """How many of the days looked back upon the deployment has been there for; an hour at least."""
    there = (window.until - max(window.since, deployment.created_at)).total_seconds() / 86400
    return max(there, 1 / 24)


def _together(arms: list[Moments]) -> Moments:
    return sum(arms, Moments(0, 0.0, 0.0))


def _baseline(measure: Measure, arm: Moments) -> float | None:
    if arm.count < LEAST_MEASURED:
        return None
    if measure.kind in SHARES:
        return (arm.total + 1) / (arm.count + 2)  # never 0 nor 1, where nothing could be planned
    return arm.variance**0.5 or None
