"""What a training script sees of the platform: the object ``run``, from ``from dlp_run import run``.

It writes the event stream that every run writes, and knows no more of the world than the job directory.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from dlplatform.engine.durable import (
    MANIFEST,
    check_manifest,
    manifest_of_directory,
    sync_directory,
    to_json,
    write_file,
)
from dlplatform.engine.events import SPOOL, EventWriter, read_events
from dlplatform.engine.job import CHECKPOINTS, OUTPUT

PROGRESS_SECONDS: Final = 0.25
KEPT_CHECKPOINTS: Final = 2
MOST_KEYS: Final = 200
LONGEST_KEY: Final = 120
METRICS: Final = "metrics.json"


class Data:
    """The dataset version of a run: Parquet files, and how to read them at once."""

    def __init__(self, folder: Path, files: list[str], columns: list[dict[str, Any]]) -> None:
        self.paths = [folder / file for file in files]
        self.columns = {str(column["name"]): str(column["type"]) for column in columns}
        self.images = folder / "data" / "images"

    def table(self) -> Any:
        """All rows, as a ``pyarrow.Table``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        return pa.concat_tables([pq.read_table(path) for path in self.paths])

    def frame(self) -> Any:
        """All rows, as a ``pandas.DataFrame``, where pandas is installed."""
        return self.table().to_pandas()


