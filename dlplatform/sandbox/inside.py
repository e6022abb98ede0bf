"""The first process of the new world, and the program that it starts there."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import traceback

from dlplatform.sandbox import kernel, view
from dlplatform.sandbox.limits import Limits
from dlplatform.sandbox.plan import Plan

NOT_RUN = 125
WORLD = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)


def first_process(plan: Plan, start: int, failed: int) -> int:
    """Its exit code: that of the program, or 128 and the number of the signal that killed it.

    ``start`` is a pipe: a byte means go, its end that the warden has died meanwhile. ``failed`` is one to say that not
    everything could be taken away, so that nothing was run. Whatever is left of the world ends with this process.
    """
    kernel.die_with_parent(signal.SIGKILL)
    if os.read(start, 1) != b"!":
        return NOT_RUN
    try:
        kernel.unshare(WORLD)
        socket.sethostname("sandbox")
        view.enter(plan)
    except OSError:
        traceback.print_exc()
        os.write(failed, b"!")
        return NOT_RUN
    _close_files(failed)
    program = os.fork()
    if program == 0:
        _become(plan, failed)
    os.close(failed)
    kernel.keep_capabilities(kernel.CAP_KILL)
    kernel.hide_memory()
    for number in FORWARDED:
        signal.signal(number, lambda sent, _frame: os.kill(program, sent))
    return _wait_for(program)


def _wait_for(program: int) -> int:
    """Orphans come here to be waited for too."""
    while True:
        ended, status = os.wait()
        if ended == program:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _become(plan: Plan, failed: int) -> None:
    """Turn this fork into the program, for which ``failed`` is closed; never returns."""
    try:
        _limit(plan.limits)
        for number in (*FORWARDED, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        kernel.lower_priority(plan.nice)  # of the session that has just begun
        kernel.narrow_capabilities()
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(plan.user, plan.user, plan.user)
            os.setresuid(plan.user, plan.user, plan.user)
        kernel.keep_capabilities()
        kernel.die_with_parent(signal.SIGKILL)
        if not kernel.deny_escapes():
            raise OSError("the kernel has no filter of system calls")
        os.execve(plan.command[0], plan.command, plan.environment)  # noqa: S606 - no shell is the point
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os.write(failed, b"!")
    finally:
        os._exit(NOT_RUN)


def _limit(limits: Limits) -> None:
    values = {
        resource.RLIMIT_NPROC: limits.processes,
        resource.RLIMIT_DATA: limits.memory,
        resource.RLIMIT_FSIZE: limits.disk,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CPU: int(limits.seconds) * (os.cpu_count() or 1),  # of one process
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in values.items():
        ceiling = resource.getrlimit(kind)[1]
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (value, value))


def _close_files(but: int) -> None:
    os.closerange(3, but)
    os.closerange(but + 1, 1 << 16)
