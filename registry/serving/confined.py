"""Predictions of a model that is built by code of its own: the model lives in a sandbox, and is asked through a pipe."""

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings

from dlplatform.engine.errors import PackageError, PredictionInputError
from dlplatform.sandbox.limits import MIB, Limits
from dlplatform.sandbox.plan import FOLDER, Plan
from dlplatform.sandbox.process import STATE, Sandbox, Unconfinable, environment, user_for, working_folder

LOAD_SECONDS, ANSWER_SECONDS = 60.0, 25.0
MOST_ANSWER = 64 * MIB
FOREVER = 10 * 365 * 86_400.0
THREADS = 2
NICE = 10  # of one that yields: the lowest priority would not even load it on a machine that is full
PATIENCE = 5  # times as long it may load then


class ProcessEnded(PackageError):
    """The process of the model is no more, or has been ended as it did not answer."""


class ConfinedPredictor:
    """As `dlplatform.engine.predict.Predictor`, with the model in a sandbox. Safe to share between threads."""

    writer = None

    def __init__(self, key: UUID, package: Path, yields: bool = False) -> None:
        """``yields``: the sandbox lets all other processes go first. Raises PackageError when the model cannot be loaded
        there."""
        self.yields = yields
        root = settings.CACHE_PATH / "sandboxes"
        root.mkdir(parents=True, exist_ok=True)
        self._directory = Path(tempfile.mkdtemp(dir=root))
        self._lock = threading.Lock()
        self._rest = b""
        try:
            self._sandbox, self._process = self._started(key, package)
            self._expect(LOAD_SECONDS * (PATIENCE if yields else 1))
            self._ready = time.monotonic()
        except BaseException:
            self.close()
            raise

    def _started(self, key: UUID, package: Path) -> tuple[Sandbox, subprocess.Popen[bytes]]:
        user, readable = user_for(key), {"package": package}
        work = working_folder(self._directory, user, readable)
        plan = Plan(
            command=[sys.executable, "-P", "-s", "-m", "dlplatform.engine.answering", f"{FOLDER}/package"],
            work=str(work), state=str(self._directory / STATE), user=user,
            readable={name: str(path) for name, path in readable.items()},
            environment=environment(THREADS),
            nice=NICE if self.yields else 0,
            limits=Limits(memory=settings.SANDBOX_MEMORY_MB * MIB, disk=256 * MIB, seconds=FOREVER,
                          processes=settings.SANDBOX_PROCESSES),
        )  # fmt: skip
        sandbox = Sandbox(plan)
        with (self._directory / "errors.txt").open("ab") as errors:
            try:
                process = sandbox.start(output=subprocess.PIPE, source=subprocess.PIPE, errors=errors)
            except Unconfinable as error:
                raise PackageError(f"Its code was not run: {error}.") from error
        return sandbox, process

    @property
    def alive(self) -> bool:
        """Whether the model still answers."""
        return self._sandbox.poll() is None

    @property
    def lived(self) -> float:
        """Seconds since it was ready."""
        return time.monotonic() - self._ready

    def predict(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predictions for rows, in order. Raises PredictionInputError for rows, PackageError for the code."""
        with self._lock:
            told = self._asked(orjson.dumps({"instances": instances}) + b"\n")
        refused, predictions = told.get("refused"), told.get("predictions")
        if isinstance(refused, dict):
            column = refused.get("column")
            raise PredictionInputError(
                refused["row"] if isinstance(refused.get("row"), int) else 0,
                column if isinstance(column, str) else None, str(refused.get("code")), str(refused.get("message")),
            )  # fmt: skip
        good = isinstance(predictions, list) and len(predictions) == len(instances)
        if not good or not all(isinstance(one, dict) for one in predictions or ()):
            raise PackageError("Its code answered something that is no prediction.")
        return predictions or []

    def _asked(self, question: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question)
            self._process.stdin.flush()
        except (BrokenPipeError, OSError):
            raise ProcessEnded(self._how_it_ended()) from None
        return self._expect(ANSWER_SECONDS)

    def _expect(self, seconds: float) -> dict[str, Any]:
        """The next line, within so many seconds; what does not come in time is ended."""
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(descriptor, MIB) if ready else b""
            if not chunk or len(self._rest) > MOST_ANSWER:
                told = self._how_it_ended() if ready else f"Its code did not answer within {seconds:.0f} s."
                self._sandbox.kill()
                raise ProcessEnded(told)
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return _read(line)

    def _how_it_ended(self) -> str:
        deadline = time.monotonic() + 2
        while self._sandbox.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._sandbox.unconfined:
            return "Its code was not run: this machine cannot confine it."
        return f"Its code ended ({self._sandbox.fault() or 'of itself'})."

    def close(self) -> None:
        """End the sandbox and remove its files."""
        with contextlib.suppress(AttributeError):
            self._sandbox.kill()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def _read(line: bytes) -> dict[str, Any]:
    try:
        told = orjson.loads(line)
    except orjson.JSONDecodeError:
        told = None
    if not isinstance(told, dict):
        raise PackageError("Its code answered something that cannot be read.")
    if "error" in told:
        raise PackageError(str(told["error"])[:500])
    return told
