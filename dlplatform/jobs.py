"""Work that outlives a request: the abstract Job row, its lease, its queue, its reaper.

PostgreSQL is the queue of record; Redis only wakes a worker up. A claim is a conditional UPDATE that takes a
lease on the database's clock and raises the epoch; every later write names the epoch, so a worker that comes
back from the dead is refused (`LeaseLost`).
"""

import logging
import os
import signal
import socket
import uuid
from datetime import timedelta
from typing import Any, ClassVar, Self

import redis
from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Coalesce, Greatest, Now
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from .api import Conflict
from .processes import die_with_parent
from .valkey import shared_connection

logger = logging.getLogger(__name__)

WORK_LIMIT = -1  # RQ's own time limit is off: the lease and the stall watch decide


class LeaseLost(Exception):
    """Somebody else holds this job now; stop at once and write nothing more."""


class JobQuerySet(models.QuerySet[Any]):
    def waiting(self) -> Self:
        """Queued and due: nobody asked to cancel it and its back-off is over."""
        return self.filter(Q(not_before__isnull=True) | Q(not_before__lte=Now()), state=self.model.QUEUED)

    def abandoned(self) -> Self:
        """Held under a lease that has run out."""
        return self.filter(state__in=self.model.HELD, lease_expires_at__lt=Now())


class Job(models.Model):
    """A row that is worked on by one worker at a time. Subclasses name their states."""

    objects: Any = JobQuerySet.as_manager()

    QUEUED: ClassVar[str] = "queued"
    CLAIMED: ClassVar[str] = "running"
    HELD: ClassVar[tuple[str, ...]] = ("running",)
    ENDED: ClassVar[tuple[str, ...]] = ("succeeded", "failed", "cancelled")
    QUEUE: ClassVar[str]
    ENTRY: ClassVar[str]
    REQUESTS: ClassVar[tuple[str, ...]] = ("cancel_requested_at",)  # what a holder looks for as it renews its lease

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    state = models.CharField(max_length=20, default="queued", editable=False)
    attempt = models.PositiveIntegerField(default=0, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False, help_text="Attempts since the last progress")
    max_attempts = models.PositiveIntegerField(default=5)
    lease_owner = models.CharField(max_length=120, blank=True, editable=False)
    lease_epoch = models.PositiveIntegerField(default=0, editable=False)
    lease_expires_at = models.DateTimeField(null=True, editable=False)
    not_before = models.DateTimeField(null=True, editable=False)
    cancel_requested_at = models.DateTimeField(null=True, editable=False)
    queued_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, editable=False)
    finished_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        abstract = True

    @property
    def ended(self) -> bool:
        return self.state in self.ENDED

    @property
    def queue_name(self) -> str:
        """The queue whose workers may take this job."""
        return self.QUEUE

    @classmethod
    def claim(cls, identifier: uuid.UUID) -> Self | None:
        """Take the lease of a waiting job; None when it is gone, held, ended or not yet due."""
        taken = (
            cls.objects.filter(pk=identifier)
            .waiting()
            .update(
                state=cls.CLAIMED,
                attempt=F("attempt") + 1,
                failures=F("failures") + 1,
                lease_owner=lease_owner(),
                lease_epoch=F("lease_epoch") + 1,
                lease_expires_at=_lease_end(),
                not_before=None,
                started_at=Coalesce(F("started_at"), Now()),
            )
        )
        found: Any = cls.objects.get(pk=identifier) if taken else None
        return found

    def _mine(self) -> models.QuerySet[Any]:
        return type(self).objects.filter(pk=self.pk, lease_epoch=self.lease_epoch, state__in=self.HELD)

    def renew(self) -> bool:
        """Prolong the lease. True when a cancel was asked for; LeaseLost when somebody else holds it."""
        if not self._mine().update(lease_expires_at=_lease_end()):
            raise LeaseLost(str(self.pk))
        self.refresh_from_db(fields=self.REQUESTS)
        return self.cancel_requested_at is not None

    def write(self, **fields: Any) -> None:
        """Write columns under the lease; LeaseLost when the epoch has moved on."""
        if not self._mine().update(**fields):
            raise LeaseLost(str(self.pk))
        for name, value in fields.items():
            if not hasattr(value, "resolve_expression"):
                setattr(self, name, value)

    def finish(self, state: str, **fields: Any) -> None:
        """End the job and give the lease back."""
        self.write(state=state, finished_at=Now(), lease_expires_at=None, lease_owner="", **fields)

    def end_unheld(self, state: str, **fields: Any) -> bool:
        """End a job that nobody works on (queued, or abandoned by a dead worker); False when that changed meanwhile."""
        seen = type(self).objects.filter(pk=self.pk, lease_epoch=self.lease_epoch, state=self.state)
        return bool(
            seen.exclude(state__in=self.HELD, lease_expires_at__gt=Now()).update(
                state=state, finished_at=Now(), lease_owner="", lease_expires_at=None,
                lease_epoch=F("lease_epoch") + 1, **fields,
            )
        )  # fmt: skip

    def release(self, *, delay: float = 0, charge: bool = True, **fields: Any) -> None:
        """Back to the queue; without ``charge`` it is no failure (a drained worker)."""
        self.write(
            state=self.QUEUED,
            lease_expires_at=None,
            lease_owner="",
            not_before=Now() + timedelta(seconds=delay) if delay else None,
            **({} if charge else {"failures": Greatest(F("failures") - 1, 0)}),
            **fields,
        )


