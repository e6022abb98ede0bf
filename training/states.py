"""Changes of a run's state: the row, the event and the hints, always together."""

from typing import Any

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest

from dlplatform import events
from dlplatform.engine.errors import CODES

from .models import Run
from .records import append_event

# Failures that only the platform can see; the engine's own are in dlplatform.engine.errors.
SENTENCES = {
    "crash_loop": (
        "The training process died {attempts} times and was not started again.",
        "Read the end of the log; lower the batch size if memory may have run out, then resume.",
    ),
    "stalled": (
        "Training made no progress for {seconds} seconds and was stopped.",
        "The log holds what every thread was doing. Resume to go on from the last checkpoint.",
    ),
    "data_unavailable": (
        "The dataset's files could not be read: {reason}",
        "Restore the object from a backup, or upload the data again as a new version.",
    ),
    "worker_lost": (
        "The worker was lost {attempts} times in a row.",
        "Check the machine's memory and the worker's log, then resume.",
    ),
    "memory_limit": (
        "The code used more than the {memory:,} MB of memory that a run may use, and was stopped.",
        CODES["memory_limit"],
    ),
    "process_limit": (
        "The code started more than the {processes} processes and threads that a run may have, and was stopped.",
        CODES["process_limit"],
    ),
    "disk_limit": (
        "The code wrote more than the {disk:,} MB, or more files, than a run may write, and was stopped.",
        CODES["disk_limit"],
    ),
    "time_limit": (
        "The code ran longer than the {seconds:,} seconds that a run may take, and was stopped.",
        "Train in fewer steps, or save a checkpoint in time; whoever runs the platform can allow more.",
    ),
    "log_limit": ("The code reported more than a run may report, and was stopped.", "Log and print less often."),
    "sandbox_unavailable": (
        "The code was not run: the worker's machine cannot confine it{reason}.",
        "Start the worker on Linux with the right to make namespaces (docs/own-code.md), then resume.",
    ),
    "code_not_permitted": (
        "Whoever launched the run may not run their own code here any more.",
        "Have somebody with the permission launch it.",
    ),
    "code_died": (
        "The process of the code ended without a word ({how}).",
        "Read the end of the log. Code that crashes in a library, or leaves by os._exit, ends so.",
    ),
    "too_few_accelerators": (
        "The run asks for {asked} devices; no machine has more than {most}.",
        "Clone the run with fewer devices, or start a worker on a machine with as many.",
    ),
    "worker_stopping": ("The worker on {host} is stopping.", "The run goes on by itself, with another machine."),
    "machine_failed": (
        "The part of the run on {host} ended ({how}). {words}",
        "If it happens again on the same machine, stop the worker there.",
    ),
    "machine_lost": (
        "A machine that the run trains on was lost {attempts} times: {reason}.",
        "Look at that machine, or clone the run with fewer nodes.",
    ),
    "package_rejected": ("The finished model did not pass its check: {reason}", CODES["internal"]),
}


OWN_OUTPUT = "Correct what the code writes into run.output, upload it again and start a new run; run.save(module) writes what can be kept."


def rejected(run: Run, reason: object) -> dict[str, str]:
    """That the finished model cannot be kept: of a user's own code for them to correct."""
    told = failure("package_rejected", reason=reason)
    return {**told, "next_step": OWN_OUTPUT} if run.code_id else told


def failure(code: str, **values: Any) -> dict[str, str]:
    sentence, next_step = SENTENCES[code]
    return {"code": code, "sentence": sentence.format(**values), "next_step": next_step}


def announce(run: Run) -> None:
    """Hints to the run's watchers and to the organization's lists, once the change is committed."""
    organization = run.experiment.organization_id
    transaction.on_commit(lambda: events.publish_run(run.pk, run.last_sequence))
    transaction.on_commit(lambda: events.publish_state(organization, "run", run.pk, run.state, run.name))


@transaction.atomic
def enter(run: Run, state: str, **fields: Any) -> None:
    """Move a run that we hold to another held state."""
    append_event(run, "state", state=state, attempt=run.attempt)
    run.write(state=state, **fields)
    announce(run)


@transaction.atomic
def end(run: Run, state: str, error: dict[str, str] | None = None) -> None:
    """End a run that we hold as failed or cancelled."""
    append_event(run, "state", state=state, error=error)
    run.finish(state, error=error, eta_seconds=None, phase="")
    announce(run)


@transaction.atomic
def pause(run: Run) -> None:
    """Set aside a run that we hold, to be continued from its checkpoint. It is no failure."""
    append_event(run, "state", state=Run.State.PAUSED)
    run.write(
        state=Run.State.PAUSED, lease_expires_at=None, lease_owner="", pause_requested_at=None, eta_seconds=None,
        phase="", failures=Greatest(F("failures") - 1, 0),
    )  # fmt: skip
    announce(run)


@transaction.atomic
def pause_queued(run: Run) -> bool:
    """Set aside a run that waits for a worker. False when one has taken it meanwhile."""
    if not Run.objects.filter(pk=run.pk, state=Run.State.QUEUED).update(state=Run.State.PAUSED):
        return False
    run.refresh_from_db()
    append_event(run, "state", state=run.state)
    announce(run)
    return True


@transaction.atomic
def requeue(run: Run, *, delay: float, charge: bool, reason: str) -> None:
    """Give a run that we hold back to the queue, to be resumed from its last checkpoint."""
    append_event(run, "log", level="warning", message=reason)
    append_event(run, "state", state=Run.State.QUEUED, attempt=run.attempt)
    run.release(delay=delay, charge=charge, phase="", eta_seconds=None)
    announce(run)


@transaction.atomic
def wait(run: Run, devices: int, *, delay: float) -> None:
    """Give a run that we hold back to the queue until devices are free. That is no attempt, and told once."""
    words = f"waiting for {devices} free device{'s' if devices > 1 else ''}"
    if run.waits_for is None:
        append_event(run, "log", level="info", message=f"The devices of this machine are in use; {words}.")
        append_event(run, "state", state=Run.State.QUEUED, attempt=run.attempt - 1)
    run.release(delay=delay, charge=False, attempt=F("attempt") - 1, waits_for=devices, phase=words)
    announce(run)


@transaction.atomic
def wait_for_machines(run: Run, nodes: int, reason: str, *, delay: float) -> None:
    """Give a run that we hold back to the queue until machines have free workers. No attempt; each reason is told once."""
    words = f"waiting for {nodes} machines: {reason}"[:60]
    if run.phase != words:
        append_event(run, "log", level="info", message=f"The run trains on {nodes} machines and waits: {reason}.")
        append_event(run, "state", state=Run.State.QUEUED, attempt=run.attempt - 1)
    run.release(delay=delay, charge=False, attempt=F("attempt") - 1, phase=words)
    announce(run)


@transaction.atomic
def end_unheld(run: Run, state: str, error: dict[str, str] | None = None, reason: str = "") -> bool:
    """End a run that nobody works on (queued, paused, or abandoned by a dead worker). False when that changed."""
    if not run.end_unheld(state, error=error, eta_seconds=None, phase="", reason=reason):
        return False
    run.refresh_from_db()
    if reason:
        append_event(run, "log", level="info", message=reason)
    append_event(run, "state", state=state, error=error)
    announce(run)
    return True


def give_up(run: Run) -> None:
    """The reconciler's verdict on an abandoned run that must not be tried again."""
    if run.cancel_requested_at:
        end_unheld(run, Run.State.CANCELLED)
    else:
        end_unheld(run, Run.State.FAILED, failure("worker_lost", attempts=run.attempt))
