"""What an experiment may be, by its design alone: refused by the field, before anything is looked up."""

import math
from typing import Any

from registry.serving.statistics.spending import MOST_LOOKS

from .arms import refused
from .design import JUDGED, LOWER_IS_BETTER, SHARES
from .models import Experiment


def check_design(*, metric: str, minimum_effect: float = 0.0, mode: str = Experiment.Mode.SPLIT, **design: Any) -> None:
    """Refuse what no plan can be made of, by its field. Raises ValidationError."""
    if metric not in Experiment.Metric.values:
        raise refused("metric", f"Choose one of: {', '.join(Experiment.Metric.values)}.")
    if mode not in Experiment.Mode.values:
        raise refused("mode", f"Choose one of: {', '.join(Experiment.Mode.values)}.")
    if mode == Experiment.Mode.PAIRED and metric not in JUDGED:
        raise refused(
            "metric", f"Of an answer that nobody gets, labels alone tell: choose {' or '.join(sorted(JUDGED))}."
        )
    moving = mode == Experiment.Mode.BANDIT
    if moving and metric not in SHARES and design.get("cap") is None:
        raise refused("cap", "A bandit's reward lies between 0 and a most: give that most, in the metric's unit.")
    if not moving and not (math.isfinite(minimum_effect) and 0 < minimum_effect <= 1e12):
        raise refused("minimum_effect", "Give a number above 0.")
    if not 0.01 <= design.get("share", 0.5) <= 0.99:
        raise refused("share", "Give B a share from 0.01 to 0.99.")
    if not 1 <= design.get("looks", 28) <= MOST_LOOKS - 1:
        raise refused("looks", f"Plan from 1 to {MOST_LOOKS - 1} looks.")
    cap = design.get("cap")
    if cap is not None and not 0 < cap <= 1e12:
        raise refused("cap", "Give a number above 0, or none.")
    if design.get("missing_as_zero") and metric != Experiment.Metric.NUMBER:
        raise refused("missing_as_zero", "Only of a number sent as feedback does a missing one say 0.")


def check_mode(
    mode: str, watched: list[dict[str, Any]], *, covariate: bool, promotes: bool, floor: float | None
) -> None:
    """Refuse what a mode cannot do, by its field. Raises ValidationError."""
    if mode != Experiment.Mode.BANDIT and floor is not None:
        raise refused("floor", "Only a bandit has one: elsewhere the share stays as it is.")
    if mode != Experiment.Mode.SPLIT and covariate:
        raise refused("covariate", "Only a split is adjusted by what keys did before.")
    if mode != Experiment.Mode.BANDIT:
        return
    if promotes:
        raise refused("promotes", "A bandit gives no verdict that could be acted upon; it moves the traffic itself.")
    for position, one in enumerate(watched):
        if "tolerance" in one:
            sentence = "A bandit's versions answer at different times, so they cannot be compared: give a limit."
            raise refused(f"guardrails.{position}.tolerance", sentence)


def direction_of(metric: str, higher_is_better: bool | None) -> bool:
    """Whether more of the metric is better. Raises ValidationError for the opposite of what its nature is."""
    if metric == Experiment.Metric.NUMBER:
        return higher_is_better is not False
    natural = metric not in LOWER_IS_BETTER
    if higher_is_better is not None and higher_is_better != natural:
        raise refused("higher_is_better", f"Of this metric, {'more' if natural else 'less'} is better.")
    return natural