class ScriptRun:
    """One run of a script.

    ``params``: what the run was started with. ``config``: its other settings, of which the script may use what it
    likes. ``target`` and ``features``: the chosen columns. ``data``: see `Data`. ``output``: a folder that becomes the
    model version: safetensors and JSON files, no pickles.
    """

    def __init__(self, folder: Path, spec: Mapping[str, Any]) -> None:
        self._folder = folder
        self._writer = EventWriter(folder / SPOOL, int(spec.get("told") or 0))
        self._logged = _steps_logged(folder / SPOOL)
        self._values: dict[str, float | None] = {}
        self._metrics: dict[str, float | None] | None = None
        self._reported = float("-inf")
        self._began = time.monotonic()
        self._first: int | None = None
        self.stop_requested = False
        self.step = 0
        self.config: dict[str, Any] = dict(spec["config"])
        self.params: dict[str, Any] = dict(self.config.pop("params", {}))
        self.task: str = spec["task"]
        targets = spec["target"] if isinstance(spec["target"], list) else [spec["target"]]
        self.targets: list[str] = targets
        self.target: str = targets[0]
        self.data = Data(folder, spec["data"], spec["columns"])
        self.features: list[str] = spec.get("features") or [name for name in self.data.columns if name not in targets]
        self.seed = int(self.config.get("seed", 0))

    @property
    def should_stop(self) -> bool:
        """Whether the run is to end soon: save a checkpoint and return, within a few seconds."""
        return self.stop_requested

    @property
    def output(self) -> Path:
        """A folder of which a model version is made when the script ends."""
        folder = self._folder / OUTPUT
        folder.mkdir(exist_ok=True)
        return folder

    def log(self, *, step: int | None = None, **values: float) -> None:
        """Report metrics at a step, by default the one after the last. A value at a step counts once, the first time,
        so that a script which goes on from a checkpoint may report steps again.

        Raises ValueError for what is no number, and for a negative step.
        """
        step = self.step + 1 if step is None else int(step)
        if step < 0 or len(values) > MOST_KEYS:
            raise ValueError(f"log() takes a step from 0 on and at most {MOST_KEYS} values.")
        fresh = {_key(name): _number(name, value) for name, value in values.items()}
        self.step = max(self.step, step)
        self._values |= fresh
        fresh = {name: value for name, value in fresh.items() if step > self._logged.get(name, -1)}
        if fresh:
            self._logged |= dict.fromkeys(fresh, step)
            self._writer.emit("metric", step=step, epoch=0, values=fresh)

    def progress(self, step: int, total: int) -> None:
        """Say how far the work has come: ``step`` of ``total``. Called as often as one likes."""
        now = time.monotonic()
        self._first = step if self._first is None else self._first
        if now - self._reported < PROGRESS_SECONDS and step < total:
            return
        self._reported = now
        done = step - self._first
        left = (now - self._began) / done * max(0, total - step) if done > 0 else None
        self._progress("training", step, total, min(1.0, step / total) if total else 0.0, left)

    def _progress(self, phase: str, step: int, total: int, fraction: float, left: float | None) -> None:
        self._writer.emit(
            "progress", phase=phase, epoch=0, step=step, total_steps=total, fraction=fraction, eta_seconds=left,
            rows_per_second=None,
        )  # fmt: skip

    def say(self, message: str, level: str = "info") -> None:
        """A line of the log; what is printed goes there too."""
        self._writer.log(level, message)

    @contextlib.contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """A folder to write a checkpoint into; it counts once the block has ended without an exception.

        The last two are kept. See `latest_checkpoint`.
        """
        parent = self._folder / CHECKPOINTS
        parent.mkdir(exist_ok=True)
        temporary, target = parent / f"step-{int(step):06d}.tmp", parent / f"step-{int(step):06d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        digest = _seal(temporary, {"step": int(step)})
        self._writer.sync()
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        sync_directory(parent)
        self._writer.emit("checkpoint", step=int(step), path=f"{CHECKPOINTS}/{target.name}", sha256=digest, best=False)
        for old in _checkpoints(parent)[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest whole checkpoint of an earlier attempt, or None."""
        for folder in reversed(_checkpoints(self._folder / CHECKPOINTS)):
            try:
                return int(check_manifest(folder)["step"]), folder
            except (ValueError, KeyError):
                self.say(f"A damaged checkpoint was skipped: {folder.name}.", "warning")
        return None

    def save(self, tensors: Any, *, metrics: Mapping[str, float] | None = None, card: str = "") -> None:
        """Write ``model.safetensors`` from a module or a dict of tensors, the final metrics and a model card.

        Files of the script's own may be put into `output` beside it.
        """
        import safetensors.torch

        found = tensors.state_dict() if hasattr(tensors, "state_dict") else dict(tensors)
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in found.items()}
        safetensors.torch.save_file(whole, self.output / "model.safetensors", metadata={"format": "pt"})
        if metrics is not None:
            self._metrics = {_key(name): _number(name, value) for name, value in metrics.items()}
        if card:
            (self.output / "README.md").write_text(card)

    # --- for the bootstrap ---------------------------------------------------------------------------

    def started(self, environment: dict[str, Any]) -> None:
        """Tell that an attempt begins. An output that an earlier one left unfinished is let go."""
        shutil.rmtree(self._folder / OUTPUT, ignore_errors=True)
        found = self.latest_checkpoint()
        self._writer.emit(
            "started", environment=environment, threads=int(os.environ.get("OMP_NUM_THREADS", "0") or 0), device="",
            resumed_from=found[0] if found else None, parameters=0, rows={}, config={**self.config, "params": self.params},
        )  # fmt: skip
        self._progress("training", 0, 0, 0.0, None)

    def finished(self) -> None:
        """Tell that the output is whole."""
        metrics = self._values if self._metrics is None else self._metrics
        write_file(self.output / METRICS, to_json(metrics))
        self._progress("finished", self.step, self.step, 1.0, None)
        self._writer.emit("finished", metrics=metrics, package=OUTPUT)

    def failed(self, payload: dict[str, str]) -> None:
        """Tell how it ended."""
        self._writer.emit("failed", **payload)

    @property
    def has_output(self) -> bool:
        """Whether the script left anything to make a version of."""
        return (self._folder / OUTPUT).is_dir() and any((self._folder / OUTPUT).iterdir())

    def close(self) -> None:
        """Make everything durable."""
        self._writer.close()


def _key(name: str) -> str:
    if not name or len(name) > LONGEST_KEY:
        raise ValueError(f"The name of a metric has 1 to {LONGEST_KEY} characters; {name[:40]!r} has {len(name)}.")
    return name


def _number(name: str, value: Any) -> float | None:
    """A float of Python, from what can be one, such as a tensor of one element; None for NaN and infinities."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {type(value).__name__}; a metric is one number.") from None
    return number if math.isfinite(number) else None


def _steps_logged(spool: Path) -> dict[str, int]:
    """{metric: the last step that earlier attempts reported}."""
    steps: dict[str, int] = {}
    offset = 0
    while True:
        events, end = read_events(spool, offset)
        for event in events:
            if event.get("type") == "metric":
                steps |= {name: max(steps.get(name, -1), int(event["step"])) for name in event["values"]}
        if end == offset:
            return steps
        offset = end


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp") if folder.is_dir() else []


def _seal(folder: Path, extra: dict[str, Any]) -> str:
    """Make a folder durable and write its manifest last; the manifest's SHA-256."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    manifest, digest = manifest_of_directory(folder, extra)
    write_file(folder / MANIFEST, manifest)
    sync_directory(folder)
    return digest


def read_raw(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of the job directory."""
    found: dict[str, Any] = orjson.loads((folder / name).read_bytes())
    return found
