"""Watches one sandbox from outside: its limits, its end, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
import time
from pathlib import Path

from dlplatform.sandbox import cgroups, inside, kernel, usage
from dlplatform.sandbox.plan import Plan

VERDICT = "verdict.json"
FAST_SECONDS, SLOW_SECONDS = 0.1, 0.5
CROWDED = 0.8
COUNTING_SHARE = 9  # seconds between two counts for each that one takes
MEMORY, PROCESSES, DISK, TIME, SPOOL = "memory_limit", "process_limit", "disk_limit", "time_limit", "log_limit"
UNCONFINED = "sandbox_unavailable"


def run(plan: Plan) -> int:
    """The exit code of the program, or 128 and the number of the signal that killed it.

    A limit that was passed, or that the program could not be confined and was not run, is written down in
    ``state/verdict.json`` as {"fault": …}.
    """
    kernel.lower_priority(plan.nice)
    group = cgroups.make(Path(plan.state).parent.name[:60], plan.limits.memory, plan.limits.processes)
    try:
        fault, code = _watched(plan, group)
    except OSError as error:
        print(f"sandbox: {error}", flush=True)
        fault, code = UNCONFINED, inside.NOT_RUN
    finally:
        group.remove()
    if fault:
        (Path(plan.state) / VERDICT).write_text(json.dumps({"fault": fault}))
    return code


def _watched(plan: Plan, group: cgroups.Group) -> tuple[str, int]:
    """(fault or "", exit code) of the world from its beginning to its end."""
    told, failed = os.pipe()
    first, go = _started(plan, failed)
    os.close(failed)
    group = group.with_member(first)
    os.write(go, b"!")
    os.close(go)
    fault, code = _Watch(plan, group, first).until_the_end()
    os.set_blocking(told, False)
    # The program itself cannot write here: its end of the pipe was closed as it began.
    return (UNCONFINED if os.read(told, 1) else fault), code


def _started(plan: Plan, failed: int) -> tuple[int, int]:
    """(number of the first process of the new world, the pipe that tells it to begin)."""
    kernel.die_with_parent(signal.SIGKILL)
    if os.getppid() != plan.parent:
        raise OSError("who started this sandbox has died already")
    if os.geteuid() != 0:
        _rule_alone()
    kernel.unshare(kernel.CLONE_NEWPID)
    start, go = os.pipe()
    first = os.fork()
    if first == 0:
        code = inside.NOT_RUN
        try:
            os.close(go)
            code = inside.first_process(plan, start, failed)
        finally:
            os._exit(code)
    os.close(start)
    return first, go


def _rule_alone() -> None:
    """A user namespace, in which somebody who is nobody outside may make the other namespaces."""
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


class _Watch:
    """Looks at a sandbox again and again: at what is cheap to see often, at the rest now and then."""

    def __init__(self, plan: Plan, group: cgroups.Group, first: int) -> None:
        self.plan = plan
        self.group = group
        self.first = first
        self.began = time.monotonic()
        self._looked = self._next_count = 0.0
        signal.signal(signal.SIGTERM, self._forward)
        signal.signal(signal.SIGUSR1, self._forward)
        signal.signal(signal.SIGINT, self._end)

    def _forward(self, sent: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, sent)

    def _end(self, _sent: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)

    def until_the_end(self) -> tuple[str, int]:
        """(the limit that was passed or "", exit code)."""
        ending = os.pidfd_open(self.first)
        waiting = select.poll()
        waiting.register(ending, select.POLLIN)
        fault = ""
        while not waiting.poll(FAST_SECONDS * 1000):
            fault = fault or self._fault()
            if fault:
                os.kill(self.first, signal.SIGKILL)
        os.close(ending)
        _, status = os.waitpid(self.first, 0)
        code = os.waitstatus_to_exitcode(status)
        return fault or self._told_by_the_kernel(code), 128 - code if code < 0 else code

    def _fault(self) -> str:
        limits = self.plan.limits
        # The kernel may have killed one of many: the rest would go on without it, and end of something else.
        if self.group.starved():
            return MEMORY
        if time.monotonic() - self.began > limits.seconds:
            return TIME
        if self.group.crowded():
            return PROCESSES
        if _reported(self.plan.spool) > limits.spool:
            return SPOOL
        return self._disk_fault() or self._slow_fault()

    def _disk_fault(self) -> str:
        """Counting many files takes a while, so that it is done the less often the longer it takes."""
        began = time.monotonic()
        if began < self._next_count:
            return ""
        limits = self.plan.limits
        size, count = usage.files_in(self.plan.work, limits.files)
        self._next_count = time.monotonic() + COUNTING_SHARE * (time.monotonic() - began)
        return DISK if size > limits.disk or count > limits.files else ""

    def _slow_fault(self) -> str:
        """What the kernel counts for us where it lets us make groups."""
        if time.monotonic() - self._looked < SLOW_SECONDS or (self.group.memory and self.group.processes):
            return ""
        self._looked = time.monotonic()
        memory, threads = usage.processes_of(self.first)
        if memory > self.plan.limits.memory:
            return MEMORY
        # The kernel counts the warden and others of our user too, so that the last few are never reached.
        return PROCESSES if threads >= CROWDED * self.plan.limits.processes else ""

    def _told_by_the_kernel(self, code: int) -> str:
        if self.group.starved():  # of the last tenth of a second
            return MEMORY
        if code == 128 + signal.SIGXCPU:
            return TIME
        if code == 128 + signal.SIGXFSZ:
            return DISK
        # One that was refused a process and ended of itself before we looked.
        return PROCESSES if code != 0 and self.group.crowded() else ""


def _reported(spool: str) -> int:
    """Bytes of the event stream, and of what was printed into files."""
    printed = [about for about in (os.fstat(1), os.fstat(2)) if stat.S_ISREG(about.st_mode)]
    size = sum({about.st_ino: about.st_size for about in printed}.values())
    with contextlib.suppress(OSError):
        size += os.lstat(spool).st_size if spool else 0
    return size
