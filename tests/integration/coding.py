"""Looking at runs with code of users' own."""

import os

import psutil

from dlplatform.sandbox.process import user_for
from training.jobs import train
from training.models import MetricPoint, RunEvent


def ended(run):
    train(str(run.pk))
    run.refresh_from_db()
    return run


def log_of(run):
    lines = RunEvent.objects.filter(run=run, type="log").order_by("sequence")
    return "\n".join(line.payload["message"] for line in lines)


def survivors(run):
    """Processes that belong to the run: by their user where there is one of its own, else by their command, and all below."""
    found = set()
    for process in psutil.process_iter():
        try:
            mine = process.uids().real == user_for(run.pk) != os.geteuid() or str(run.pk) in " ".join(process.cmdline())
            found |= {process, *process.children(recursive=True)} if mine else set()
        except psutil.Error:
            continue
    return [process for process in found if _lives(process)]


def _lives(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def under_way(run, step=1):
    return lambda: MetricPoint.objects.filter(series__run=run, step__gte=step).exists()
