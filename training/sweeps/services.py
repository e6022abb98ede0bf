"""What changes in sweeps by a person. What follows from their runs is in `training.sweeps.advancing`."""

from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from datasets.models import DatasetVersion
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from dlplatform.engine.fields import CODE
from registry import services as registry
from registry.models import ModelVersion, Ref
from training import services as runs
from training.code import ARCHITECTURE
from training.experiments import experiment_for
from training.findings import lower_is_better
from training.models import CodeBundle, Experiment, Run, Sweep, Trial

from .judging import ACTIVE, ALL_METRICS, METRICS, at_their_stop
from .rungs import MEDIAN, NONE, rung_epochs
from .space import Dimension, SpaceError, grid_size, parse_space
from .waking import announce, wake

MOST_TRIALS = 1000
MOST_PARALLEL = 64
MOST_SEEDS = 20
MOST_RUNGS = 50
LONGEST_METRIC = 120
LIMITS = {"trials": (1, MOST_TRIALS), "parallel": (1, MOST_PARALLEL), "seeds": (1, MOST_SEEDS), "eta": (2, 10),
          "least_epochs": (1, 10_000), "seed": (0, 2**31 - 1)}  # fmt: skip


@transaction.atomic
def create_sweep(
    *,
    actor: User,
    dataset_version: DatasetVersion,
    task: str,
    target: str | Sequence[str],
    space: Any,
    features: Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    sampler: str = Sweep.Sampler.TPE,
    pruner: str = Sweep.Pruner.NONE,
    metric: str = "validation/loss",
    direction: str = "",
    trials: int | None = None,
    parallel: int = 2,
    seeds: int = 1,
    seed: int = 0,
    eta: int = 3,
    least_epochs: int = 1,
    experiment: Experiment | None = None,
    name: str = "",
    register_as: str = "",
    code: CodeBundle | None = None,
    entry: str = "",
) -> Sweep:
    """Check everything that can be checked, then begin. Errors name the field and the fix.

    With ``code`` every trial is a run of it in a sandbox, starting with the file ``entry``; its parameters are searched as
    `params.NAME`. ``direction`` follows from the metric unless it is given. ``trials`` defaults to 20, and to all points of a grid.
    """
    targets = runs.targets_of(target)
    organization = dataset_version.dataset.organization
    experiment = experiment_for(actor=actor, organization=organization, experiment=experiment)
    if code is not None:
        entry = runs.check_code(actor, organization, code, entry, task)
    settings = runs.check(dataset_version, task, targets, features, config or {}, entry)
    dimensions = _space(space, settings, task)
    metrics = _metrics(task, entry, pruner, metric, direction)
    numbers = {"trials": trials, "parallel": parallel, "seeds": seeds, "eta": eta, "least_epochs": least_epochs}
    _check_choices(metrics, sampler, pruner, metric, direction, numbers | {"seed": seed})
    sweep = Sweep.objects.create(
        experiment=experiment,
        created_by=actor,
        name=name or f"{dataset_version.dataset.name[:100]} sweep {experiment.sweeps.count() + 1}",
        dataset_version=dataset_version,
        task=task,
        targets=targets,
        features=list(features) if features else None,
        config=settings,
        code=code,
        entry=entry,
        space=[one.to_dict() for one in dimensions],
        sampler=sampler,
        pruner=pruner,
        rungs=_rungs(pruner, settings, dimensions, least_epochs, eta),
        eta=eta,
        metric=metric,
        direction=direction or ("minimize" if lower_is_better(metric) else "maximize"),
        trial_count=_trial_count(sampler, dimensions, trials),
        parallel=parallel,
        seeds=seeds,
        seed=seed,
        register_as=register_as or dataset_version.dataset.name,
    )
    audit.record(actor, "sweep.create", sweep, organization, name=sweep.name)
    announce(sweep)
    wake(sweep.pk)
    return sweep


def _space(space: Any, settings: dict[str, Any], task: str) -> list[Dimension]:
    try:
        dimensions = parse_space(space, settings, task)
    except SpaceError as error:
        raise ValidationError(
            {field: ValidationError(message, code=code) for field, code, message in error.problems}
        ) from None
    for number, one in enumerate(dimensions if settings.get("architecture") == CODE else ()):
        if one.name == "architecture":
            text = "The code is the architecture of all trials; search its parameters as params.NAME."
            raise _invalid(f"space.{number}.name", text, "not_for_code")
    return dimensions


