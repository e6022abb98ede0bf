"""The prediction log: records are gathered in memory and written in bulk, off the path of the request.

A thread hands them on every SECONDS, or IMAGE_SECONDS where there are images among them, to a process that writes
(`log_process`), or writes itself where there is none. What a killed process loses is what it gathered since, and while the
last batch was written. While the database does not answer, up to MOST records are held, and further ones are lost and
counted. Stopping in good order writes all.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, connection
from django.utils import timezone

from . import logged_images
from .experiments.holding import needed_since
from .experiments.models import SupersededLabel
from .log_entries import COLUMNS, Entry, line_of, told
from .log_process import WriterProcess
from .models import Deployment, Feedback, LoggedImage, PredictionRecord, Variant

SECONDS = 0.1  # small batches: each takes a core for some milliseconds alone
IMAGE_SECONDS = 0.4  # with images a batch costs some ten milliseconds, however small it is
AWAY_SECONDS = 1.0  # between two tries to write
MOST = 10_000
BATCH = 500
MOST_IMAGES = 64 << 20  # characters of images that wait; further ones are kept as hashes
MUCH_OF_IMAGES = MOST_IMAGES // 4  # are handed on at once

logger = logging.getLogger(__name__)


class RecordBuffer:
    """Records on their way to the database. ``thread`` False leaves the writing to whoever calls `flush`."""

    def __init__(self, thread: bool = True, process: WriterProcess | None = None) -> None:
        self._waiting: deque[Entry] = deque()
        self._writes = thread
        self._process = process
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._full = threading.Event()
        self._started = False
        self._of_images = 0
        self._away = False
        self.lost = 0  # since it was last told
        self.lost_ever = 0

    @property
    def waiting(self) -> int:
        """Records that are not in the database yet."""
        return len(self._waiting)

    def add(self, record: Entry) -> None:
        """Take a record, without ever waiting for the database."""
        with self._lock:
            if len(self._waiting) >= MOST:
                self.lost += 1
                self.lost_ever += 1
                return
            if record.images:
                self._take_images(record)
            self._waiting.append(record)
            if self._writes and not self._started:
                self._started = True
                threading.Thread(target=self._work, name="prediction log", daemon=True).start()
        if len(self._waiting) >= BATCH or self._of_images >= MUCH_OF_IMAGES:
            self._full.set()

    def _take_images(self, record: Entry) -> None:
        if self._of_images + record.size > MOST_IMAGES:
            record.images = ()
        else:
            self._of_images += record.size

    def _work(self) -> None:
        while True:
            if not self._full.wait(SECONDS) and self._of_images:
                self._full.wait(IMAGE_SECONDS - SECONDS)
            self._full.clear()
            try:
                self.flush()
            finally:
                connection.close()
            if self._away:
                time.sleep(AWAY_SECONDS)

    def flush(self) -> int:
        """Write what waits; how many were written. What the database does not take now waits on, as what comes meanwhile
        does: it makes a batch of its own."""
        written, all_of_them = 0, self.waiting
        with self._writing:
            self._away = False
            while written < all_of_them and (batch := self._next()):
                waiting = sum(record.size for record in batch)
                try:
                    self._write(batch)
                except DatabaseError as error:
                    logger.warning("%d records of predictions wait: %s", len(batch), error)
                    self._put_back(batch)
                    self._away = True
                    break
                except Exception:  # one batch that nobody foresaw must not end the log
                    logger.exception("%d records of predictions cannot be written", len(batch))
                    self._lose(len(batch))
                for record in batch:
                    record.images = ()
                with self._lock:  # what is stored, or will not be, waits no more
                    self._of_images -= waiting
                written += len(batch)
            self._tell_lost()
        return written

    def _write(self, batch: list[Entry]) -> None:
        if self._process is None or not self._process.wrote(batch, urgent=self.waiting >= BATCH):
            store(batch)  # a second time perhaps, which is noticed

    def drain(self) -> None:
        """Write what waits, before this process ends."""
        self.flush()
        if self._process is not None:
            with self._writing:
                self._process.close()

    def _next(self) -> list[Entry]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _put_back(self, batch: list[Entry]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(batch))

    def _lose(self, records: int) -> None:
        with self._lock:
            self.lost += records
            self.lost_ever += records

    def _tell_lost(self) -> None:
        with self._lock:
            lost, self.lost = self.lost, 0
        if lost:
            logger.error("%d records of predictions were lost: the database did not take them, or not in time", lost)


def store(batch: list[Entry]) -> None:
    """Write records and their images. Those that are there already are left as they are. Raises DatabaseError."""
    opened = [record.opened() for record in batch]
    logged_images.keep(opened)
    _write(opened)


def _write(batch: list[Entry]) -> None:
    """One statement; where a record spoils it (its deployment is gone, a NUL in a text), each on its own."""
    try:
        _copy(batch)
    except (IntegrityError, DataError):
        _write_singly(_possible(batch))


def _possible(batch: list[Entry]) -> list[Entry]:
    """Without the records of deployments that are gone, and those that another writer wrote before it died."""
    living = set(Deployment.objects.filter(pk__in={row.deployment_id for row in batch}).values_list("pk", flat=True))
    same = PredictionRecord.objects.filter(request_id__in={row.request_id for row in batch})
    written = set(same.values_list("request_id", "variant_id"))
    return [row for row in batch if row.deployment_id in living and (row.request_id, row.variant_id) not in written]


def _copy(batch: list[Entry]) -> None:
    """By COPY: building objects of the ORM's statements costs ten times as much."""
    rows = "".join(line_of(told(record)) for record in batch)
    statement = f"COPY {PredictionRecord._meta.db_table} ({', '.join(COLUMNS)}) FROM STDIN"
    with connection.cursor() as wrapped, connection.wrap_database_errors, wrapped.cursor.copy(statement) as copy:
        copy.write(rows)


