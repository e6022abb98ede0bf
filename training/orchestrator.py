"""Takes a run from its claim to its end: job directory, engine, monitor, collector."""

import json
import logging
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.db import connection as database

from datasets.ingestion.leakage import leakage_warnings
from dlplatform.accounts.access import may_run_code
from dlplatform.engine.errors import PackageError
from dlplatform.jobs import LeaseLost
from dlplatform.objects.store import CorruptObject, MissingObject
from dlplatform.sandbox.process import WORK, Unconfinable

from . import kept_checkpoints, states
from .accelerators import leases
from .collector import collect
from .confined import SandboxConnection, allowed_to_code, read_plain
from .connection import OUTPUT_FILE, Connection, LocalConnection
from .job_directories import job_directory
from .kept_checkpoints import CheckpointKeeper
from .models import Run
from .monitor import Monitor
from .nodes.gathering import Gathering, TooFewMachines, wanted
from .preparing import prepare

logger = logging.getLogger(__name__)

FIRST_POLL_SECONDS = 0.005  # until the first metric: somebody is waiting for it
POLL_SECONDS = 0.02
IDLE_POLL_SECONDS = 0.2
RENEW_SECONDS = 1.0
WAIT_SECONDS = 5.0  # between two looks for free devices; a run that ends has those who wait look at once
CANCEL_GRACE = 4.0
DRAIN_GRACE = 25.0
DATABASE_PATIENCE = 120.0
INTERRUPTED = 75
LAST_WORDS = 2_000


class Interrupted(Exception):
    """A cancel was asked for, or the worker is to end, before the engine was started."""


class NotPermitted(Exception):
    """Who launched the run may not run their own code any more."""


