"""The parent's side: one ingestion in one child process that may crash, hang or run out of memory.

The child is a fresh interpreter rather than a fork. A worker has imported torch and holds secrets and
sockets: a fork would inherit all of it, threads and locks included, and an address-space limit would count
torch's mappings. A fresh one costs about 0.4 s and starts with nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from datasets.ingestion.confinement import LINKED
from datasets.ingestion.images.packs import INDEX_NAME, handed_over
from datasets.ingestion.limits import Limits
from datasets.ingestion.memory import NEAR, mentions_memory, peak_address_space
from datasets.ingestion.result import Base, IngestResult, Problem, rejected

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
Stop = Callable[[], bool]

PROJECT_ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.1
ANSWER_BYTES = 256 << 20
LOG_BYTES = 16 << 10
PART_NAME = re.compile(r"part-\d{5}\.parquet")
PACK_NAME = re.compile(r"(images|thumbnails)-\d{5}\.pack")
MOST_PACKS = 1_000
WORK_NAMES = ("text.utf8", "staging.arrow", INDEX_NAME)
# What a crash sends; a program that cannot go on aborts, one that overlooks a refused allocation faults.
CRASH_SIGNALS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGTRAP)


def ingest_in_child(
    source: Path,
    destination: Path,
    *,
    filename: str,
    content_type: str,
    limits: Limits,
    types: dict[str, str] | None = None,
    base: Base | None = None,
    on_progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> IngestResult:
    """Ingest `source` into Parquet parts in the directory `destination`, which is made when missing.

    With `base`, the rows of `source`, one JSON object a line, are added to those of that version.
    Never raises for what the file holds: a crash, a time-out or a lack of memory of the child is a rejected
    result (`decoder_crashed`, `time_limit`, `memory_limit`), and a stop asked for by `should_stop` is one
    with the code `stopped`. A rejected result leaves no parts behind. Raises OSError when the directories
    cannot be used or no process can be started.
    """
    destination.mkdir(parents=True, exist_ok=True)
    job = {
        "source": str(source.resolve()),
        "destination": ".",
        "filename": filename,
        "content_type": content_type,
        "limits": limits.to_dict(),
        "types": types or {},
        "base": base.to_dict() if base else None,
        "parent": os.getpid(),
    }
    child = _Child(job, destination, limits, on_progress, should_stop)
    result = child.run()
    if result.bytes == 0:
        result.bytes = source.stat().st_size
    if result.state == "rejected":
        _remove_parts(destination)
    return result


@dataclass(slots=True)
class _Child:
    """One child and what it has said so far."""

    job: dict[str, Any]
    destination: Path
    limits: Limits
    on_progress: Progress | None
    should_stop: Stop | None
    result: IngestResult | None = None
    log: bytes = b""
    peak: int = 0
    line: bytearray = field(default_factory=bytearray)
    ended_by: Problem | None = None

    def run(self) -> IngestResult:
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "datasets.ingestion"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.destination,
            env=_environment(),
            close_fds=True,
            start_new_session=True,
        )
        try:
            self._send_job(process)
            self._follow(process)
        finally:
            _kill_group(process)
            _close(process)
            _take_back(self.destination)
        return self._verdict(process.returncode)

    def _send_job(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(self.job).encode())
            process.stdin.close()
        except BrokenPipeError:
            logger.warning("the ingestion child ended before it took its job")

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Read both pipes until they close, the time is over or a stop is asked for."""
        deadline = time.monotonic() + self.limits.wall_seconds
        with selectors.DefaultSelector() as selector:
            for stream, receive in (
                (process.stdout, self._receive_answer),
                (process.stderr, self._receive_log),
            ):
                assert stream is not None
                selector.register(stream, selectors.EVENT_READ, receive)
            while selector.get_map() and self.ended_by is None:
                self.peak = max(self.peak, peak_address_space(process.pid))
                for key, _ in selector.select(POLL_SECONDS):
                    chunk = os.read(key.fd, 1 << 16)
                    if chunk:
                        key.data(chunk)
                    else:
                        selector.unregister(key.fileobj)
                if time.monotonic() > deadline:
                    self.ended_by = _time_problem(self.limits)
                elif self.should_stop is not None and self.should_stop():
                    self.ended_by = STOPPED

    def _receive_log(self, chunk: bytes) -> None:
        self.log = (self.log + chunk)[-LOG_BYTES:]

    def _receive_answer(self, chunk: bytes) -> None:
        self.line += chunk
        while (end := self.line.find(b"\n")) >= 0:
            message, self.line = bytes(self.line[:end]), self.line[end + 1 :]
            self._take(message)
        if len(self.line) > ANSWER_BYTES:
            self.ended_by = CRASHED

    def _take(self, line: bytes) -> None:
        """One message of the child, which is believed only as far as its shape is checked."""
        try:
            message = json.loads(line)
            if "result" in message:
                self.result = IngestResult.from_dict(message["result"])
            elif self.on_progress is not None:
                self.on_progress(float(message["progress"]), str(message["phase"])[:40])
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning("the ingestion child sent a malformed message")
            self.ended_by = CRASHED

    def _whole(self, result: IngestResult) -> bool:
        """Whether the parts are plain files of the destination; asked when the child can change nothing any more."""
        if not 0 <= result.kept <= (len(self.job["base"]["parts"]) if self.job["base"] else 0):
            return False
        for part in result.parts:
            path = self.destination / part.path
            if not PART_NAME.fullmatch(part.path) or not _is_plain(path) or path.stat().st_size != part.bytes:
                return False
        if result.images is None:
            return True
        if not (0 <= result.images.packs <= MOST_PACKS and 0 <= result.images.thumbnail_packs <= MOST_PACKS):
            return False
        return all(_is_plain(self.destination / name) for name in handed_over(result.images))

    def _verdict(self, code: int) -> IngestResult:
        if self.log:
            logger.info("ingestion child: %s", self.log.decode("utf-8", "replace"))
        if self.ended_by is not None:
            return rejected(self.ended_by)
        if code == 0 and self.result is not None:
            return self.result if self._whole(self.result) else rejected(CRASHED)
        return rejected(_death_problem(code, self.log, self.peak, self.limits))


