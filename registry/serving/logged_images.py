"""Images of the prediction log: bytes in the object store, each once in an organization, as long as a record names them.

They wait with their records for the writer, off the path of the request. An image that cannot be kept (the store fails, the
limits of memory or volume are reached) stays in its row as the SHA-256 of its text; its record is written all the same.
"""

import base64
import logging
from collections.abc import Collection, Iterable
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

logger = logging.getLogger(__name__)


class WithImages(Protocol):
    """What is kept here of a record on its way, see `prediction_log.Entry`."""

    deployment_id: UUID
    organization_id: UUID | None
    instances: list[dict[str, Any]]
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
    contents = {id(sent): content_of(sent.text) for record in records for sent in record.images}
    distinct = {content for content in contents.values() if content}
    if not distinct or not _room(organization, sum(map(len, distinct))):
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
            if content := contents[id(sent)]:
                record.instances[sent.position][sent.name] = STORED + ids[content]
        record.images = ()


def _rows(records: list[WithImages], contents: dict[int, bytes | None], ids: dict[bytes, str]) -> list[LoggedImage]:
    """One for an image of a deployment, as of its newest record."""
    found: dict[tuple[UUID, str], LoggedImage] = {}
    for record in records:
        for sent in record.images:
            if content := contents[id(sent)]:
                place = (record.deployment_id, ids[content])
                found[place] = LoggedImage(
                    deployment_id=record.deployment_id, sha256=ids[content], size=len(content), at=record.at
                )
    return [found[place] for place in sorted(found, key=str)]


def content_of(text: str) -> bytes | None:
    """The bytes that were sent; None for what is no base64."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True) or None
    except ValueError:
        return None


def _room(organization: UUID, size: int) -> bool:
    """Whether so many bytes more are within `PREDICTION_LOG_IMAGE_MB`."""
    rows = LoggedImage.objects.filter(deployment__organization=organization)
    used = rows.aggregate(bytes=Sum("size"))["bytes"] or 0
    fits: bool = used + size <= settings.PREDICTION_LOG_IMAGE_MB * MEGABYTE
    if not fits:
        logger.warning("images of the prediction log are not kept: PREDICTION_LOG_IMAGE_MB is reached")
    return fits


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
