"""Engines that start at once: forks of a process that has imported torch, as the platform's workers fork theirs.

Each is a process of its own, to be killed like any other. `python -m dlplatform.engine` is the same, some seconds later.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
POLL_SECONDS = 0.01


class Engine:
    """One of them, with what `subprocess.Popen` has of it."""

    def __init__(self, job_dir: Path) -> None:
        self.args = ["dlplatform.engine", str(job_dir)]
        self.pid = int(_ask(f"start {job_dir}"))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and (told := _ask(f"poll {self.pid}")) != "working":
            self.returncode = int(told)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def _server(parent: int) -> subprocess.Popen[str]:
    """One for this process; it ends when this one does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve())], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def _ask(question: str) -> str:
    server = _server(os.getpid())
    assert server.stdin and server.stdout
    server.stdin.write(question + "\n")
    server.stdin.flush()
    return server.stdout.readline().strip()


def _serve() -> None:
    from dlplatform.engine.run import warm_up

    warm_up()
    ended: dict[int, int] = {}
    for line in sys.stdin:
        verb, _, what = line.strip().partition(" ")
        print(_started(Path(what)) if verb == "start" else _polled(int(what), ended), flush=True)


def _started(job_dir: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        code = _engine(job_dir)
    finally:
        os._exit(code)


def _engine(job_dir: Path) -> int:
    from dlplatform.engine.__main__ import main

    sys.argv = ["dlplatform.engine", str(job_dir)]
    try:
        return main()
    except SystemExit as left:
        return int(left.code or 0)


def _polled(pid: int, ended: dict[int, int]) -> Any:
    if pid not in ended:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            return "working"
        ended[pid] = os.waitstatus_to_exitcode(status)
    return ended[pid]


if __name__ == "__main__":
    _serve()