class Orchestrator:
    """Works on one claimed run. Every write to the row carries the epoch of the claim."""

    def __init__(self, run: Run, connect: Callable[[], Connection] | None = None) -> None:
        self.run = run
        self.directory = job_directory(run)
        self.connection = connect() if connect else connection_for(run)
        self.work_directory = self.directory / WORK if run.code_id else self.directory
        self.monitor = Monitor(run, self.work_directory)
        self.cancelled = False
        self.draining = False
        self.stalled = False
        self.doubted = False
        self.group = Gathering(run) if wanted(run) > 1 else None
        # What code of a user's own calls a checkpoint stays where it is confined.
        self.keeper = None if run.code_id else CheckpointKeeper(run, self.directory)
        self.lost = ""  # why the machines cannot go on together
        self._stop_sent: float | None = None
        self._renewed = time.monotonic()  # the claim has just taken the lease

    def work(self) -> None:
        """From the claim to the end. Never leaves an engine behind, whatever happens."""
        signal.signal(signal.SIGTERM, self._drain)
        try:
            devices = leases.hold(self.run)
            if devices is None:
                states.wait(self.run, leases.wanted(self.run), delay=WAIT_SECONDS)
                return
            if self.group:
                self.group.ask()
            self._prepare()
            if self.keeper:
                kept_checkpoints.fetch(self.run, self.directory, self._beat)
            if self.group:
                self.group.wait(self._beat).write(self.directory)
                self._log("info", f"Trains on {', '.join([settings.NODE_NAME, *self.group.hosts()])}.")
            self.connection.start(self.directory, devices)
            states.enter(self.run, Run.State.RUNNING)
            self._follow()
            self._patiently(self._keep)
            self._patiently(self._conclude)
        except Interrupted:
            self._patiently(self._conclude_early)
        except TooFewMachines as reason:
            states.wait_for_machines(self.run, wanted(self.run), str(reason), delay=WAIT_SECONDS)
        except LeaseLost:
            logger.warning("run %s is held by somebody else now; this worker stops", self.run.pk)
        except leases.TooFew as few:
            asked, most = few.args
            states.end(self.run, Run.State.FAILED, states.failure("too_few_accelerators", asked=asked, most=most))
        except (MissingObject, CorruptObject) as error:
            states.end(self.run, Run.State.FAILED, states.failure("data_unavailable", reason=error))
        except Unconfinable as error:
            states.end(self.run, Run.State.FAILED, states.failure("sandbox_unavailable", reason=f" ({error})"))
        except NotPermitted:
            states.end(self.run, Run.State.FAILED, states.failure("code_not_permitted"))
        finally:
            self.connection.kill()
            self._patiently(self._let_go)

    def _let_go(self) -> None:
        leases.give_back(self.run)
        if self.group:
            self.group.dissolve()

    def _drain(self, _signal: int, _frame: Any) -> None:
        self.draining = True

    # --- before -------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Write the job directory; what an earlier attempt left there is kept and resumed from."""
        self._require_permission()
        prepare(self.run, self.directory, self._beat)

    def _require_permission(self) -> None:
        """To run code of one's own; it may have been taken back since the run was queued."""
        run = self.run
        if run.code_id and (run.created_by is None or not may_run_code(run.created_by, run.experiment.organization)):
            raise NotPermitted

    def _beat(self, _count: int = 1) -> None:
        """While something long is prepared: keep the lease; raise Interrupted when it is no longer wanted."""
        self._renew()
        if self.cancelled or self.draining or self.run.pause_requested_at:
            raise Interrupted

    # --- during -------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Until the engine exits: ship its events, keep the lease, pass on cancel and drain, notice a stall."""
        quiet_since = time.monotonic()
        while self.connection.poll() is None:
            if self._patiently(self._look):
                quiet_since = time.monotonic()
            time.sleep(self._pause(time.monotonic() - quiet_since))
        self._patiently(self.monitor.ship)

    def _pause(self, quiet: float) -> float:
        if quiet > 2.0:
            return IDLE_POLL_SECONDS
        return POLL_SECONDS if self.run.metrics else FIRST_POLL_SECONDS

    def _look(self) -> bool:
        found = self.monitor.ship()
        self._renew()
        self._stop_if_asked()
        self._stop_if_stalled()
        self._stop_if_torn()
        if self.keeper:
            self.keeper.look()
        if not self.doubted and self.run.metrics:
            self._doubt()
        return found

    def _doubt(self) -> None:
        """Columns that give the target away; looked for once training is under way, not before it starts."""
        run = self.run
        self.doubted = True
        paths = sorted((self.directory / "data").glob("*.parquet"))
        taken = set(run.target_names)
        features = run.features or [c["name"] for c in run.dataset_version.columns if c["name"] not in taken]
        doubts = [doubt for target in run.target_names for doubt in leakage_warnings(paths, target, features)]
        run.write(warnings=[{"column": doubt.column, "code": doubt.code, "detail": doubt.detail} for doubt in doubts])

    def _renew(self) -> None:
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self.cancelled = self.run.renew() or self.cancelled
            self._renewed = time.monotonic()

    def _stop_if_asked(self) -> None:
        if not (self.cancelled or self.draining or self.run.pause_requested_at):
            return
        now = time.monotonic()
        if self._stop_sent is None:
            self._stop_sent = now
            self.connection.interrupt()
        elif now - self._stop_sent > (CANCEL_GRACE if self.cancelled else DRAIN_GRACE):
            self.connection.kill()

    def _stop_if_stalled(self) -> None:
        limit = float(self.run.config.get("stall_timeout") or settings.RUN_STALL_SECONDS)
        if self.monitor.silence() < limit or self.stalled:
            return
        self.stalled = True
        stacks = self.connection.dump_stacks()
        self._log("error", f"No progress for {limit:.0f} s. What every thread was doing:\n{stacks}")
        self.connection.interrupt()
        time.sleep(1.0)
        self.connection.kill()

    def _stop_if_torn(self) -> None:
        """Without one of its machines the group cannot compute another step."""
        if self.group and not self.lost and (reason := self.group.watch()):
            self.lost = reason
            self.connection.kill()

    def _keep(self) -> None:
        """What whoever goes on with the run needs, should that be another machine."""
        if self.keeper and not (self.monitor.finished or self.cancelled):
            self.keeper.finish(self._renew)

    def _log(self, level: str, message: str) -> None:
        from .records import append_event, clean_json

        append_event(self.run, "log", level=level, message=json.loads(clean_json(message)))

    def _patiently(self, step: Callable[[], Any]) -> Any:
        """Do a step that needs the database; while it is away the engine goes on and the spool holds all.

        Whether the last commit before the cut arrived is unknown, so nothing is tried again before our position
        was read anew.
        """
        started = time.monotonic()
        cut = False
        while True:
            try:
                if cut:
                    self.monitor.refresh()
                return step()
            except (OperationalError, InterfaceError):
                if time.monotonic() - started > DATABASE_PATIENCE:
                    raise
                cut = True
                database.close()
                time.sleep(0.3)

    # --- after --------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        """One of: succeeded, cancelled, paused, back to the queue, failed."""
        code = self.connection.poll()
        fault = self.connection.fault()
        if code == 0 and self.monitor.finished:
            self._succeed(self.monitor.finished["metrics"])
        elif self.cancelled or self.run.pause_requested_at or self._reached_its_stop(code) or self.draining:
            self._conclude_early(code)
        elif self._stop_sent is not None and code == INTERRUPTED:
            states.requeue(
                self.run, delay=0, charge=False, reason="What it was stopped for was taken back; it goes on."
            )
        elif self.group and self.group.stopping():
            states.requeue(
                self.run, delay=0, charge=False, reason="The worker of a machine is stopping; the run goes on."
            )
        elif self.group and (lost := self.lost or self.group.lost()):
            self._log("error", f"The machines cannot go on together: {lost}.")
            self._retry_or_fail(states.failure("machine_lost", attempts=self.run.failures, reason=lost))
        elif fault:
            self._tell_the_end()
            states.end(self.run, Run.State.FAILED, states.failure(fault, **allowed_to_code()))
        elif self.stalled:
            self._retry_or_fail(states.failure("stalled", seconds=self.run.config.get("stall_timeout", 0)))
        elif self.monitor.failed:
            error = {key: str(self.monitor.failed[key]) for key in ("code", "sentence", "next_step")}
            states.end(self.run, Run.State.FAILED, error)
        elif self.run.code_id and code != -signal.SIGKILL:
            self._tell_the_end()
            states.end(self.run, Run.State.FAILED, states.failure("code_died", how=_how(code)))
        else:
            self._log("error", f"The training process ended without a word ({_how(code)}).")
            self._retry_or_fail(states.failure("crash_loop", attempts=self.run.attempt))

    def _tell_the_end(self) -> None:
        """What the program wrote past its log, such as the last words of a library."""
        if words := read_plain(self.directory / OUTPUT_FILE, LAST_WORDS).strip():
            self._log("error", words)

    def _conclude_early(self, code: int | None = None) -> None:
        """What was asked for while there was more to do: the end, a pause, or another worker."""
        if self.cancelled:
            states.end(self.run, Run.State.CANCELLED)
        elif self.run.pause_requested_at or self._reached_its_stop(code):
            states.pause(self.run)
        else:
            states.requeue(self.run, delay=0, charge=False, reason="The worker is stopping; the run goes on elsewhere.")

    def _reached_its_stop(self, code: int | None) -> bool:
        """Whether the engine ended of itself after the epochs that it was to train; a draining worker had it end."""
        return code == INTERRUPTED and self.run.stop_after_epoch is not None and not self.draining

    def _succeed(self, metrics: dict[str, Any]) -> None:
        run = self.run
        if not self.doubted:
            self._doubt()
        try:
            collect(run, self.work_directory, metrics)
        except PackageError as error:
            states.end(run, Run.State.FAILED, states.rejected(run, error))
            return
        shutil.rmtree(self.directory, ignore_errors=True)
        kept_checkpoints.forget(run)

    def _retry_or_fail(self, error: dict[str, str]) -> None:
        if self.run.failures >= self.run.max_attempts:
            states.end(self.run, Run.State.FAILED, error)
            return
        delay = min(2.0 ** (self.run.failures - 1), 60.0)
        states.requeue(
            self.run, delay=delay, charge=True,
            reason=f"Attempt {self.run.attempt} of {self.run.max_attempts} failed; trying again from the last checkpoint.",
        )  # fmt: skip


def connection_for(run: Run) -> Connection:
    """A sandbox for a run with code of a user's own; else the engine as a fork of this process."""
    return SandboxConnection(run) if run.code_id else LocalConnection()


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        hint = "; memory may have run out" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"exit code {code}"
