"""The periodic ticks, run by `manage.py scheduler`.

They run in the scheduler itself and not through the queue: a tick that repairs the queue must not wait in it
(docs/adr/0003).
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.utils import timezone

from datasets import reachability as dataset_objects
from datasets import services as datasets
from datasets.models import DatasetVersion
from dlplatform import jobs
from dlplatform.accounts.idempotency import LIFETIME
from dlplatform.accounts.models import Organization, RememberedAnswer
from dlplatform.objects import collection
from dlplatform.objects.errors import CorruptObject, MissingObject
from registry import reachability as model_objects
from registry import uploads
from registry.models import Comparison, Merge, Optimization, Upload
from registry.serving import batches, following, logged_images, prediction_log
from registry.serving.experiments import ticking as experiments
from registry.serving.models import BatchPrediction
from training import job_directories, kept_checkpoints, preflights, states
from training import reachability as code_objects
from training.models import Preflight, Run
from training.nodes.gathering import end_orphans
from training.sweeps.waking import wake_idle_sweeps

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tick:
    """A function and the seconds between two calls of it."""

    name: str
    seconds: float
    work: Callable[[], object]


def reconcile_runs() -> dict[str, int]:
    return jobs.reconcile(Run, give_up=states.give_up) | {"nodes_ended": end_orphans()}


def reconcile_datasets() -> dict[str, int]:
    return jobs.reconcile(DatasetVersion, give_up=datasets.give_up)


def reconcile_comparisons() -> dict[str, int]:
    return jobs.reconcile(Comparison, give_up=jobs.give_up)


def reconcile_merges() -> dict[str, int]:
    return jobs.reconcile(Merge, give_up=jobs.give_up)


def reconcile_optimizations() -> dict[str, int]:
    return jobs.reconcile(Optimization, give_up=jobs.give_up)


def reconcile_uploads() -> dict[str, int]:
    return jobs.reconcile(Upload, give_up=jobs.give_up)


def reconcile_batches() -> dict[str, int]:
    return jobs.reconcile(BatchPrediction, give_up=jobs.give_up)


def reconcile_preflights() -> dict[str, int]:
    return jobs.reconcile(Preflight, give_up=jobs.give_up)


def forget_answers() -> int:
    return RememberedAnswer.objects.filter(created_at__lt=timezone.now() - LIFETIME).delete()[0]


def sweep_job_directories() -> int:
    keep = timedelta(days=14)
    return job_directories.sweep_job_directories(keep) + kept_checkpoints.sweep(keep)


class Collecting:
    """Collects objects in a thread, one collection at a time: the other ticks do not wait for a large store."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="collect objects", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            collect_objects()
        finally:
            connection.close()


def models_and_code(organization: UUID) -> set[str]:
    """Models are stored beside the code that builds some of them."""
    return model_objects.reachable_objects(organization) | code_objects.reachable_objects(organization)


def datasets_and_logs(organization: UUID) -> set[str]:
    """Images that were sent to models are stored beside those of datasets."""
    return dataset_objects.reachable_objects(organization) | logged_images.reachable_objects(organization)


def collect_objects() -> None:
    """Condemn and sweep the objects of every organization that no version refers to any more."""
    grace = timedelta(days=settings.OBJECT_GRACE_DAYS)
    sources = {"models": models_and_code, "datasets": datasets_and_logs}
    for storage, reachable_objects in sources.items():
        collection.remove_abandoned(storage, grace=grace)
        for organization in Organization.objects.values_list("pk", flat=True):
            try:
                reachable = reachable_objects(organization)
            except (MissingObject, CorruptObject) as error:
                logger.error("objects of %s in %s are not collected: %s", organization, storage, error)
                continue
            done = collection.collect(storage, organization, reachable, grace=grace)
            if done.swept or done.condemned:
                logger.info("objects of %s in %s: %s", organization, storage, done)


TICKS = (
    Tick("reconcile runs", settings.RECONCILE_SECONDS, reconcile_runs),
    Tick("reconcile datasets", settings.RECONCILE_SECONDS, reconcile_datasets),
    Tick("reconcile comparisons", settings.RECONCILE_SECONDS, reconcile_comparisons),
    Tick("reconcile merges", settings.RECONCILE_SECONDS, reconcile_merges),
    Tick("reconcile optimizations", settings.RECONCILE_SECONDS, reconcile_optimizations),
    Tick("reconcile uploads", settings.RECONCILE_SECONDS, reconcile_uploads),
    Tick("reconcile batch predictions", settings.RECONCILE_SECONDS, reconcile_batches),
    Tick("wake sweeps", settings.RECONCILE_SECONDS, wake_idle_sweeps),
    Tick("follow aliases", following.SECONDS, following.tick),
    Tick("watch experiments", experiments.SECONDS, experiments.tick),
    Tick("reconcile preflights", settings.RECONCILE_SECONDS, reconcile_preflights),
    Tick("forget preflights", 3600, preflights.forget_preflights),
    Tick("forget unused code", 3600, code_objects.forget_unused_code),
    Tick("forget predictions", 3600, prediction_log.forget_old),
    Tick("expire uploads", 3600, uploads.expire),
    Tick("forget answers", 3600, forget_answers),
    Tick("collect objects", 6 * 3600, Collecting().start),
    Tick("sweep job directories", 3600, sweep_job_directories),
    Tick("sweep batch folders", 3600, batches.sweep_folders),
)
