"""Checkpoints where every machine finds them: a run whose machine is lost goes on from them on another one.

While workers of several machines are registered, the newest checkpoint of a run is copied beside the models, in the
background and at most once a minute, and once more when its worker gives it back. The row says which one is there.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import redis
from django.core.files.base import File
from django.core.files.storage import storages

from dlplatform.engine.durable import MANIFEST, sync_directory
from dlplatform.engine.job import CHECKPOINTS, checkpoints_in
from dlplatform.objects.storages import CHUNK, delete_files, files_below, open_file

from .job_directories import Beat, is_needed
from .models import Run
from .nodes.machines import machines

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
INTERVAL = 60.0
POLL_SECONDS = 0.1


class CheckpointKeeper:
    """Copies the newest checkpoint of a run that works on this machine."""

    def __init__(self, run: Run, directory: Path) -> None:
        self.run = run
        self._directory = directory / CHECKPOINTS
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keep checkpoints")
        self._copying: Future[tuple[int, str]] | None = None
        self._next = time.monotonic() + INTERVAL

    def look(self) -> None:
        """Note what has been copied, and begin with the next when it is time. Raises LeaseLost."""
        self._note()
        if self._copying is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + INTERVAL
            if several_machines():
                self._begin()

    def finish(self, beat: Callable[[], object]) -> None:
        """Before somebody else may take the run: copy what is new. ``beat`` is called meanwhile. Raises LeaseLost."""
        self._wait(beat)
        if several_machines():
            self._begin()
            self._wait(beat)

    def _wait(self, beat: Callable[[], object]) -> None:
        while self._copying is not None:
            self._note()
            beat()
            time.sleep(POLL_SECONDS)

    def _begin(self) -> None:
        found = checkpoints_in(self._directory)
        if found and found[-1][0] > (self.run.kept_checkpoint or {}).get("step", -1):
            self._copying = self._thread.submit(_copy, self.run.pk, self.run.lease_epoch, *found[-1])

    def _note(self) -> None:
        """A copy that failed is no loss: the next one may succeed."""
        if self._copying is None or not self._copying.done():
            return
        copying, self._copying = self._copying, None
        if copying.exception() is None:
            step, folder = copying.result()
            last = self.run.kept_checkpoint
            self.run.write(kept_checkpoint={"step": step, "folder": folder})
            if last:
                _remove(last["folder"])


def several_machines() -> bool:
    """Whether a run could go on elsewhere; unknown while Redis is away, and then no reason to copy."""
    try:
        return len(machines()) > 1
    except (redis.RedisError, OSError):
        return False


def fetch(run: Run, directory: Path, beat: Beat) -> None:
    """Bring the kept checkpoint into a job directory that has none as new. The engine checks its hashes.

    A kept one that cannot be read is passed over: the run then begins with what is there.
    """
    kept = run.kept_checkpoint
    there = checkpoints_in(directory / CHECKPOINTS)
    if not kept or (there and there[-1][0] >= kept["step"]):
        return
    (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".kept-") as name:
        arriving = Path(name) / "checkpoint"
        arriving.mkdir()
        try:
            for file in files_below(storages["models"], kept["folder"]):
                _download(file, arriving / Path(file).name, beat)
        except OSError as error:
            logger.warning("the kept checkpoint of run %s cannot be read: %s", run.pk, error)
            return
        if (arriving / MANIFEST).exists():
            sync_directory(arriving)
            arriving.replace(directory / CHECKPOINTS / f"step-{kept['step']:06d}")


def forget(run: Run) -> None:
    """Of a run that needs none any more."""
    if run.kept_checkpoint:
        _remove(f"{FOLDER}/{run.pk}")


def sweep(keep: timedelta) -> int:
    """Remove those of runs that are gone, or ended longer ago than ``keep``; the number of runs."""
    storage, removed = storages["models"], 0
    try:
        names, _ = storage.listdir(FOLDER)
    except FileNotFoundError:
        return 0
    for name in names:
        if not is_needed(name, keep):
            _remove(f"{FOLDER}/{name}")
            removed += 1
    return removed


def _copy(run: UUID, epoch: int, step: int, source: Path) -> tuple[int, str]:
    """Step and folder. Hard links hold the files, should the engine remove the checkpoint meanwhile; manifest last."""
    storage, folder = storages["models"], f"{FOLDER}/{run}/{epoch}-{step:06d}"
    with tempfile.TemporaryDirectory(dir=source.parent.parent, prefix=".keep-") as name:
        links = Path(name)
        for path in source.iterdir():
            (links / path.name).hardlink_to(path)
        for path in sorted(links.iterdir(), key=lambda each: each.name == MANIFEST):
            with path.open("rb") as content:
                storage.save(f"{folder}/{path.name}", File(content))
    return step, folder


def _download(name: str, target: Path, beat: Beat) -> None:
    with open_file(storages["models"], name) as source, target.open("wb") as out:
        while chunk := source.read(CHUNK):
            out.write(chunk)
            beat(1)
        out.flush()
        os.fsync(out.fileno())


def _remove(folder: str) -> None:
    storage = storages["models"]
    delete_files(storage, list(files_below(storage, folder)))
    with suppress(OSError, NotImplementedError):
        shutil.rmtree(storage.path(folder))