def _metrics(task: str, entry: str, pruner: str, metric: str, direction: str) -> Sequence[str]:
    """What trials can be judged by. What a script reports only it knows."""
    if not entry or entry == ARCHITECTURE:
        return METRICS[task]
    _check_script(pruner, metric, direction)
    return (metric,)


def _check_script(pruner: str, metric: str, direction: str) -> None:
    """What trials of a script cannot be judged by."""
    if pruner != Sweep.Pruner.NONE:
        text = "A script trains as it likes, so nobody can pause it after an epoch; take pruner none."
        raise _invalid("pruner", text, "not_for_script")
    if not metric or len(metric) > LONGEST_METRIC:
        text = f"Name the metric that the script reports, in at most {LONGEST_METRIC} characters."
        raise _invalid("metric", text, "required")
    if not direction and metric not in ALL_METRICS:
        text = f"Say whether to minimize or to maximize {metric[:60]}, which the platform does not know."
        raise _invalid("direction", text, "required")


def _check_choices(
    metrics: Sequence[str], sampler: str, pruner: str, metric: str, direction: str, numbers: dict[str, int | None]
) -> None:
    choices = {
        "sampler": (sampler, Sweep.Sampler.values), "pruner": (pruner, Sweep.Pruner.values),
        "metric": (metric, metrics), "direction": (direction, ["", *Sweep.Direction.values]),
    }  # fmt: skip
    problems = {
        field: ValidationError(f"Choose one of: {', '.join(filter(None, known))}.", code="unknown_choice")
        for field, (given, known) in choices.items()
        if given not in known
    }
    problems |= _out_of_range(numbers)
    if problems:
        raise ValidationError(problems)


def _out_of_range(numbers: dict[str, int | None]) -> dict[str, ValidationError]:
    """None stands for what was left to us."""
    problems = {}
    for field, number in numbers.items():
        low, high = LIMITS[field]
        if number is not None and not low <= number <= high:
            problems[field] = ValidationError(f"Give a whole number from {low} to {high}.", code="out_of_range")
    return problems


def _trial_count(sampler: str, dimensions: Sequence[Dimension], trials: int | None) -> int:
    if sampler != Sweep.Sampler.GRID:
        return trials or 20
    size = grid_size(dimensions)
    if trials is None and size > MOST_TRIALS:
        text = f"The grid has {size:,} points; take fewer values, or at most {MOST_TRIALS:,} trials of them."
        raise _invalid("space", text, "too_many")
    return min(size, trials or size)


