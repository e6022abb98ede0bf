"""The inference server's end of `log_writer`, the process that writes its prediction log.

In a thread of the process that answers, the writing took Python's lock from the event loop again and again; in a process
of low priority it takes time that nobody needs.
"""

import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence

import orjson
from django.conf import settings
from django.db import DatabaseError, connection

from .log_entries import Entry, packed

ANSWER_SECONDS = 20.0  # longer than PostgreSQL takes for a batch; what is silent then is ended
WITH_IMAGES_SECONDS = 120.0  # for a slow object store, and for Django to be loaded first
RESTART_SECONDS = 5.0  # at the least between two starts

logger = logging.getLogger(__name__)


class Gone(Exception):
    """The process does not answer any more."""


class WriterProcess:
    """Started with the first batch and again when it has died. For one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = 0.0

    def wrote(self, batch: Sequence[Entry], urgent: bool = False) -> bool:
        """Whether it has written the batch; False where it cannot now: it may have written it all the same, and died. ``urgent``: as
        fast as it can, where others wait.

        Raises DatabaseError when the database did not take it.
        """
        try:
            line = packed(batch, urgent)
        except TypeError:
            return False
        try:
            answer = self._asked(line, WITH_IMAGES_SECONDS if any(one.images for one in batch) else ANSWER_SECONDS)
        except (Gone, OSError) as error:
            self._end(error)
            return False
        if "away" in answer:
            raise DatabaseError(answer["away"])
        return True

    def _asked(self, line: bytes, seconds: float = ANSWER_SECONDS) -> dict[str, str]:
        process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + seconds
        _send(process.stdin.fileno(), line, deadline)
        answer = b""
        while not answer.endswith(b"\n"):
            _wait(process.stdout.fileno(), select.POLLIN, deadline)
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                raise Gone(f"it ended ({process.wait()})")
            answer += chunk
        told: dict[str, str] = orjson.loads(answer)
        return told

    def _started(self) -> subprocess.Popen[bytes]:
        """In our session, so that its priority is weighed against ours; not in our group, whose Ctrl-C is not for it."""
        if time.monotonic() < self._not_before:
            raise Gone("")
        self._not_before = time.monotonic() + RESTART_SECONDS
        self._process = process = subprocess.Popen(
            [sys.executable, "-s", "-m", "registry.serving.log_writer"], cwd=settings.BASE_DIR,
            env={"DJANGO_SETTINGS_MODULE": "dlplatform.settings"} | os.environ,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0,
        )  # fmt: skip
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        _send(process.stdin.fileno(), _address(), time.monotonic() + ANSWER_SECONDS)
        return process

    def _end(self, error: Exception) -> None:
        if str(error):
            logger.warning("the process that writes the prediction log is started again: %s", error)
        if self._process is not None:
            self._process.kill()
            self._close()

    def close(self) -> None:
        """Let it end; it has nothing left to write."""
        if self._process is not None:
            self._close()

    def _close(self) -> None:
        assert self._process is not None
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ANSWER_SECONDS)
        self._process = None


def _address() -> bytes:
    """The database as libpq knows it; passed through the pipe, for others see arguments and environments."""
    parameters = connection.get_connection_params()
    known = {name: value for name, value in parameters.items() if isinstance(value, str | int)}
    return orjson.dumps(known) + b"\n"


def _send(pipe: int, line: bytes, deadline: float) -> None:
    rest = memoryview(line)
    while rest:
        _wait(pipe, select.POLLOUT, deadline)
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(pipe, rest) :]


def _wait(pipe: int, event: int, deadline: float) -> None:
    """Until something can be read or written. Raises Gone."""
    waiting = select.poll()
    waiting.register(pipe, event)
    if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise Gone("it did not answer in time")
