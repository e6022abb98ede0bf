"""The periodic ticks, run by `manage.py scheduler`.

They run in the scheduler itself and not through the queue: a tick that repairs the queue must not wait in it
(docs/adr/0003).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from datasets import services as datasets
from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts.idempotency import LIFETIME
from dlplatform.accounts.models import RememberedAnswer
from training import orchestrator, states
from training.models import Run


@dataclass(frozen=True)
class Tick:
    """A function and the seconds between two calls of it."""

    name: str
    seconds: float
    work: Callable[[], object]


def reconcile_runs() -> dict[str, int]:
    return jobs.reconcile(Run, give_up=states.give_up)


def reconcile_datasets() -> dict[str, int]:
    return jobs.reconcile(DatasetVersion, give_up=datasets.give_up)


def forget_answers() -> int:
    return RememberedAnswer.objects.filter(created_at__lt=timezone.now() - LIFETIME).delete()[0]


def sweep_job_directories() -> int:
    return orchestrator.sweep_job_directories(timedelta(days=14))


TICKS = (
    Tick("reconcile runs", settings.RECONCILE_SECONDS, reconcile_runs),
    Tick("reconcile datasets", settings.RECONCILE_SECONDS, reconcile_datasets),
    Tick("forget answers", 3600, forget_answers),
    Tick("sweep job directories", 3600, sweep_job_directories),
)