def _is_plain(path: Path) -> bool:
    """A file of its own; a second name would make it somebody else's."""
    return not path.is_symlink() and path.is_file() and path.stat().st_nlink == 1


STOPPED = Problem(code="stopped", detail="The ingestion was stopped on request. Start it again when you want it.")
CRASHED = Problem(
    code="decoder_crashed",
    detail="The file crashed the program that reads it, so it is damaged or made to do so. Write it "
    "again with "
    "another program, as plain CSV in UTF-8 or as Parquet, and upload that.",
)


def _time_problem(limits: Limits) -> Problem:
    return Problem(
        code="time_limit",
        detail=f"Reading the file took longer than allowed ({limits.wall_seconds:g} s, "
        f"{limits.cpu_seconds} s of "
        "processor time). Split it, or upload it as Parquet, which reads faster.",
    )


def _death_problem(code: int, log: bytes, peak: int, limits: Limits) -> Problem:
    """The reason behind an exit status; a kill that nobody here sent is the kernel's, for memory.

    `peak` is the address space, in bytes, that the child was last seen to have had.
    """
    if code == -signal.SIGXCPU:
        return _time_problem(limits)
    if code == -signal.SIGXFSZ:
        return Problem(code="output_limit", detail="The converted data is too large. Split the file and append it.")
    starved = -code in CRASH_SIGNALS and peak >= NEAR * limits.memory_bytes
    if code == -signal.SIGKILL or mentions_memory(log) or starved:
        return Problem(
            code="memory_limit",
            detail=f"Reading the file needs more than the {limits.memory_bytes >> 20:,} MB of memory "
            "one ingestion may "
            "use. Split it, write smaller Parquet row groups, or remove very long cells.",
        )
    return CRASHED


def _environment() -> dict[str, str]:
    """Nothing of the worker's environment, which holds credentials, but what an interpreter needs."""
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONPATH": str(PROJECT_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        # Every arena and pool reserves address space, which RLIMIT_AS counts.
        "MALLOC_ARENA_MAX": "2",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started; a child that has answered gets a moment to exit by itself."""
    try:
        process.wait(timeout=0 if process.stdout is None else 0.5)
    except subprocess.TimeoutExpired:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            logger.debug("the ingestion child was already gone")
    process.wait()


def _take_back(destination: Path) -> None:
    """Root's child works as another user, to whom the destination was given."""
    for link in destination.glob(LINKED.format("*")):
        link.unlink()
    if os.geteuid() == 0:
        os.chown(destination, 0, 0)


def _close(process: subprocess.Popen[bytes]) -> None:
    streams: list[IO[bytes] | None] = [process.stdout, process.stderr]
    for stream in streams:
        if stream is not None:
            stream.close()


def _remove_parts(destination: Path) -> None:
    for path in destination.iterdir():
        if PART_NAME.fullmatch(path.name) or PACK_NAME.fullmatch(path.name) or path.name in WORK_NAMES:
            path.unlink(missing_ok=True)
