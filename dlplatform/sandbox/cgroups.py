"""Groups of processes whose memory and number the kernel itself holds down, where this process may make such groups.

Both layouts are known: one tree for all (version 2), or one for each resource (version 1). Without either the warden
counts for itself (`usage`), a little late.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "dlp-sandbox-"
FRESH_SECONDS = 60.0


@dataclass(frozen=True)
class Group:
    """A group; empty folders stand for a resource that cannot be held down here."""

    memory: Path | None = None
    processes: Path | None = None

    def with_member(self, pid: int) -> Group:
        """The group once it has taken in a process, and with it whatever that starts; an empty one if it cannot."""
        try:
            for folder in {self.memory, self.processes} - {None}:
                assert folder is not None
                _write(folder / "cgroup.procs", pid)
        except OSError:
            self.remove()
            return Group()
        return self

    def starved(self) -> bool:
        """Whether the kernel killed something here for lack of memory."""
        return _counted(self.memory, ("memory.events", "memory.oom_control"), "oom_kill") > 0

    def crowded(self) -> bool:
        """Whether a process was refused because there were too many."""
        return _counted(self.processes, ("pids.events",), "max") > 0

    def remove(self) -> None:
        """Once all of it has ended."""
        for folder in {self.memory, self.processes} - {None}:
            assert folder is not None
            with contextlib.suppress(OSError):
                folder.rmdir()


def make(name: str, memory: int, processes: int) -> Group:
    """A group with ceilings, as far as this machine lets us make one; never raises."""
    together = (ROOT / "cgroup.controllers").exists()
    parents = {kind: ROOT if together else _own(kind) for kind in ("memory", "pids")}
    ceiling = "memory.max" if together else "memory.limit_in_bytes"
    return Group(
        _made(parents["memory"], name, {ceiling: memory}, optional={"memory.swap.max": 0}),
        _made(parents["pids"], name, {"pids.max": processes}),
    )


def _own(kind: str) -> Path:
    """The group that this process is in (version 1), so that what holds for it holds for the new one too."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kind in kinds.split(",") and (ROOT / kind / path.lstrip("/")).is_dir():
                return ROOT / kind / path.lstrip("/")
    return ROOT / kind


def _made(parent: Path, name: str, values: dict[str, int], optional: dict[str, int] | None = None) -> Path | None:
    folder = parent / f"{PREFIX}{name}"
    try:
        _sweep(parent)
        folder.mkdir(exist_ok=True)
        for file, value in values.items():
            _write(folder / file, value)
    except OSError:
        return None
    for file, value in (optional or {}).items():
        with contextlib.suppress(OSError):
            _write(folder / file, value)
    return folder


def _write(path: Path, value: int) -> None:
    """A file of the kernel's, which is there or not: it is never made."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Groups whose warden was killed are empty; those that are in use refuse to go."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > FRESH_SECONDS:
                folder.rmdir()


def _counted(folder: Path | None, files: tuple[str, ...], word: str) -> int:
    if folder is None:
        return 0
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            pairs = (line.split() for line in (folder / file).read_text().splitlines())
            return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == word)
    return 0
