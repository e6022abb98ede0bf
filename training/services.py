"""What changes in runs. The only writers besides the worker that holds a run."""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts import audit
from dlplatform.accounts.access import require, require_code
from dlplatform.accounts.models import Organization, User
from dlplatform.api import Conflict
from registry.models import ModelVersion

from . import states
from .experiments import experiment_for
from .learning_checks import check, check_code, features_by_default, targets_of
from .models import CodeBundle, Experiment, Run, Trial
from .records import append_event


class Origin(TypedDict, total=False):
    """What a run comes of. ``finetune``: how it starts from its base (see `training.finetuning`). A run of a sweep belongs
    to its ``trial`` and pauses after ``stop_after_epoch`` epochs. ``replays``: the version that it trains once more."""

    branch: str
    finetune: dict[str, Any] | None
    cloned_from: Run | None
    trial: Trial | None
    stop_after_epoch: int | None
    replays: ModelVersion | None


@transaction.atomic
def create_run(
    *,
    actor: User,
    dataset_version: DatasetVersion,
    task: str,
    target: str | Sequence[str],
    features: Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    experiment: Experiment | None = None,
    name: str = "",
    register_as: str = "",
    base_version: ModelVersion | None = None,
    code: CodeBundle | None = None,
    entry: str = "",
    **origin: Unpack[Origin],
) -> Run:
    """Check everything that can be checked, then queue the run. Errors name the field and the fix.

    ``target`` is one column, or several for regression and multilabel. With ``base_version`` the run starts from that
    model. With ``code`` it runs in a sandbox, and starts with the file ``entry``.
    """
    organization = dataset_version.dataset.organization
    experiment = experiment_for(actor=actor, organization=organization, experiment=experiment)
    learnt = _learnt(
        actor, dataset_version, task, targets_of(target), features, config or {}, code, entry, base_version, origin
    )
    run = Run.objects.create(
        experiment=experiment,
        created_by=actor,
        name=name or _next_name(dataset_version, experiment),
        register_as=register_as or dataset_version.dataset.name,
        **learnt,
        **origin,
    )
    _begin(run, actor, organization)
    return run


def _learnt(
    actor: User, version: DatasetVersion, task: str, targets: list[str], features: Sequence[str] | None,
    config: dict[str, Any], code: CodeBundle | None, entry: str, base: ModelVersion | None, origin: Origin,
) -> dict[str, Any]:  # fmt: skip
    """The fields of a run that say what it learns and from what, checked: what somebody has just set more strictly."""
    if code is not None:
        entry = check_code(actor, version.dataset.organization, code, entry, task)
    chosen = origin.get("replays") is None and origin.get("trial") is None
    original = origin.get("cloned_from")
    kept = original.config if original else {}
    settings = check(version, task, targets, features, config, entry, base, chosen=chosen, kept=kept)
    features = features or features_by_default(version, targets, task)
    return {
        "dataset_version": version,
        "task": task,
        "target": ", ".join(targets),
        "targets": targets if len(targets) > 1 else None,
        "features": list(features) if features else None,
        "config": settings,
        "base_version": base,
        "code": code,
        "entry": entry,
    }


def _begin(run: Run, actor: User, organization: Organization) -> None:
    """Whatever follows from a new run: its first event, the audit log, the queue, the pages."""
    append_event(run, "state", state=run.state)
    audit.record(actor, "run.create", run, organization, name=run.name)
    jobs.enqueue(run)
    states.announce(run)


def _next_name(version: DatasetVersion, experiment: Experiment) -> str:
    return f"{version.dataset.name[:100]}-{experiment.runs.count() + 1}"


