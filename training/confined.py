"""The connection to a sandbox on this machine, in which a run with code of a user's own works."""

import os
import signal
import stat
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings

from dlplatform.engine.events import SPOOL
from dlplatform.engine.job import BASE, CODE, SPEC, STACKS
from dlplatform.sandbox.limits import MIB, Limits
from dlplatform.sandbox.plan import FOLDER, Plan
from dlplatform.sandbox.process import STATE, Sandbox, environment, user_for, working_folder

from .accelerators.devices import files_of
from .connection import OUTPUT_FILE
from .models import Preflight, Run

COMMAND = ("-P", "-s", "-m", "dlplatform.engine.sandboxed")
MOST_THREADS = 8
MOST_FILES = 100_000
MOST_REPORTED = 64 * MIB
MOST_STACKS = 8_000


def limits_of_code() -> Limits:
    """What this installation lets a run with code use."""
    return Limits(
        memory=settings.SANDBOX_MEMORY_MB * MIB,
        processes=settings.SANDBOX_PROCESSES,
        disk=settings.SANDBOX_DISK_MB * MIB,
        files=MOST_FILES,
        spool=MOST_REPORTED,
        seconds=float(settings.SANDBOX_SECONDS),
    )


def allowed_to_code() -> dict[str, Any]:
    """The same, for sentences about it."""
    return {"memory": settings.SANDBOX_MEMORY_MB, "processes": settings.SANDBOX_PROCESSES,
            "disk": settings.SANDBOX_DISK_MB, "seconds": settings.SANDBOX_SECONDS, "reason": ""}  # fmt: skip


class SandboxConnection:
    """The engine, and the user's code in it, as a program of its own in a sandbox of its own."""

    def __init__(self, run: Run | Preflight) -> None:
        self._run = run
        self._sandbox: Sandbox | None = None
        self._work = Path()

    def start(self, job_directory: Path, devices: Sequence[str] = ()) -> None:
        """Raises Unconfinable."""
        user = user_for(self._run.pk)
        there = (SPEC, "data", CODE, BASE)
        readable = {name: job_directory / name for name in there if (job_directory / name).exists()}
        self._work = working_folder(job_directory, user, readable)
        threads = self._run.config.get("threads") or min(MOST_THREADS, os.cpu_count() or 1)
        self._sandbox = Sandbox(
            Plan(
                command=[sys.executable, *COMMAND, FOLDER],
                work=str(self._work),
                state=str(job_directory / STATE),
                user=user,
                readable={name: str(path) for name, path in readable.items()},
                environment=environment(threads, devices),
                spool=str(self._work / SPOOL),
                devices=files_of(devices),
                limits=limits_of_code(),
            )
        )
        with (job_directory / OUTPUT_FILE).open("ab") as output:
            self._sandbox.start(output=output)

    def poll(self) -> int | None:
        return self._sandbox.poll() if self._sandbox else None

    def interrupt(self) -> None:
        if self._sandbox:
            self._sandbox.send(signal.SIGTERM)

    def dump_stacks(self) -> str:
        if self._sandbox is None:
            return ""
        self._sandbox.send(signal.SIGUSR1)
        time.sleep(0.5)
        return read_plain(self._work / STACKS, MOST_STACKS)

    def kill(self) -> None:
        if self._sandbox:
            self._sandbox.kill()

    def fault(self) -> str:
        """Why it did not end by itself, see `dlplatform.sandbox.process`."""
        return self._sandbox.fault() if self._sandbox else ""


def read_plain(path: Path, most: int) -> str:
    """The end of a text file that a stranger may have put there: never of a link, a pipe or a device; "" then."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            return ""
        file.seek(max(0, about.st_size - most))
        return file.read(most).decode("utf-8", "replace")
