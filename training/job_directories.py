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

from .models import CodeBundle, Run

Beat = Callable[[int], None]


def job_directory(run: Run) -> Path:
    return settings.JOB_PATH / str(run.pk)


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


def sweep_job_directories(age: timedelta) -> int:
    """Remove directories of runs that are gone or ended longer ago than ``age``; the number removed."""
    removed = 0
    for folder in settings.JOB_PATH.glob("*-*-*-*-*"):
        run = Run.objects.filter(pk=folder.name).only("state", "finished_at").first()
        old = run is not None and run.ended and run.finished_at and run.finished_at < timezone.now() - age
        if run is None or old:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed
