"""Questions to the index, and its one way of growing: rows of a batch, all or none."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from .models import StoredObject

COMPOSITE = StoredObject.Codec.COMPOSITE

# What the objects in `seeds` need: themselves, parts, bases, parts' bases.
CLOSURE = """
    WITH RECURSIVE needed (sha256) AS (
        {seeds}
        UNION
        SELECT reference.sha256
        FROM needed
        JOIN objects_storedobject AS row
          ON row.sha256 = needed.sha256 AND row.storage = %(storage)s AND row.organization = %(organization)s
        CROSS JOIN LATERAL (
            SELECT row.base::text WHERE row.base <> ''
            UNION ALL
            SELECT part ->> 0 FROM jsonb_array_elements(row.parts) AS part
        ) AS reference (sha256)
    )
"""

ROWS_NEEDED = """
    SELECT row.* FROM objects_storedobject AS row JOIN needed USING (sha256)
    WHERE row.storage = %(storage)s AND row.organization = %(organization)s
"""


class Superseded(Exception):
    """An object that a batch relied on is gone or was stored otherwise meanwhile; the batch is to be made anew."""


@dataclass(frozen=True)
class Scope:
    """The objects of one organization in one of the configured storages."""

    storage: str
    organization: UUID

    @property
    def prefix(self) -> str:
        return self.organization.hex

    @property
    def rows(self) -> "QuerySet[StoredObject]":
        return StoredObject.objects.filter(storage=self.storage, organization=self.organization)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"storage": self.storage, "organization": self.organization}

    @property
    def lock(self) -> int:
        """Number of the advisory lock that writers share and the collection holds alone."""
        digest = hashlib.sha256(f"objects/{self.storage}/{self.prefix}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


@contextmanager
def database_turn() -> Iterator[None]:
    """Give back a connection that was opened in here.

    Files are received and sent in threads of a pool, where no end of a request would ever do that.
    """
    was_open = connection.connection is not None
    try:
        yield
    finally:
        if not was_open and not connection.in_atomic_block:
            connection.close()


def find(scope: Scope, ids: Collection[str]) -> dict[str, StoredObject]:
    """The rows of those of the objects that are known."""
    with database_turn():
        return {row.sha256: row for row in scope.rows.filter(sha256__in=list(ids))} if ids else {}


def with_all_it_needs(scope: Scope, sha256: str) -> dict[str, StoredObject]:
    """The rows of an object, of its parts, and of every base below them; empty when there is no such object."""
    query = CLOSURE.format(seeds="SELECT %(sha256)s::text") + ROWS_NEEDED
    with database_turn():
        found = StoredObject.objects.raw(query, {"sha256": sha256, **scope.parameters})
        return {row.sha256: row for row in found}


def add(scope: Scope, rows: Iterable[StoredObject], relied_on: Collection[str]) -> list[StoredObject]:
    """Insert the rows of durable files in one transaction; those that another writer had inserted before are returned.

    ``relied_on`` are the objects that were there already: they are touched, and brought back when condemned.
    Raises Superseded, and then nothing was inserted.
    """
    ordered = sorted(rows, key=lambda row: row.sha256)  # two writers of the same objects wait, and never in a circle
    with database_turn(), transaction.atomic():
        _share_lock(scope)
        _touch(scope, relied_on)
        StoredObject.objects.bulk_create(ordered, ignore_conflicts=True, batch_size=1000)
        return _beaten(scope, ordered)


def touch(scope: Scope, ids: Collection[str]) -> None:
    """Say that the objects are wanted again. Raises Superseded when one of them is gone."""
    with database_turn(), transaction.atomic():
        _share_lock(scope)
        _touch(scope, ids)


def _share_lock(scope: Scope) -> None:
    """Nothing is condemned or swept until this transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [scope.lock])


def _touch(scope: Scope, ids: Collection[str]) -> None:
    found = scope.rows.filter(sha256__in=list(ids)).order_by("sha256")
    locked = list(found.select_for_update(no_key=True).values_list("pk", flat=True)) if ids else []
    if len(locked) != len(set(ids)):
        raise Superseded
    StoredObject.objects.filter(pk__in=locked).update(touched_at=timezone.now(), condemned_at=None)


def _beaten(scope: Scope, rows: Sequence[StoredObject]) -> list[StoredObject]:
    """Those of the rows whose place another writer took with a file of its own."""
    kept = {row.sha256: row for row in scope.rows.filter(sha256__in=[row.sha256 for row in rows])}
    parts = {sha256 for row in rows for sha256, _ in row.parts}
    if any(row.codec == COMPOSITE for row in kept.values() if row.sha256 in parts):
        raise Superseded  # parts are leaves, and this one has become a file of its own meanwhile
    return [row for row in rows if kept[row.sha256].file != row.file]
