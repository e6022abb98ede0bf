"""How a sweep searches, checked: space, sampler, pruner, metric, and how many trials of how many seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError

from dlplatform.engine.fields import CODE
from training.code import ARCHITECTURE
from training.findings import lower_is_better
from training.models import Sweep

from .judging import ALL_METRICS, METRICS
from .rungs import MEDIAN, NONE, rung_epochs
from .space import Dimension, SpaceError, grid_size, parse_space
from .subjects import Subject, check_ways

MOST_TRIALS = 1000
MOST_PARALLEL = 64
MOST_SEEDS = 20
MOST_RUNGS = 50
LONGEST_METRIC = 120
LIMITS = {"trials": (1, MOST_TRIALS), "parallel": (1, MOST_PARALLEL), "seeds": (1, MOST_SEEDS), "eta": (2, 10),
          "least_epochs": (1, 10_000), "seed": (0, 2**31 - 1)}  # fmt: skip


@dataclass(frozen=True)
class Search:
    """As a person asks for it. ``direction`` follows from the metric unless it is given; ``trials`` defaults to 20, and to
    all points of a grid; ``eta`` and ``least_epochs`` are for pruners."""

    space: Any
    sampler: str = Sweep.Sampler.TPE
    pruner: str = Sweep.Pruner.NONE
    metric: str = "validation/loss"
    direction: str = ""
    trials: int | None = None
    parallel: int = 2
    seeds: int = 1
    seed: int = 0
    eta: int = 3
    least_epochs: int = 1


def plan_of(search: Search, subject: Subject) -> dict[str, Any]:
    """The fields of a sweep that say how it searches. ValidationError with the field and the fix."""
    dimensions = _space(search.space, subject)
    _check_choices(search, _metrics(search, subject))
    return {
        "space": [one.to_dict() for one in dimensions],
        "sampler": search.sampler,
        "pruner": search.pruner,
        "rungs": _rungs(search, subject, dimensions),
        "eta": search.eta,
        "metric": search.metric,
        "direction": search.direction or ("minimize" if lower_is_better(search.metric) else "maximize"),
        "trial_count": _trial_count(search, dimensions),
        "parallel": search.parallel,
        "seeds": search.seeds,
        "seed": search.seed,
    }


def _space(space: Any, subject: Subject) -> list[Dimension]:
    try:
        dimensions = parse_space(space, subject.config, subject.task, subject.finetune)
    except SpaceError as error:
        raise ValidationError(
            {field: ValidationError(message, code=code) for field, code, message in error.problems}
        ) from None
    check_ways(subject, dimensions)
    for number, one in enumerate(dimensions if subject.config.get("architecture") == CODE else ()):
        if one.name == "architecture":
            text = "The code is the architecture of all trials; search its parameters as params.NAME."
            raise _invalid(f"space.{number}.name", text, "not_for_code")
    return dimensions


def _metrics(search: Search, subject: Subject) -> Sequence[str]:
    """What trials can be judged by. What a script reports only it knows."""
    if not subject.entry or subject.entry == ARCHITECTURE:
        return METRICS[subject.task]
    _check_script(search)
    return (search.metric,)


def _check_script(search: Search) -> None:
    """What trials of a script cannot be judged by."""
    if search.pruner != Sweep.Pruner.NONE:
        text = "A script trains as it likes, so nobody can pause it after an epoch; take pruner none."
        raise _invalid("pruner", text, "not_for_script")
    if not search.metric or len(search.metric) > LONGEST_METRIC:
        text = f"Name the metric that the script reports, in at most {LONGEST_METRIC} characters."
        raise _invalid("metric", text, "required")
    if not search.direction and search.metric not in ALL_METRICS:
        text = f"Say whether to minimize or to maximize {search.metric[:60]}, which the platform does not know."
        raise _invalid("direction", text, "required")


def _check_choices(search: Search, metrics: Sequence[str]) -> None:
    choices = {
        "sampler": Sweep.Sampler.values, "pruner": Sweep.Pruner.values, "metric": metrics,
        "direction": ["", *Sweep.Direction.values],
    }  # fmt: skip
    problems = {
        field: ValidationError(f"Choose one of: {', '.join(filter(None, known))}.", code="unknown_choice")
        for field, known in choices.items()
        if getattr(search, field) not in known
    }
    problems |= _out_of_range(search)
    if problems:
        raise ValidationError(problems)


def _out_of_range(search: Search) -> dict[str, ValidationError]:
    """None stands for what was left to us."""
    problems = {}
    for field, (low, high) in LIMITS.items():
        number = getattr(search, field)
        if number is not None and not low <= number <= high:
            problems[field] = ValidationError(f"Give a whole number from {low} to {high}.", code="out_of_range")
    return problems


def _trial_count(search: Search, dimensions: Sequence[Dimension]) -> int:
    if search.sampler != Sweep.Sampler.GRID:
        return search.trials or 20
    size = grid_size(dimensions)
    if search.trials is None and size > MOST_TRIALS:
        text = f"The grid has {size:,} points; take fewer values, or at most {MOST_TRIALS:,} trials of them."
        raise _invalid("space", text, "too_many")
    return min(size, search.trials or size)


def _rungs(search: Search, subject: Subject, dimensions: Sequence[Dimension]) -> list[int]:
    """The epochs after which trials are judged. Raises ValidationError where they cannot be known."""
    if search.pruner == NONE:
        return []
    epochs = subject.config.get("epochs")
    if any(one.name == "epochs" for one in dimensions) or not isinstance(epochs, int):
        text = "Pruning compares trials after the same epochs: give config.epochs as a number, and do not search it."
        raise _invalid("pruner", text, "needs_epochs")
    step = max(search.least_epochs, epochs // MOST_RUNGS) if search.pruner == MEDIAN else search.least_epochs
    found = rung_epochs(search.pruner, step, epochs, search.eta)
    if not found:
        raise _invalid("least_epochs", f"There is nothing to prune: a trial has only {epochs} epochs.", "out_of_range")
    return found


def _invalid(field: str, text: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(text, code=code)})
