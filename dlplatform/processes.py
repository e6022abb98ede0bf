"""Child processes: they die with their parent, are watched, restarted, and stopped as whole trees."""

import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
from setproctitle import setproctitle

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
ENDING = (signal.SIGINT, signal.SIGTERM)
RESTART_WINDOW = 60.0
RESTARTS_IN_WINDOW = 5


def die_with_parent(sent: signal.Signals, parent: int | None = None) -> None:
    """Ask the kernel for a signal when our parent dies (Linux). ``parent`` closes the race of its early death."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(sent), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), sent)


def stop_tree(pid: int, *, grace: float) -> None:
    """TERM to the process and all below it, KILL to what is left after ``grace`` seconds."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    _signal_all(family, signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=grace)
    _signal_all(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)


def _signal_all(family: list[psutil.Process], sent: signal.Signals) -> None:
    for process in family:
        try:
            process.send_signal(sent)
        except psutil.NoSuchProcess:
            continue


class Forked:
    """A fork of this process that does ``work``, with the face of a `subprocess.Popen`.

    It shares the memory of all that is imported here already, and starts without importing it again. Nothing here may
    hold a thread or a connection by then.
    """

    def __init__(self, work: Callable[[], None], prepare: Callable[[], None], out: IO[bytes], title: str) -> None:
        def run() -> None:
            prepare()
            os.setsid()
            for number in ENDING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            for stream in (1, 2):
                os.dup2(out.fileno(), stream)
            setproctitle(title)
            work()

        self._process = multiprocessing.get_context("fork").Process(target=run)
        # Until the child has let go of our handlers, a request to end would reach these and be lost.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises `subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass
class Child:
    """One supervised program and how to start it again: ``command``, or ``work`` in a fork with that title."""

    name: str
    command: list[str]
    user: int | None = None
    group: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 15.0
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | Forked | None = None
    starts: list[float] = field(default_factory=list)
    not_before: float = 0.0
    once: bool = False
    work: Callable[[], None] | None = None


class Supervisor:
    """Starts children in order, restarts the dead with a back-off, stops all in reverse order."""

    def __init__(self, logs: Path, say: Callable[[str], None]) -> None:
        self.logs = logs
        self.say = say
        self.children: list[Child] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, child: Child) -> None:
        self.children.append(child)
        self._launch(child)

    def _launch(self, child: Child) -> None:
        """In a session of its own: Ctrl-C reaches `up` alone, which then stops its children in order."""
        log = self.logs / f"{child.name}.log"
        _rotate(log)
        with log.open("ab") as out:
            child.process = _fork(child, child.work, out) if child.work else _execute(child, out)
        child.starts.append(time.monotonic())

    def restart_the_dead(self) -> None:
        """One look at all children; a child that keeps dying is started again more and more slowly."""
        now = time.monotonic()
        for child in self.children:
            ended = child.process.poll() if child.process else None  # also of what runs once: it leaves a zombie else
            if ended is None or child.once:
                continue
            if child.not_before == 0.0:
                recent = [start for start in child.starts if now - start < RESTART_WINDOW]
                delay = 0.2 if len(recent) < RESTARTS_IN_WINDOW else 5.0
                child.starts, child.not_before = recent, now + delay
                self.say(f"{child.name} ended ({_how(ended)}); starting it again")
            elif now >= child.not_before:
                child.not_before = 0.0
                self._launch(child)

    def stop(self) -> None:
        """Stop every child, the last started first; force after its grace time. Nothing else is touched."""
        for child in reversed(self.children):
            process = child.process
            if process is None or process.poll() is not None:
                continue
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(child.stop_signal)
            try:
                process.wait(child.grace)
            except subprocess.TimeoutExpired:
                logger.warning("%s did not stop within %.0f s; killing it", child.name, child.grace)
                process.kill()
                process.wait()
            _, alive = psutil.wait_procs(family, timeout=2)
            _signal_all(alive, signal.SIGKILL)


def _fork(child: Child, work: Callable[[], None], out: IO[bytes]) -> Forked:
    parent = os.getpid()
    return Forked(work, lambda: die_with_parent(signal.SIGTERM, parent), out, " ".join(child.command))


def _execute(child: Child, out: IO[bytes]) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    ending = signal.SIGINT if child.name == "postgres" else signal.SIGTERM
    return subprocess.Popen(
        child.command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        env={**os.environ, **child.environment},
        user=child.user,
        group=child.group,
        extra_groups=[] if child.user is not None else None,
        start_new_session=True,
        cwd="/" if child.user is not None else None,
        preexec_fn=lambda: die_with_parent(ending, parent),
    )


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _rotate(log: Path, limit: int = 10 * 1024 * 1024) -> None:
    if log.exists() and log.stat().st_size > limit:
        log.replace(log.with_suffix(".log.1"))