@transaction.atomic
def cancel_run(*, actor: User, run: Run) -> Run:
    """Cancel: at once while queued; within seconds, after a checkpoint, while it trains."""
    require(actor, "run.write", run)
    run = Run.objects.select_for_update(of=("self",)).get(pk=run.pk)
    if run.ended:
        raise Conflict(f"This run is {run.state} already.", code="ended")
    if run.cancel_requested_at is None:
        Run.objects.filter(pk=run.pk).update(cancel_requested_at=Now())
        audit.record(actor, "run.cancel", run, run.experiment.organization)
    if run.state not in Run.HELD:
        states.end_unheld(run, Run.State.CANCELLED)
    run.refresh_from_db()
    return run


@transaction.atomic
def pause_run(*, actor: User, run: Run) -> Run:
    """Set a run aside: at once while queued; within seconds, after a checkpoint, while it trains. It can be resumed."""
    require(actor, "run.write", run)
    run = Run.objects.select_for_update(of=("self",)).get(pk=run.pk)
    if run.ended or run.state == Run.State.PAUSED:
        raise Conflict(f"This run is {run.state} already.", code="not_running")
    if run.cancel_requested_at:
        raise Conflict("This run is being cancelled; resume it afterwards.", code="being_cancelled")
    if not states.pause_queued(run) and run.pause_requested_at is None:
        Run.objects.filter(pk=run.pk).update(pause_requested_at=Now())
    audit.record(actor, "run.pause", run, run.experiment.organization)
    run.refresh_from_db()
    return run


RESUMABLE = (Run.State.PAUSED, Run.State.FAILED, Run.State.CANCELLED)


@transaction.atomic
def resume_run(*, actor: User, run: Run, stop_after_epoch: int | None = None) -> Run:
    """Queue a paused, failed or cancelled run again; it goes on from its last checkpoint, and returns to the lists.

    With ``stop_after_epoch`` it pauses again after so many epochs; without, it trains to the end.
    """
    require(actor, "run.write", run)
    if run.code_id is not None:
        require_code(actor, run.experiment.organization)
    run = Run.objects.select_for_update(of=("self",)).get(pk=run.pk)
    if run.state not in RESUMABLE:
        raise Conflict(
            f"Only a paused, failed or cancelled run can be resumed; this one is {run.state}.", code="not_resumable"
        )
    Run.objects.filter(pk=run.pk).update(
        state=Run.State.QUEUED, failures=0, cancel_requested_at=None, pause_requested_at=None, not_before=None,
        finished_at=None, error=None, reason="", queued_at=Now(), archived_at=None, stop_after_epoch=stop_after_epoch,
    )  # fmt: skip
    run.refresh_from_db()
    append_event(run, "state", state=run.state)
    audit.record(actor, "run.resume", run, run.experiment.organization)
    jobs.enqueue(run)
    states.announce(run)
    return run


def clone_run(*, actor: User, run: Run, **changes: Any) -> Run:
    """A new run with the same choices but for ``changes``; settings are merged key by key."""
    choices: dict[str, Any] = {
        "dataset_version": run.dataset_version,
        "task": run.task,
        "target": run.target_names,
        "features": run.features,
        "experiment": run.experiment,
        "register_as": run.register_as,
        "branch": run.branch,
        "base_version": run.base_version,
        "finetune": run.finetune,
        "code": run.code,
        "entry": run.entry,
    }
    config = run.config | changes.pop("config", {})
    return create_run(actor=actor, config=config, cloned_from=run, **(choices | changes))


@transaction.atomic
def set_run_archived(*, actor: User, run: Run, archived: bool) -> Run:
    """Take an ended run out of the lists, or bring it back."""
    require(actor, "run.write", run)
    if archived and not run.ended:
        raise Conflict("Cancel the run before archiving it.", code="not_ended")
    run.archived_at = timezone.now() if archived else None
    run.save(update_fields=["archived_at"])
    audit.record(actor, "run.archive" if archived else "run.restore", run, run.experiment.organization)
    return run


@transaction.atomic
def rename_run(*, actor: User, run: Run, name: str) -> Run:
    require(actor, "run.write", run)
    run.name = name
    run.save(update_fields=["name"])
    audit.record(actor, "run.rename", run, run.experiment.organization, name=name)
    return run
