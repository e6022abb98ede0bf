"""The outside of a sandbox: start a program in one, ask how it goes, stop it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from dlplatform.sandbox import kernel
from dlplatform.sandbox.plan import PROJECT_ROOT, Plan
from dlplatform.sandbox.warden import UNCONFINED, VERDICT

PLAN = "plan.json"
STATE, WORK = "sandbox", "work"
FIRST_USER, USERS = 1_879_048_192, 1 << 28  # numbers that neither people nor containers are given
MAPPED_USER, MAPPED_USERS = 20_000, 40_000  # the same where only a part of all numbers exists


class Unconfinable(Exception):
    """This machine cannot take away what a sandbox has to; ``str()`` is a sentence."""


def user_for(key: UUID) -> int:
    """A number for the user of one sandbox; our own where we are not root and cannot become another."""
    if os.geteuid() != 0:
        return os.geteuid()
    if _exists(FIRST_USER + USERS - 1):
        return FIRST_USER + key.int % USERS
    return MAPPED_USER + key.int % MAPPED_USERS


def _exists(user: int) -> bool:
    """Whether the number is one of those that our own user namespace knows."""
    try:
        extents = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return any(first <= user < first + count for first, _, count in extents)


def environment(threads: int, accelerators: Sequence[str] = ()) -> dict[str, str]:
    """All that a program in a sandbox finds in its environment. ``accelerators``: UUIDs of those that it may use."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC",  # noqa: S108 - its own
        "PYTHONPATH": str(PROJECT_ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": "2",
        "CUDA_VISIBLE_DEVICES": ",".join(accelerators),
    }  # fmt: skip


def working_folder(directory: Path, user: int, readable: dict[str, Path]) -> Path:
    """The folder under ``directory`` that a sandbox may write to, with a place for each thing that it may only read.

    An earlier attempt may have left anything there, so a place that is not what it should be is made anew.
    """
    work = directory / WORK
    directory.chmod(0o700)
    if not work.is_dir() or work.is_symlink():
        work.mkdir()
    for name, source in readable.items():
        _make_place(work / name, folder=source.is_dir())
        _open_to_read(source)
    if os.geteuid() == 0:
        os.chown(work, user, user)
    work.chmod(0o700)
    return work


def _make_place(place: Path, folder: bool) -> None:
    mode = place.lstat().st_mode if os.path.lexists(place) else 0
    if mode and stat.S_ISDIR(mode) == folder and not stat.S_ISLNK(mode) and (folder or stat.S_ISREG(mode)):
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(place)
    elif mode:
        place.unlink()
    if folder:
        place.mkdir()
    else:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644))


def _open_to_read(source: Path) -> None:
    """Another user has to read it; who may come near it is a matter of the folder above."""
    for path in [source, *(source.rglob("*") if source.is_dir() else ())]:
        path.chmod(0o755 if path.is_dir() else 0o644)


class Sandbox:
    """One program in one sandbox."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, *, output: IO[bytes] | int, source: int = subprocess.DEVNULL, errors: Any = None
    ) -> subprocess.Popen[bytes]:
        """Start it; returns at once. Raises Unconfinable on machines that are known to have no such thing."""
        if sys.platform != "linux":
            raise Unconfinable(f"this system ({sys.platform}) has no namespaces; runs with code need Linux")
        if not kernel.filters_known():
            raise Unconfinable("system calls cannot be filtered on this kind of machine")
        state = Path(self.plan.state)
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        (state / VERDICT).unlink(missing_ok=True)
        replace(self.plan, parent=os.getpid()).write(state / PLAN)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "dlplatform.sandbox", str(state / PLAN)],
            stdin=source, stdout=output, stderr=errors if errors is not None else output, cwd="/",
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT_ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )  # fmt: skip
        return self._process

    def poll(self) -> int | None:
        """The exit code (negative: the signal that killed it), or None while the program works."""
        code = self._process.poll() if self._process else None
        return None if code is None else 128 - code if code > 128 else code

    @property
    def unconfined(self) -> bool:
        """Whether it ended because not everything could be taken away from it: nothing was run."""
        return self.fault() == UNCONFINED

    def fault(self) -> str:
        """Why it ended otherwise than by itself: memory_limit, process_limit, disk_limit, time_limit, log_limit or
        sandbox_unavailable; "" for all else."""
        try:
            return str(json.loads((Path(self.plan.state) / VERDICT).read_text())["fault"])
        except (OSError, ValueError, KeyError):
            return ""

    def send(self, sent: signal.Signals) -> None:
        """TERM and USR1 are passed on to the program."""
        if self._process is not None and self.poll() is None:
            self._process.send_signal(sent)

    def kill(self) -> None:
        """End the warden, and with it the whole world that it watches over; returns when all of it is gone."""
        if self._process is None or self.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)  # it kills the world and waits for the last of it
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