def lease_owner() -> str:
    return f"{settings.NODE_NAME}:{os.getpid()}"[:120]


def _lease_end() -> Any:
    return Now() + timedelta(seconds=settings.LEASE_SECONDS)


def connection() -> redis.Redis:
    return redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=3, health_check_interval=30)


def queue(name: str, client: redis.Redis | None = None) -> Queue:
    return Queue(name, connection=client or shared_connection(), serializer=JSONSerializer)


def others_work() -> bool:
    """Whether workers of other machines may take jobs too; also when Redis does not tell."""
    try:
        workers = Worker.all(connection=connection(), serializer=JSONSerializer)
    except redis.RedisError:
        return True
    return any(worker.hostname != socket.gethostname() for worker in workers)


def enqueue(job: Job) -> None:
    """Wake a worker for this row once the transaction has committed. Without Redis the reconciler does it."""
    transaction.on_commit(lambda: wake(job))


def wake(job: Job) -> None:
    try:
        queue(job.queue_name).enqueue(
            job.ENTRY,
            str(job.pk),
            job_id=str(job.pk),
            job_timeout=WORK_LIMIT,
            result_ttl=0,
            failure_ttl=3600,
        )
    except (redis.RedisError, OSError) as error:
        logger.warning("%s waits for the reconciler: %s", job.pk, error)


LOST = {
    "code": "worker_lost",
    "sentence": "The worker was lost again and again.",
    "next_step": "Check the machine's memory, then ask for it again.",
}


@transaction.atomic
def cancel(job: Job) -> Any:
    """Stop a job: at once while nobody holds it, else at its next beat. The row as it is now; Conflict when it has ended."""
    row: Any = type(job).objects.select_for_update(of=("self",)).get(pk=job.pk)
    if row.ended:
        how = "was" if row.state == "cancelled" else "has"
        raise Conflict(f"This {row._meta.verbose_name} {how} {row.state} already.", code="ended")
    type(job).objects.filter(pk=row.pk).update(cancel_requested_at=Now())
    if row.state not in row.HELD:
        row.end_unheld("cancelled")
    row.refresh_from_db()
    return row


def give_up(job: Job) -> None:
    """The reconciler's verdict on an abandoned job with an ``error`` that must not be tried again."""
    if job.cancel_requested_at:
        job.end_unheld("cancelled")
    else:
        job.end_unheld("failed", error=LOST)


def reconcile(model: type[Job], *, give_up: Any) -> dict[str, int]:
    """One tick for one kind of job: take back what a dead worker held, wake what Redis forgot.

    ``give_up(job)`` ends a job whose attempts are spent. Returns counts for the log.
    """
    taken = ended = 0
    for job in model.objects.abandoned():
        if job.cancel_requested_at or job.failures >= job.max_attempts:
            give_up(job)
            ended += 1
        else:
            taken += _take_back(model, job)
    waiting = list(model.objects.waiting().order_by("queued_at")[:500])
    on_queue = _on_queue(model.QUEUE)
    forgotten = [job for job in waiting if str(job.pk) not in on_queue]
    for job in forgotten:
        wake(job)
    return {"taken_back": taken, "ended": ended, "woken": len(forgotten)}


def _take_back(model: type[Job], job: Job) -> int:
    """Only if the lease is still the one that ran out: two reconcilers may look at the same row."""
    return model.objects.filter(
        pk=job.pk, lease_epoch=job.lease_epoch, state__in=model.HELD, lease_expires_at__lt=Now()
    ).update(state=model.QUEUED, lease_owner="", lease_expires_at=None, lease_epoch=F("lease_epoch") + 1)


def _on_queue(name: str) -> set[str]:
    try:
        return set(queue(name).get_job_ids())
    except (redis.RedisError, OSError):
        return set()


class PlatformWorker(Worker):
    """An RQ worker whose work ends with it, and that passes a request to stop on to the work.

    RQ's own worker waits for the job to end and, killed by force, leaves it running as an orphan.
    """

    max_connection_wait_time = 2.0  # seconds between attempts while Redis is away; RQ's own is a minute

    def procline(self, message: str) -> None:
        """The title of the process stays that of its command."""

    def setup_work_horse_signals(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(signal.SIGKILL)

    def handle_warm_shutdown_request(self) -> None:
        if self.horse_pid:
            os.kill(self.horse_pid, signal.SIGTERM)
