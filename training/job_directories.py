"""Where runs work: one directory each, kept for a while after the end so that a run can be resumed."""

import shutil
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from .models import Run


def job_directory(run: Run) -> Path:
    return settings.JOB_PATH / str(run.pk)


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
