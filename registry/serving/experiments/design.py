"""What an experiment is planned with: its metric, its units, and what its deployment's own log says of both."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.utils import timezone

from registry.models import ModelVersion
from registry.serving.models import Deployment, Variant
from registry.serving.statistics.moments import Moments
from registry.serving.statistics.planning import Design, Plan, plan_mean, plan_proportion
from registry.serving.statistics.verdict import Metric

from .models import Experiment
from .sums import Measure, Window, outcomes, window_until_now

SHARES = {Experiment.Metric.ACCURACY, Experiment.Metric.ERRORS}  # outcomes lie between 0 and 1
LOWER_IS_BETTER = {Experiment.Metric.ABSOLUTE_ERROR, Experiment.Metric.LATENCY, Experiment.Metric.ERRORS}
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
    plan: Plan
    traffic: Traffic
    baseline: float

    @property
    def sentence(self) -> str:
        told = f"{self.plan.units_a:,} units of A and {self.plan.units_b:,} of B at most"
        if self.plan.days is None:
            return f"{told}; no outcome came within {LOOKED_BACK.days} days, so nobody knows how long that takes."
        days, usual = _days(self.plan.days), _days(self.plan.usual_days or 1)
        return f"{told}: {days} at {self.traffic.per_day:,.0f} a day, {usual} on average if B is better by just that."


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
    mode: str = Experiment.Mode.SPLIT, share: float = 0.5, alpha: float = 0.05, power: float = 0.8, looks: int = 28, cap: float | None = None, missing_as_zero: bool = False,
    baseline: float | None = None,
) -> Planned:  # fmt: skip
    """Units and days for an experiment here. ``baseline`` where the log cannot tell it. Raises ValidationError."""
    if mode == Experiment.Mode.BANDIT:
        raise _refused("mode", "A bandit has no plan: it goes on until somebody ends it.")
    traffic = traffic_of(deployment, control, Measure(metric, cap=cap, missing_as_zero=missing_as_zero))
    known = baseline if baseline is not None else traffic.baseline
    if known is None:
        raise _refused("baseline", _unknown(metric, traffic.units))
    try:
        design = Design(alpha, power, looks)
        more: dict[str, Any] = {"design": design, "share_b": share, "per_day": traffic.per_day or None}
        if metric in SHARES:
            plan = plan_proportion(rate=known, minimum_effect=minimum_effect, **more)
        else:
            plan = plan_mean(deviation=known, minimum_effect=minimum_effect, **more)
    except (ValueError, OverflowError) as error:
        raise _refused(FIELDS.get(str(error).split(" ")[0], "minimum_effect"), f"{error}.") from None
    if plan.units > MOST_UNITS:
        raise _refused("minimum_effect", f"That takes {plan.units:,} units; look for a greater difference.")
    return Planned(plan, traffic, known)


FIELDS = {
    "rate": "baseline",
    "deviation": "baseline",
    "share_b": "share",
    "alpha": "alpha",
    "power": "power",
    "looks": "looks",
}


def _unknown(metric: str, units: int) -> str:
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


def _refused(field: str, sentence: str, code: str = "invalid") -> ValidationError:
    return ValidationError({field: ValidationError(sentence, code=code)})