def _rungs(pruner: str, settings: dict[str, Any], dimensions: Sequence[Dimension], least: int, eta: int) -> list[int]:
    """The epochs after which trials are judged. Raises ValidationError where they cannot be known."""
    if pruner == NONE:
        return []
    epochs = settings.get("epochs")
    if any(one.name == "epochs" for one in dimensions) or not isinstance(epochs, int):
        text = "Pruning compares trials after the same epochs: give config.epochs as a number, and do not search it."
        raise _invalid("pruner", text, "needs_epochs")
    step = max(least, epochs // MOST_RUNGS) if pruner == MEDIAN else least
    found = rung_epochs(pruner, step, epochs, eta)
    if not found:
        raise _invalid("least_epochs", f"There is nothing to prune: a trial has only {epochs} epochs.", "out_of_range")
    return found


def _invalid(field: str, text: str, code: str) -> ValidationError:
    return ValidationError({field: ValidationError(text, code=code)})


# --- changes -------------------------------------------------------------------------------------------


def _locked(actor: User, sweep: Sweep) -> Sweep:
    require(actor, "run.write", sweep)
    return Sweep.objects.select_for_update(of=("self",)).select_related("experiment__organization").get(pk=sweep.pk)


def _runs_of(sweep: Sweep, **conditions: Any) -> list[Run]:
    return list(Run.objects.filter(trial__sweep=sweep, **conditions).select_related("experiment__organization"))


@transaction.atomic
def cancel_sweep(*, actor: User, sweep: Sweep) -> Sweep:
    """Cancel it and every run of it that has not ended."""
    sweep = _locked(actor, sweep)
    if sweep.ended:
        raise Conflict(f"This sweep is {sweep.state} already.", code="ended")
    for run in _runs_of(sweep, state__in=(*ACTIVE, Run.State.PAUSED)):
        runs.cancel_run(actor=actor, run=run)
    return _enter(actor, sweep, Sweep.State.CANCELLED, "sweep.cancel", finished_at=timezone.now())


@transaction.atomic
def pause_sweep(*, actor: User, sweep: Sweep) -> Sweep:
    """Draw no more trials, and pause what trains."""
    sweep = _locked(actor, sweep)
    if sweep.state != Sweep.State.RUNNING:
        raise Conflict(f"This sweep is {sweep.state}; only a running one can be paused.", code="not_running")
    for run in _runs_of(sweep, state__in=ACTIVE, cancel_requested_at=None):
        runs.pause_run(actor=actor, run=run)
    return _enter(actor, sweep, Sweep.State.PAUSED, "sweep.pause")


@transaction.atomic
def resume_sweep(*, actor: User, sweep: Sweep) -> Sweep:
    """Go on where it was paused."""
    sweep = _locked(actor, sweep)
    if sweep.state != Sweep.State.PAUSED:
        raise Conflict(f"This sweep is {sweep.state}; only a paused one can be resumed.", code="not_resumable")
    Run.objects.filter(trial__sweep=sweep, state__in=ACTIVE).update(pause_requested_at=None)
    paused = _runs_of(sweep, state=Run.State.PAUSED)
    waiting = set(at_their_stop(paused))
    for run in paused:
        if run.pk not in waiting:
            runs.resume_run(actor=actor, run=run, stop_after_epoch=run.stop_after_epoch)
    return _enter(actor, sweep, Sweep.State.RUNNING, "sweep.resume", reason="")


@transaction.atomic
def rerun_failed(*, actor: User, sweep: Sweep) -> Sweep:
    """Run the failed runs of failed trials again, each from its last checkpoint, and nothing else."""
    sweep = _locked(actor, sweep)
    if sweep.state == Sweep.State.CANCELLED:
        raise Conflict("This sweep was cancelled; start another.", code="ended")
    failed = list(sweep.trials.filter(state=Trial.State.FAILED))
    if not failed:
        raise Conflict("No trial of this sweep has failed.", code="none_failed")
    for run in _runs_of(sweep, trial__in=failed, state=Run.State.FAILED):
        runs.resume_run(actor=actor, run=run, stop_after_epoch=run.stop_after_epoch)
    again = [trial.pk for trial in failed if trial.runs.exists()]
    without = [trial.pk for trial in failed if trial.pk not in again]
    sweep.trials.filter(pk__in=again).update(state=Trial.State.RUNNING, value=None)
    sweep.trials.filter(pk__in=without).update(state=Trial.State.RUNNING, error=None)  # which get their runs anew
    return _enter(actor, sweep, Sweep.State.RUNNING, "sweep.rerun", finished_at=None, reason="")


def _enter(actor: User, sweep: Sweep, state: str, action: str, **fields: Any) -> Sweep:
    for name, value in {"state": state, **fields}.items():
        setattr(sweep, name, value)
    sweep.save(update_fields=["state", *fields])
    audit.record(actor, action, sweep, sweep.experiment.organization)
    announce(sweep)
    wake(sweep.pk)
    return sweep


# --- the best ------------------------------------------------------------------------------------------


def best_trial(sweep: Sweep) -> Trial | None:
    """Of those that trained to the end."""
    order = "-value" if sweep.direction == Sweep.Direction.MAXIMIZE else "value"
    ended = sweep.trials.filter(state=Trial.State.SUCCEEDED, value__isnull=False)
    return ended.order_by(order, "number").first()


def best_version(sweep: Sweep, trial: Trial) -> ModelVersion | None:
    """Of a trial's runs, the version of the one with the best metric."""
    order = "-series__maximum" if sweep.direction == Sweep.Direction.MAXIMIZE else "series__minimum"
    made = Run.objects.filter(trial=trial, output_version__isnull=False, series__key=sweep.metric)
    run = made.select_related("output_version__model__organization").order_by(order).first()
    return run.output_version if run else None


def promote_best(*, actor: User, sweep: Sweep, kind: str = Ref.Kind.BRANCH, name: str = "main") -> Ref:
    """Point a branch or an alias of the model at the best trial's version."""
    require(actor, "run.write", sweep)
    trial = best_trial(sweep)
    version = best_version(sweep, trial) if trial else None
    if trial is None or version is None:
        raise Conflict("No trial has trained to the end yet.", code="no_best")
    reason = f"Best of {sweep.name}: trial {trial.number}, {sweep.metric} {trial.value:.4g}"
    return registry.move_ref(actor=actor, model=version.model, kind=kind, name=name, version=version, reason=reason)
