"""The connection to a compute target: start an engine on a job directory there, watch it, stop it.

Only the local one exists: the engine as a fork of the warm worker, which has imported torch already.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from dlplatform.processes import die_with_parent

OUTPUT_FILE = "output.txt"


class Connection(Protocol):
    """What the orchestrator needs of a compute target."""

    def start(self, job_directory: Path, devices: Sequence[str] = ()) -> None:
        """Start the engine, which sees only these GPUs (UUIDs); returns at once."""

    def poll(self) -> int | None:
        """The exit code (negative: the signal that killed it), or None while the engine works."""

    def interrupt(self) -> None:
        """Ask for a checkpoint and a clean exit (code 75)."""

    def dump_stacks(self) -> str:
        """What every thread of the engine is doing, in words for a log."""

    def kill(self) -> None:
        """End the engine and everything it started, at once."""

    def fault(self) -> str:
        """The limit for which it was stopped, where it works within limits; "" otherwise."""


def train(job_directory: Path) -> int:
    """All of a job; see `dlplatform.engine.run.run_job`."""
    from dlplatform.engine.run import run_job  # imported by the worker before it forked

    return run_job(job_directory)


class LocalConnection:
    """The engine in a forked child: a session of its own, no file handles, no credentials, dies with us.

    ``work``: what the child does with the job directory; its exit code.
    """

    def __init__(self, work: Callable[[Path], int] = train) -> None:
        self._work = work
        self._pid: int | None = None
        self._code: int | None = None
        self._directory = Path()

    def start(self, job_directory: Path, devices: Sequence[str] = ()) -> None:
        import dlplatform.engine.run  # noqa: F401 - loaded here, so that the child finds it loaded

        self._directory = job_directory
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                _become_engine(job_directory, parent, devices)
                code = self._work(job_directory)
            except BaseException:
                traceback.print_exc()  # into the job's output file; the exit code tells the rest
                sys.stderr.flush()
            finally:
                # Never back into the parent's code: its database connections and handlers are not ours.
                os._exit(code)

    def poll(self) -> int | None:
        if self._code is None and self._pid is not None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def interrupt(self) -> None:
        self._send(signal.SIGTERM)

    def dump_stacks(self) -> str:
        self._send(signal.SIGUSR1)
        time.sleep(0.5)
        stacks = self._directory / "stacks.txt"
        return stacks.read_text(errors="replace")[-8000:] if stacks.exists() else ""

    def fault(self) -> str:
        return ""

    def kill(self) -> None:
        if self.poll() is not None or self._pid is None:
            return
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            self._send(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    def _send(self, sent: signal.Signals) -> None:
        if self._pid is not None and self.poll() is None:
            os.kill(self._pid, sent)


def _become_engine(job_directory: Path, parent: int, devices: Sequence[str]) -> None:
    """Shed what the worker had: its session, signal handlers, environment and open files."""
    os.setsid()
    die_with_parent(signal.SIGKILL, parent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
    os.environ.clear()
    os.environ.update(kept, CUDA_VISIBLE_DEVICES=",".join(devices))
    os.chdir(job_directory)
    output = os.open(job_directory / OUTPUT_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    _let_go_of_files(nothing, kept={output, nothing})
    for standard, target in ((0, nothing), (1, output), (2, output)):
        os.dup2(target, standard)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - for good


def _let_go_of_files(nothing: int, kept: set[int]) -> None:
    """Point every inherited descriptor at nothing, rather than closing it.

    The parent's sockets are Python objects here too. Were their numbers free, the engine's own files would get
    them, and the garbage collector would one day close a checkpoint in place of a socket.
    """
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers, not paths
        number = int(name)
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):
                os.fstat(number)
                os.dup2(nothing, number, inheritable=False)