def _write_singly(records: Collection[Entry]) -> None:
    for record in records:
        try:
            PredictionRecord.objects.create(**{name: getattr(record, name) for name in COLUMNS})
        except (IntegrityError, DataError) as error:
            logger.error("the record of request %s is not kept: %s", record.request_id, error)


buffer = RecordBuffer(process=WriterProcess())


def drain() -> None:
    """Write what waits, before the process ends."""
    try:
        buffer.drain()
    finally:
        connection.close()


atexit.register(drain)


def shadows_of(deployment: UUID, requests: Collection[UUID]) -> dict[UUID, list[PredictionRecord]]:
    """By request what the shadows made of it."""
    found: dict[UUID, list[PredictionRecord]] = {}
    rows = PredictionRecord.objects.filter(deployment=deployment, request_id__in=requests, role=Variant.Role.SHADOW)
    for row in rows.select_related("variant").order_by("id"):
        found.setdefault(row.request_id, []).append(row)
    return found


def labels_of(deployment: UUID, requests: Collection[UUID]) -> dict[UUID, dict[int, object]]:
    """By request the labels that came, by row."""
    found: dict[UUID, dict[int, object]] = {}
    for row in Feedback.objects.filter(deployment=deployment, request_id__in=requests):
        found.setdefault(row.request_id, {})[row.index] = row.label
    return found


def forget_old() -> int:
    """Delete records, their images and feedback that are older than the policy and that no experiment needs, and records of
    deployments that are gone; how many."""
    before = timezone.now() - timedelta(days=settings.PREDICTION_LOG_DAYS)
    kept = needed_since(before)
    tables = ((PredictionRecord, "at"), (Feedback, "at"), (SupersededLabel, "replaced_at"), (LoggedImage, "at"))
    removed = _forget_orphans()
    for table, moment in tables:
        old = table.objects.filter(**{f"{moment}__lt": before})
        for deployment, since in kept.items():
            old = old.exclude(**{"deployment": deployment, f"{moment}__gte": since})
        removed += old.delete()[0]
    return removed


def _forget_orphans() -> int:
    """Records that were on their way when their deployment was deleted."""
    named = set(_deployments_with_records())
    gone = named - set(Deployment.objects.filter(pk__in=named).values_list("pk", flat=True))
    return PredictionRecord.objects.filter(deployment__in=gone).delete()[0] if gone else 0


def _deployments_with_records() -> Iterator[UUID]:
    """Each found through the index, behind the one before: to look at every record would take minutes."""
    ordered = PredictionRecord.objects.order_by("deployment_id").values_list("deployment_id", flat=True)
    found = ordered.first()
    while found is not None:
        yield found
        found = ordered.filter(deployment_id__gt=found).first()
