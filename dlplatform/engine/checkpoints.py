"""Checkpoints: durable, verified, the last two and the best kept."""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson
import safetensors
import safetensors.torch
from torch import Tensor

from dlplatform.engine.durable import Content, check_manifest, commit_directory, read_manifest, to_json
from dlplatform.engine.job import checkpoints_in
from dlplatform.engine.safetensors_pieces import to_safetensors

TENSORS: Final = "state.safetensors"
STATE: Final = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint is to hold."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    best: bool
    environment: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was just made durable."""

    step: int
    path: Path
    sha256: str
    best: bool


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint's content, and what was wrong with newer ones that had to be skipped."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    skipped: tuple[str, ...] = ()


class CheckpointStore:
    """The ``checkpoints`` directory of a job. One checkpoint at a time is written, beside whatever goes on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Saved] | None = None
        self._copies: dict[str, Tensor] = {}

    def begin(self, snapshot: Snapshot) -> None:
        """Copy the tensors now and write them in the background."""
        self.wait()
        self._copies = {name: self._copy(name, tensor) for name, tensor in snapshot.tensors.items()}
        self._writing = self._writer.submit(self.save, replace(snapshot, tensors=self._copies))

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """In the memory of the checkpoint before: fresh memory costs more than the copying."""
        last = self._copies.get(name)
        if last is None or last.shape != tensor.shape or last.dtype != tensor.dtype:
            return tensor.detach().to("cpu", copy=True).contiguous()
        return last.copy_(tensor)

    def wait(self) -> None:
        """Until what was begun is durable. Raises what went wrong with it, such as OSError for a full disk."""
        if self._writing is not None:
            self._writing.result()

    def finished(self) -> Saved | None:
        """The checkpoint that has become durable since the last call, if there is one. Raises as `wait` does."""
        if self._writing is None or not self._writing.done():
            return None
        saved, self._writing = self._writing.result(), None
        return saved

    def save(self, snapshot: Snapshot) -> Saved:
        """Write one checkpoint and remove those that are no longer needed."""
        self.directory.mkdir(exist_ok=True)
        path = self.directory / f"step-{snapshot.step:06d}"
        files: dict[str, Content] = {TENSORS: to_safetensors(snapshot.tensors), STATE: to_json(snapshot.state)}
        extra = {"step": snapshot.step, "best": snapshot.best, "environment": snapshot.environment}
        sha256 = commit_directory(path, files, extra)
        self._prune()
        return Saved(snapshot.step, path, sha256, snapshot.best)

    def load_latest(self) -> Loaded | None:
        """The newest checkpoint that matches its manifest, or None."""
        skipped: list[str] = []
        for step, path in reversed(checkpoints_in(self.directory)):
            try:
                check_manifest(path)
                state = orjson.loads((path / STATE).read_bytes())
                tensors = safetensors.torch.load((path / TENSORS).read_bytes())
            except (ValueError, OSError, safetensors.SafetensorError) as error:
                skipped.append(f"{path.name}: {error}")
                continue
            return Loaded(step, tensors, state, tuple(skipped))
        return Loaded(-1, {}, {}, tuple(skipped)) if skipped else None

    def _prune(self) -> None:
        found = checkpoints_in(self.directory)
        best = [step for step, path in found if _is_best(path)]
        keep = {step for step, _ in found[-2:]} | set(best[-1:])
        for step, path in found:
            if step not in keep:
                shutil.rmtree(path, ignore_errors=True)


def _is_best(path: Path) -> bool:
    try:
        return bool(read_manifest(path).get("best"))
    except ValueError:
        return False
