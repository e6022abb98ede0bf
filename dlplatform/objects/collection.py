"""What nothing refers to any more is condemned, and swept once a grace period is over: mark and sweep.

Until it is swept an object can be read, and everything that brings it back (a put of the same bytes, ``revive``, a row
of the apps that refers to it again) keeps it. Writers share a lock that a sweep holds alone, and a sweep never takes
what a remaining object needs; so the index stays closed: parts and bases of what is in it are in it.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from django.core.files.storage import Storage, storages
from django.db import connection, transaction
from django.utils import timezone

from .index import CLOSURE, Scope
from .models import StoredObject
from .packs import PackWriter
from .storages import delete_files, files_below, modified_at, read_range, save_files
from .writing import incoming_folder

PACK = re.compile(r".*/pack-\d+\.[0-9a-f]+")
UNINDEXED = re.compile(r"[0-9a-f]{32}/[0-9a-f]{2}/([0-9a-f]{64})")
NAMES_AT_ONCE = 1000

WANTED = """
    SELECT unnest(%(ids)s::text[])
    UNION ALL
    SELECT sha256::text FROM objects_storedobject
    WHERE storage = %(storage)s AND organization = %(organization)s AND touched_at > %(cutoff)s
"""
STAYING = """
    SELECT sha256::text FROM objects_storedobject
    WHERE storage = %(storage)s AND organization = %(organization)s
      AND (condemned_at IS NULL OR condemned_at > %(cutoff)s)
"""
REVIVE = """
    UPDATE objects_storedobject AS row SET condemned_at = NULL FROM needed
    WHERE row.storage = %(storage)s AND row.organization = %(organization)s AND row.sha256 = needed.sha256
      AND row.condemned_at IS NOT NULL
"""
CONDEMN = """
    UPDATE objects_storedobject AS row SET condemned_at = %(now)s
    WHERE row.storage = %(storage)s AND row.organization = %(organization)s AND row.condemned_at IS NULL
      AND NOT EXISTS (SELECT FROM needed WHERE needed.sha256 = row.sha256)
"""
SWEEP = """
    DELETE FROM objects_storedobject AS row
    WHERE row.storage = %(storage)s AND row.organization = %(organization)s AND row.condemned_at <= %(cutoff)s
      AND NOT EXISTS (SELECT FROM needed WHERE needed.sha256 = row.sha256)
    RETURNING row.file, row.stored_size
"""
TOTAL = """
    SELECT coalesce(sum(stored_size), 0) FROM objects_storedobject AS row JOIN needed USING (sha256)
    WHERE row.storage = %(storage)s AND row.organization = %(organization)s
