"""Images of the prediction log: bytes in the object store, each once in an organization, as long as a record names them.

They wait with their records for the writer, off the path of the request. An image that cannot be kept (the store fails, the
limits of memory or volume are reached) stays in its row as the SHA-256 of its text; its record is written all the same.
"""

import base64
import logging
import math
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, IntegrityError
from django.db.models import Sum

from dlplatform.objects.store import ObjectStore

from .log_entries import Sent
from .models import LoggedImage

STORAGE = "datasets"  # an image of a dataset that is sent to a model is stored once
STORED = "object:"
MEGABYTE = 1_000_000
COUNT_SECONDS, DOUBT_SECONDS = 10.0, 1.0  # between two counts; before anything is refused

logger = logging.getLogger(__name__)


class WithImages(Protocol):
    """What is looked at here of a record on its way, see `log_entries`."""

    deployment_id: UUID
    organization_id: UUID | None
    instances: Sequence[dict[str, Any]]
    images: tuple[Sent, ...]
    at: datetime


def keep(records: Iterable[WithImages]) -> None:
    """Store the images of these records and name them in their rows. Raises DatabaseError alone: then nothing is changed."""
    by_organization: dict[UUID, list[WithImages]] = {}
    for record in records:
        if record.images and record.organization_id:
            by_organization.setdefault(record.organization_id, []).append(record)
    for organization, some in by_organization.items():
        try:
            _keep(organization, some)
        except IntegrityError:  # a deployment is gone
            logger.warning("images of records are not kept: their deployment is gone")
        except DatabaseError:
            raise
        except Exception:
            logger.exception("images of %d records are not kept", len(some))


def _keep(organization: UUID, records: list[WithImages]) -> None:
    texts = {sent.text for record in records for sent in record.images}
    contents = {text: content for text in texts if (content := content_of(text))}
    distinct = set(contents.values())
    if not distinct or not volumes.fits(organization, sum(map(len, distinct))):
        return
    ordered = list(distinct)
    identities = ObjectStore(STORAGE, organization).put_many(ordered)
    ids = dict(zip(ordered, (one.sha256 for one in identities), strict=True))
    LoggedImage.objects.bulk_create(
        _rows(records, contents, ids),
        update_conflicts=True,
        unique_fields=["deployment", "sha256"],
        update_fields=["at"],
    )
    for record in records:
        for sent in record.images:
            if content := contents.get(sent.text):
                record.instances[sent.position][sent.name] = STORED + ids[content]
        record.images = ()


def _rows(records: list[WithImages], contents: dict[str, bytes], ids: dict[bytes, str]) -> list[LoggedImage]:
    """One for an image of a deployment, as of its newest record."""
    found: dict[tuple[UUID, bytes], datetime] = {}
    for record in records:
        for sent in record.images:
            if content := contents.get(sent.text):
                found[record.deployment_id, content] = record.at
    rows = [
        LoggedImage(deployment_id=deployment, sha256=ids[content], size=len(content), at=at)
        for (deployment, content), at in found.items()
    ]
    return sorted(rows, key=lambda row: (str(row.deployment_id), row.sha256))


def content_of(text: str) -> bytes | None:
    """The bytes that were sent; None for what is no base64."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True) or None
    except ValueError:
        return None


class Volumes:
    """Bytes of the images that each organization has in its log. Counted now and then, for that looks at a row of each image, and
    reckoned on in between. For one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[UUID, tuple[float, int]] = {}

    def fits(self, organization: UUID, size: int) -> bool:
        """Whether so many bytes more are within `PREDICTION_LOG_IMAGE_MB`; then they are reckoned with."""
        limit = settings.PREDICTION_LOG_IMAGE_MB * MEGABYTE
        counted, used = self._known.get(organization, (-math.inf, 0))
        age = time.monotonic() - counted
        if age > COUNT_SECONDS or (
            used + size > limit and age > DOUBT_SECONDS
        ):  # what was there already was reckoned too
            counted, used = time.monotonic(), _used(organization)
        fits: bool = used + size <= limit
        if not fits:
            logger.warning("images of the prediction log are not kept: PREDICTION_LOG_IMAGE_MB is reached")
        self._known[organization] = (counted, used + size * fits)
        return fits


def _used(organization: UUID) -> int:
    rows = LoggedImage.objects.filter(deployment__organization=organization)
    return rows.aggregate(bytes=Sum("size"))["bytes"] or 0


volumes = Volumes()


def reachable_objects(organization: UUID) -> set[str]:
    """The ids that records of the organization's deployments name."""
    return set(LoggedImage.objects.filter(deployment__organization=organization).values_list("sha256", flat=True))


def named_in(deployment: UUID, instances: Collection[dict[str, Any]]) -> set[str]:
    """The ids of the images in the rows of a record. Only of what was kept for this deployment: a text may say `object:…` too,
    and would open any object of the organization."""
    values = (value for row in instances for value in row.values() if isinstance(value, str))
    named = {value.removeprefix(STORED) for value in values if value.startswith(STORED)}
    kept = LoggedImage.objects.filter(deployment=deployment, sha256__in=[one for one in named if len(one) == 64])
    return set(kept.values_list("sha256", flat=True))


def read(organization: UUID, sha256: str) -> bytes:
    """Raises MissingObject, CorruptObject."""
    return ObjectStore(STORAGE, organization).read(sha256)
