"""The time between deleting something and freeing its bytes, in which it can be brought back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.utils import timezone

from .errors import MissingObject
from .store import ObjectStore


@dataclass(frozen=True)
class Preview:
    """What deleting would do: stored bytes that go, versions that lose their files, what stands against it."""

    bytes: int
    versions: int
    obstacles: Sequence[str] = ()


def grace() -> timedelta:
    return timedelta(days=settings.OBJECT_GRACE_DAYS)


def undoable_until(deleted_at: datetime) -> datetime:
    return deleted_at + grace()


def bring_back(storage: str, organization: UUID, ids: Iterable[str], deleted_at: datetime) -> None:
    """Keep what was deleted then. Raises MissingObject once the time is over or an object is gone."""
    if timezone.now() >= undoable_until(deleted_at):
        raise MissingObject("the time to bring it back is over")
    ObjectStore(storage, organization).revive(ids)