"""


@dataclass(frozen=True)
class Collected:
    """What one collection did. ``bytes`` are those of the swept objects, as they were stored."""

    revived: int = 0
    condemned: int = 0
    swept: int = 0
    bytes: int = 0
    files: int = 0
    packs: int = 0


def collect(
    storage: str,
    organization: UUID,
    reachable: Iterable[str],
    *,
    grace: timedelta,
    now: datetime | None = None,
) -> Collected:
    """Condemn what is out of reach, sweep what has been condemned for ``grace``, remove files that no row names.

    ``reachable`` are the ids that the apps refer to; parts and bases are found here. Whatever was put within the
    grace period counts as reachable, for its writer may not have come to referring to it. Does nothing while
    somebody writes: the next collection will.
    """
    scope, place = Scope(storage, organization), storages[storage]
    now = now or timezone.now()
    cutoff = now - grace
    _index_files_of_old(scope, place)
    found = _mark_and_sweep(scope, list(reachable), cutoff, now)
    if found is None:
        return Collected()
    revived, condemned, swept = found
    emptied = _without_rows({file for file, _ in swept if file})
    delete_files(place, emptied)
    thinned = {file for file, _ in swept if PACK.fullmatch(file)} - set(emptied)
    packs = sum(_rewrite_if_half_empty(scope, place, name) for name in sorted(thinned))
    orphans = _remove_orphans(scope, place, timezone.now() - grace)  # files bear the dates of the real clock
    freed = sum(size for _, size in swept)
    return Collected(revived, condemned, len(swept), freed, len(emptied) + orphans + packs, packs)


def bytes_freed(storage: str, organization: UUID, deleting: Iterable[str], keeping: Iterable[str]) -> int:
    """Stored bytes that would go if the first were deleted and nothing but the second were referred to.

    Their space in packs is given back when half of a pack is empty.
    """
    scope, remaining, all_of_them = Scope(storage, organization), list(keeping), list(deleting)
    return _total(scope, [*remaining, *all_of_them]) - _total(scope, remaining)


def remove_abandoned(storage: str, *, grace: timedelta, now: datetime | None = None) -> int:
    """Remove files that a writer left behind half written; how many."""
    oldest = ((now or timezone.now()) - grace).timestamp()
    removed = 0
    for path in incoming_folder(storages[storage]).glob("tmp*"):
        if _age_known(path) <= oldest:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _age_known(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


# --- rows ---------------------------------------------------------------------------------------------


def _mark_and_sweep(
    scope: Scope, reachable: list[str], cutoff: datetime, now: datetime
) -> tuple[int, int, list[tuple[str, int]]] | None:
    """Revived, condemned, and file and stored size of what was swept; None while somebody writes."""
    parameters = {**scope.parameters, "ids": reachable, "cutoff": cutoff, "now": now}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [scope.lock])
        if not cursor.fetchone()[0]:
            return None
        cursor.execute(CLOSURE.format(seeds=WANTED) + REVIVE, parameters)
        revived = cursor.rowcount
        cursor.execute(CLOSURE.format(seeds=WANTED) + CONDEMN, parameters)
        condemned = cursor.rowcount
        cursor.execute(CLOSURE.format(seeds=STAYING) + SWEEP, parameters)
        return revived, condemned, cursor.fetchall()


def _total(scope: Scope, ids: list[str]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(CLOSURE.format(seeds="SELECT unnest(%(ids)s::text[])") + TOTAL, {**scope.parameters, "ids": ids})
        return int(cursor.fetchone()[0])


def _without_rows(names: Iterable[str]) -> list[str]:
    """Those of the files that no row of any storage names: two storages may lie in one place."""
    left = sorted(names)
    alone = []
    for start in range(0, len(left), NAMES_AT_ONCE):
        some = left[start : start + NAMES_AT_ONCE]
        named = set(StoredObject.objects.filter(file__in=some).values_list("file", flat=True))
        alone += [name for name in some if name not in named]
    return alone


# --- files --------------------------------------------------------------------------------------------


def _index_files_of_old(scope: Scope, place: Storage) -> None:
    """Give rows to files that were stored under their hash before there was an index."""
    names = {match[1]: match[0] for match in map(UNINDEXED.fullmatch, files_below(place, scope.prefix)) if match}
    for name in _without_rows(names.values()):
        sha256 = name.rsplit("/", 1)[-1]
        size, moment = place.size(name), modified_at(place, name) or timezone.now()
        StoredObject.objects.bulk_create(
            [
                StoredObject(
                    storage=scope.storage, organization=scope.organization, sha256=sha256, size=size, stored_size=size,
                    codec=StoredObject.Codec.RAW, file=name, created_at=moment, touched_at=moment,
                )
            ],
            ignore_conflicts=True,
        )  # fmt: skip


def _remove_orphans(scope: Scope, place: Storage, cutoff: datetime) -> int:
    """Remove files without rows, unless they are so young that their rows may still come; how many."""
    orphans = [
        name
        for name in _without_rows(files_below(place, scope.prefix))
        if (moment := modified_at(place, name)) is not None and moment <= cutoff
    ]
    delete_files(place, orphans)
    return len(orphans)


def _rewrite_if_half_empty(scope: Scope, place: Storage, pack: str) -> bool:
    """Copy what is left of a pack into a new one when that is less than half of it."""
    rows = list(scope.rows.filter(file=pack).order_by("offset"))
    if not rows or sum(row.stored_size for row in rows) * 2 >= place.size(pack):
        return False
    token = secrets.token_hex(8)
    writer = PackWriter(incoming_folder(place), lambda number: f"{scope.prefix}/{token[:2]}/pack-{number}.{token}")
    try:
        moved = {row.pk: writer.add(read_range(place, pack, row.offset, row.stored_size)) for row in rows}
        writer.close()
        save_files(place, writer.files)
    finally:
        for path, _ in writer.files:
            path.unlink(missing_ok=True)
    with transaction.atomic():
        remaining = scope.rows.filter(file=pack).select_for_update()
        for row in remaining:
            row.file, row.offset = moved[row.pk]
        StoredObject.objects.bulk_update(remaining, ["file", "offset"], batch_size=500)
    delete_files(place, [pack, *_without_rows(name for _, name in writer.files)])
    return True
