"""The event spool: what a run tells the outside, one JSON line each. Torch-free.

Every line is ``{"sequence": n, "time": ISO 8601 UTC, "type": ..., ...payload}``. The payload of each type
is the TypedDict below. The file is append-only; a restart goes on after the last complete line.
"""

from __future__ import annotations

import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypedDict

import orjson

SPOOL: Final = "events.jsonl"
SYNC_SECONDS: Final = 1.0
LONGEST_LINE: Final = 64 << 20


class Started(TypedDict):
    """An attempt begins to train. ``resumed_from`` is a step, or null for a fresh start."""

    environment: dict[str, Any]
    threads: int
    device: str
    resumed_from: int | None
    parameters: int
    rows: dict[str, int]
    config: dict[str, Any]


class Progress(TypedDict):
    """The heartbeat. ``phase``: loading, training, evaluating, explaining, packaging."""

    phase: str
    epoch: int
    step: int
    total_steps: int
    fraction: float
    eta_seconds: float | None
    rows_per_second: float | None


class Metric(TypedDict):
    """Values at a step; a step is reported once, whatever the number of resumes."""

    step: int
    epoch: int
    values: dict[str, float | None]


class Log(TypedDict):
    """A line for people. ``level``: info, warning, error."""

    level: str
    message: str


class Checkpoint(TypedDict):
    """A checkpoint is durable. ``path`` is relative to the job directory; ``sha256`` is its manifest's."""

    step: int
    path: str
    sha256: str
    best: bool


class Sample(TypedDict):
    """A generated sample (language models only)."""

    step: int
    text: str


class Finding(TypedDict):
    """What the doctor noticed; each code once for a run. ``severity``: info, warning, error. ``change``: settings for
    another try, or null."""

    code: str
    severity: str
    sentence: str
    next_step: str
    change: dict[str, Any] | None


class Finished(TypedDict):
    """The package is whole."""

    metrics: dict[str, float | None]
    package: str


class Failed(TypedDict):
    """The run ended without a package."""

    code: str
    sentence: str
    next_step: str
    detail: str


PAYLOADS: Final[dict[str, type]] = {
    "started": Started,
    "progress": Progress,
    "metric": Metric,
    "log": Log,
    "checkpoint": Checkpoint,
    "sample": Sample,
    "finding": Finding,
    "finished": Finished,
    "failed": Failed,
}


def read_events(path: Path, offset: int = 0, limit: int = 8 << 20) -> tuple[list[dict[str, Any]], int]:
    """Complete lines of a spool from a byte offset on, and the offset to go on from.

    Reads at most about ``limit`` bytes. A torn last line is left for the next call; a missing file is an
    empty one, and so is what is no plain file; a complete line that is not a JSON object is skipped.
    """
    try:
        with open(path, "rb", opener=_open_plain) as file:
            file.seek(offset)
            content = file.read(limit)
            if len(content) == limit and b"\n" not in content:
                content += file.readline(LONGEST_LINE)
    except OSError:
        return [], offset
    end = content.rfind(b"\n") + 1
    parsed = (_parse(line) for line in content[:end].splitlines())
    return [event for event in parsed if event is not None], offset + end


def _open_plain(path: str, flags: int) -> int:
    """Where a stranger's code works, there may be a link or a pipe in place of the file. Raises OSError then."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(f"{path} is no plain file")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) else None


class EventWriter:
    """Appends events to a spool: written at once, fsynced every second and on `sync`.

    Opening an existing spool cuts a torn last line, goes on with the next sequence number and remembers
    the last metric step and the codes of findings, so that a resumed run does not report them twice.
    ``told``: the last sequence number that is known elsewhere, for a spool that begins on another machine.
    """

    def __init__(self, path: Path, told: int = 0) -> None:
        self._file = path.open("ab")
        self.sequence = told
        self.last_metric_step = -1
        self.found: set[str] = set()
        offset = self._recover(path)
        os.truncate(path, offset)
        self._synced = time.monotonic()

    def _recover(self, path: Path) -> int:
        offset = 0
        while True:
            events, next_offset = read_events(path, offset)
            for event in events:
                self.sequence = max(self.sequence, int(event.get("sequence", 0)))
                if event.get("type") == "metric":
                    self.last_metric_step = max(self.last_metric_step, int(event["step"]))
                elif event.get("type") == "finding":
                    self.found.add(str(event["code"]))
            if next_offset == offset:
                return offset
            offset = next_offset

    def emit(self, type_: str, **payload: Any) -> None:
        """Append one event. Raises ValueError when the payload is not that of the type."""
        if set(payload) != set(PAYLOADS[type_].__annotations__):
            raise ValueError(f"event {type_} with payload {sorted(payload)}")
        self.sequence += 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = {"sequence": self.sequence, "time": now, "type": type_, **payload}
        self._file.write(orjson.dumps(event, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self.sync()

    def metric(self, step: int, epoch: int, values: dict[str, float | None]) -> None:
        """Report values at a step unless an earlier attempt already did."""
        if step <= self.last_metric_step:
            return
        self.last_metric_step = step
        self.emit("metric", step=step, epoch=epoch, values=values)

    def finding(self, payload: dict[str, Any]) -> None:
        """Report a finding unless one with its code already was."""
        if payload["code"] not in self.found:
            self.found.add(payload["code"])
            self.emit("finding", **payload)

    def log(self, level: str, message: str) -> None:
        """Append a line for people."""
        self.emit("log", level=level, message=message)

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self._file.close()


class SilentWriter(EventWriter):
    """Says nothing: of several processes that train together one speaks for all."""

    def __init__(self) -> None:
        self.sequence = 0
        self.last_metric_step = -1
        self.found = set()

    def emit(self, type_: str, **payload: Any) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
