"""The job directory as the orchestrator writes it: ``spec.json`` and what it points to. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from dlplatform.engine.config import ConfigError, TrainingConfig, parse_config
from dlplatform.engine.errors import EngineError
from dlplatform.engine.fields import CODE as OWN_CODE
from dlplatform.engine.finetune_config import FinetuneConfig, recorded_finetune
from dlplatform.engine.schema import COLUMN_TYPES, TASKS, Column

FORMAT: Final = 1
SPEC: Final = "spec.json"
OUTPUT: Final = "output"
BASE: Final = "base"
CHECKPOINTS: Final = "checkpoints"
CODE: Final = "code"
STACKS: Final = "stacks.txt"
_CHECKPOINT: Final = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class JobSpec:
    """What to train, on which columns of which files, with which settings. ``rows``: of the data that the files are a
    sample of, by which the defaults are chosen; 0 when they hold all."""

    run: str
    attempt: int
    task: str
    targets: tuple[Column, ...]
    features: tuple[Column, ...]
    data: tuple[Path, ...]
    config: TrainingConfig
    lineage: dict[str, Any] = field(default_factory=dict)
    stop_after_epoch: int | None = None
    finetune: FinetuneConfig | None = None
    rows: int = 0
    entry: str = ""  # the file of the folder `code` that the run starts with, if it has code of its own

    @property
    def target_name(self) -> str:
        """The target for people: the names of its columns."""
        return ", ".join(column.name for column in self.targets)


def read_spec(job_dir: Path) -> JobSpec:
    """Read and check ``spec.json``.

    Raises EngineError: ``bad_config`` for settings, ``bad_data`` for columns and files,
    ``target_missing`` when the target is not among the columns.
    """
    raw = _read_json(job_dir / SPEC)
    if raw.get("format") != FORMAT:
        raise EngineError("bad_config", f"The job has format {raw.get('format')!r}; this engine reads {FORMAT}.")
    task = raw.get("task")
    if task not in TASKS:
        raise EngineError("bad_config", f"The task {task!r} is unknown; it must be one of: {', '.join(TASKS)}.")
    columns = _columns(raw.get("columns"))
    targets = _targets(raw.get("target"), columns)
    if task == "classification" and len(targets) > 1:
        raise EngineError("bad_config", "Classification has one target column.", "Use multilabel for several.")
    return JobSpec(
        run=str(raw.get("run", "")),
        attempt=int(raw.get("attempt", 1)),
        task=task,
        targets=targets,
        features=_features(raw.get("features"), columns, targets, task),
        data=_data_files(job_dir, raw.get("data")),
        config=_config(raw.get("config") or {}, task),
        lineage=raw.get("lineage") or {},
        stop_after_epoch=raw.get("stop_after_epoch"),
        finetune=_finetune(raw.get("finetune")),
        rows=int(raw.get("rows") or 0),
        entry=_entry(raw, task),
    )


def told_of(job_dir: Path) -> int:
    """The last event that earlier attempts told, wherever they worked; 0 when the job does not say."""
    try:
        told = _read_json(job_dir / SPEC).get("told")
    except EngineError:  # told later, in the usual way
        return 0
    return told if isinstance(told, int) else 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise EngineError("bad_config", f"{path.name} cannot be read.", detail=str(error)) from error
    if not isinstance(raw, dict):
        raise EngineError("bad_config", f"{path.name} is not a JSON object.")
    return raw


def _columns(raw: Any) -> dict[str, Column]:
    if not isinstance(raw, list) or not raw:
        raise EngineError("bad_data", "The job names no columns.")
    columns: dict[str, Column] = {}
    for entry in raw:
        name, type_ = entry.get("name"), entry.get("type")
        if type_ not in COLUMN_TYPES:
            raise EngineError("bad_data", f"Column {name!r} has the unknown type {type_!r}.")
        if name in columns:
            raise EngineError("bad_data", f"Two columns have the name {name!r}.", "Rename one of them.")
        columns[name] = Column(name, type_)
    return columns


def _targets(raw: Any, columns: dict[str, Column]) -> tuple[Column, ...]:
    """One name, or several for regression and multilabel."""
    names = raw if isinstance(raw, list) and raw else [raw]
    for name in names:
        if name not in columns:
            raise EngineError("target_missing", f"The target column {name!r} is not in the data.")
    return tuple(columns[name] for name in dict.fromkeys(names))


def _features(names: Any, columns: dict[str, Column], targets: tuple[Column, ...], task: str) -> tuple[Column, ...]:
    taken = {column.name for column in targets}
    if names is None and task == "language-model":
        names = [name for name in columns if name == "prompt" and name not in taken]
    if names is None:
        names = [name for name in columns if name not in taken]
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise EngineError("bad_data", f"The feature column {unknown[0]!r} is not in the data.")
    for name in names:
        if name in taken:
            raise EngineError("bad_data", f"The target column {name!r} cannot be a feature.", "Remove it.")
    if task == "language-model" and len(names) > 1:
        raise EngineError("bad_data", "A language model has one column of prompts at most.", "Remove the others.")
    if not names and task != "language-model":
        raise EngineError("bad_data", "There is no feature column to learn from.", "Choose at least one.")
    return tuple(columns[name] for name in dict.fromkeys(names))


def _data_files(job_dir: Path, names: Any) -> tuple[Path, ...]:
    if not isinstance(names, list) or not names:
        raise EngineError("bad_data", "The job names no data files.")
    root = job_dir.resolve()
    paths = tuple((root / str(name)).resolve() for name in names)
    for path in paths:
        if not path.is_relative_to(root) or not path.is_file():
            raise EngineError("bad_data", f"The data file {path.name} is not in the job directory.")
    return paths


def _entry(raw: dict[str, Any], task: str) -> str:
    entry = str(raw.get("entry") or "")
    if bool(entry) != ((raw.get("config") or {}).get("architecture") == OWN_CODE):
        raise EngineError("bad_config", "The architecture “code” and code go together; the job has only one of them.")
    return entry


def _finetune(raw: Any) -> FinetuneConfig | None:
    if raw is None:
        return None
    try:
        return recorded_finetune(raw)
    except ConfigError as error:
        raise EngineError("bad_config", str(error)) from error


def _config(raw: dict[str, Any], task: str) -> TrainingConfig:
    try:
        return parse_config(raw, task)
    except ConfigError as error:
        problems = "; ".join(f"{name}: {code}" for name, code, _ in error.problems)
        raise EngineError("bad_config", str(error), detail=problems) from error


def checkpoints_in(directory: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint in a ``checkpoints`` directory, the oldest first."""
    if not directory.is_dir():
        return []
    named = ((_CHECKPOINT.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted((int(match[1]), path) for match, path in named if match)
