"""The prediction log: records are gathered in memory and written in bulk, off the path of the request.

What a killed process loses is what it gathered since the last writing: at most SECONDS of traffic. While the database does
not answer, up to MOST records are held, and further ones are lost and counted. Stopping in good order writes all.
"""

import atexit
import json
import logging
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, connection
from django.utils import timezone

from . import logged_images
from .experiments.holding import needed_since
from .experiments.models import SupersededLabel
from .models import Deployment, Feedback, LoggedImage, PredictionRecord, Variant

SECONDS = 1.0
MOST = 10_000
BATCH = 500
MOST_IMAGES = 64 << 20  # characters of images that wait; further ones are kept as hashes

ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"), ("\0", ""))

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Entry:
    """A record before it is in the database, with the columns of `PredictionRecord`: the model's own objects take ten
    times as long to make, in the path of the request."""

    request_id: UUID
    deployment_id: UUID
    variant_id: UUID
    role: str
    revision: int
    propensity: float | None
    key: str
    instances: list[dict[str, Any]]
    predictions: list[dict[str, Any]] | None
    milliseconds: float
    error: str
    at: datetime
    organization_id: UUID | None = None
    images: tuple[logged_images.Sent, ...] = ()  # of its rows, which name them by hash until they are stored


COLUMNS = tuple(field.name for field in fields(Entry))[:-2]


class RecordBuffer:
    """Records on their way to the database. ``thread`` False leaves the writing to whoever calls `flush`."""

    def __init__(self, thread: bool = True) -> None:
        self._waiting: deque[Entry] = deque()
        self._writes = thread
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._full = threading.Event()
        self._started = False
        self._of_images = 0
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
        if len(self._waiting) >= BATCH:
            self._full.set()

    def _take_images(self, record: Entry) -> None:
        size = _size(record)
        if self._of_images + size > MOST_IMAGES:
            record.images = ()
        else:
            self._of_images += size

    def _work(self) -> None:
        while True:
            self._full.wait(SECONDS)
            self._full.clear()
            try:
                self.flush()
            finally:
                connection.close()

    def flush(self) -> int:
        """Write what waits; how many were written. What the database does not take now waits on, and so does what comes
        meanwhile: writing on and on, a few records at a time, would cost as much as the models that answer."""
        written = 0
        with self._writing:
            waiting_now = len(self._waiting)
            while written < waiting_now and (batch := self._next()):
                waiting = sum(map(_size, batch))
                try:
                    logged_images.keep(batch)
                    _write(batch)
                except DatabaseError as error:
                    logger.warning("%d records of predictions wait: %s", len(batch), error)
                    self._put_back(batch)
                    break
                for record in batch:
                    record.images = ()
                with self._lock:  # what is stored, or will not be, waits no more
                    self._of_images -= waiting
                written += len(batch)
            self._tell_lost()
        return written

    def _next(self) -> list[Entry]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _put_back(self, batch: list[Entry]) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(batch))

    def _tell_lost(self) -> None:
        with self._lock:
            lost, self.lost = self.lost, 0
        if lost:
            logger.error("%d records of predictions were lost: the database did not take them in time", lost)


def _size(record: Entry) -> int:
    return sum(len(image.text) for image in record.images)


def _write(batch: list[Entry]) -> None:
    """One statement; where a record spoils it (its deployment is gone, a NUL in a text), each on its own."""
    try:
        _copy(batch)
    except (IntegrityError, DataError):
        living = set(
            Deployment.objects.filter(pk__in={row.deployment_id for row in batch}).values_list("pk", flat=True)
        )
        _write_singly([row for row in batch if row.deployment_id in living])


def _copy(batch: list[Entry]) -> None:
    """By COPY: building objects of the ORM's statements costs a process that answers ten times as much."""
    rows = "".join(map(_line, batch))
    statement = f"COPY {PredictionRecord._meta.db_table} ({', '.join(COLUMNS)}) FROM STDIN"
    with connection.cursor() as wrapped, connection.wrap_database_errors, wrapped.cursor.copy(statement) as copy:
        copy.write(rows)


def _line(record: Entry) -> str:
    """A record as a line of COPY's text format, in the order of COLUMNS."""
    values = (
        str(record.request_id), str(record.deployment_id), str(record.variant_id), record.role, record.revision,
        record.propensity, _escaped(record.key), _json(record.instances),
        None if record.predictions is None else _json(record.predictions), record.milliseconds, _escaped(record.error),
        record.at.isoformat(),
    )  # fmt: skip
    return "\t".join("\\N" if value is None else str(value) for value in values) + "\n"


def _json(value: Any) -> str:
    try:
        return _escaped(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode())
    except TypeError:  # a number of more digits than orjson knows
        return _escaped(json.dumps(value))


def _escaped(text: str) -> str:
    """For COPY; without NUL, which PostgreSQL cannot hold in a text."""
    for character, escape in ESCAPES:
        if character in text:
            text = text.replace(character, escape)
    return text


def _write_singly(records: Collection[Entry]) -> None:
    for record in records:
        try:
            PredictionRecord.objects.create(**{name: getattr(record, name) for name in COLUMNS})
        except (IntegrityError, DataError) as error:
            logger.error("the record of request %s is not kept: %s", record.request_id, error)


buffer = RecordBuffer()


def drain() -> None:
    """Write what waits, before the process ends."""
    try:
        buffer.flush()
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
    """Delete records, their images and feedback that are older than the policy and that no experiment needs; how many."""
    before = timezone.now() - timedelta(days=settings.PREDICTION_LOG_DAYS)
    kept = needed_since(before)
    tables = ((PredictionRecord, "at"), (Feedback, "at"), (SupersededLabel, "replaced_at"), (LoggedImage, "at"))
    removed = 0
    for table, moment in tables:
        old = table.objects.filter(**{f"{moment}__lt": before})
        for deployment, since in kept.items():
            old = old.exclude(**{"deployment": deployment, f"{moment}__gte": since})
        removed += old.delete()[0]
    return removed
