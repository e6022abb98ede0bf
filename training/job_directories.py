"""Where runs work: one directory each, kept for a while after the end so that a run can be resumed."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from dlplatform.engine.job import BASE, CODE
from dlplatform.objects.store import ObjectStore
from registry.models import ModelVersion
from registry.packages import package_files, safe_target

from .models import CodeBundle, Node, Run

Beat = Callable[[int], None]


def job_directory(run: Run) -> Path:
    return settings.JOB_PATH / str(run.pk)


def node_directory(node: Node) -> Path:
    """Where a machine works on a run that another one leads; not the leader's, should they share a disk."""
    return settings.JOB_PATH / f"{node.run_id}.{node.rank}"


def fetch_base(base: ModelVersion | None, directory: Path, beat: Beat) -> None:
    """The package that a fine-tuning starts from, into the folder of its job; files that are there stay."""
    if base is None:
        return
    store = ObjectStore("models", base.model.organization_id)
    for name, entry in package_files(base):
        path = safe_target(directory / BASE, name)
        if not path.exists() or path.stat().st_size != entry["size"]:
            store.fetch(entry["sha256"], path)
        beat(1)


def fetch_code(code: CodeBundle | None, directory: Path) -> None:
    """The code of a user's own, into the folder of its job."""
    if code is None:
        return
    store = ObjectStore("models", code.organization_id)
    for name, entry in code.tree.items():
        store.fetch(entry["sha256"], safe_target(directory / CODE, name))


def is_needed(run: str, keep: timedelta) -> bool:
    """Whether files of a run are kept: it exists, and has not ended longer ago than ``keep``."""
    row = Run.objects.filter(pk=run).only("state", "finished_at").first()
    old = row is not None and row.ended and row.finished_at and row.finished_at < timezone.now() - keep
    return row is not None and not old


def sweep_job_directories(age: timedelta) -> int:
    """Remove directories of runs that are gone or ended longer ago than ``age``; the number removed."""
    removed = 0
    for folder in settings.JOB_PATH.glob("*-*-*-*-*"):
        if not is_needed(folder.name.split(".")[0], age):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed
