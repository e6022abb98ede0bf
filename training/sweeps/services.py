"""What changes in sweeps by a person. What follows from their runs is in `training.sweeps.advancing`."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone

from datasets.models import DatasetVersion
from dlplatform.accounts import audit
from dlplatform.accounts.access import require
from dlplatform.accounts.models import User
from dlplatform.api import Conflict
from registry import services as registry
from registry.models import ModelVersion, Ref
from training import finetuning
from training import services as runs
from training.experiments import experiment_for
from training.models import CodeBundle, Experiment, Run, Sweep, Trial

from .judging import ACTIVE, at_their_stop
from .plans import Search, plan_of
from .subjects import subject_of
from .waking import announce, wake


@transaction.atomic
def create_sweep(
    *,
    actor: User,
    dataset_version: DatasetVersion,
    space: Any,
    task: str = "",
    target: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    code: CodeBundle | None = None,
    entry: str = "",
    base_version: ModelVersion | None = None,
    finetune: Mapping[str, Any] | None = None,
    experiment: Experiment | None = None,
    name: str = "",
    register_as: str = "",
    **search: Any,
) -> Sweep:
    """Check everything that can be checked, then begin. Errors name the field and the fix.

    With ``code`` every trial is a run of it in a sandbox, starting with the file ``entry``; its parameters are searched as
    `params.NAME`. With ``base_version`` every trial fine-tunes that version, as ``finetune`` and what is drawn for
    `finetune.NAME` say; task, target and features are the base's own where it has them. ``search``: see `Search`.
    """
    organization = dataset_version.dataset.organization
    if experiment is None and base_version is not None and base_version.model.organization_id == organization.pk:
        experiment = finetuning.experiment_of(actor, base_version)
    experiment = experiment_for(actor=actor, organization=organization, experiment=experiment)
    subject = subject_of(
        actor=actor, dataset_version=dataset_version, task=task, target=target, features=features, config=config,
        code=code, entry=entry, base_version=base_version, finetune=finetune,
    )  # fmt: skip
    sweep = Sweep.objects.create(
        experiment=experiment,
        created_by=actor,
        name=name or f"{subject.model_name[:100]} sweep {experiment.sweeps.count() + 1}",
        register_as=register_as or subject.model_name,
        **vars(subject),
        **plan_of(Search(space, **search), subject),
    )
    audit.record(actor, "sweep.create", sweep, organization, name=sweep.name)
    announce(sweep)
    wake(sweep.pk)
    return sweep


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
