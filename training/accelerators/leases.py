"""Which run, or trial of one, computes on which GPU.

A lease belongs to one claim of a run or preflight: it is worth as much as that job's own lease, and ends with it without
anybody having to give it back. A run that has to wait for devices lets no later run pass that would take them away from it; a
trial takes what is idle for its seconds, or none.
"""

from datetime import timedelta

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Count, F, Q, QuerySet
from django.db.models.functions import Now

from dlplatform import jobs

from ..models import Accelerator, Preflight, Run
from .devices import Device, devices

REMEMBERED = timedelta(days=1)


class TooFew(Exception):
    """No machine that was seen lately has as many devices as the run asks for, or has them idle for a trial of it.
    ``args``: asked for, the most there are."""


def wanted(run: Run | Preflight) -> int:
    """How many devices a run, or a trial of it, computes on where there are any."""
    asked = run.config.get("devices")
    return asked if isinstance(asked, int) else 1


def hold(run: Run) -> list[str] | None:
    """UUIDs of as many idle devices as the run asks for, held for this claim of it; None when it has to wait.

    An empty list where the machine has none: the run then computes on the processor. Raises TooFew.
    """
    there = devices()
    if not there:
        _here().delete()
        return []
    with transaction.atomic():
        _one_at_a_time()
        _remember(there)
        asked, most = wanted(run), _most_of_any_machine()
        if asked > most:
            raise TooFew(asked, most)
        idle = _idle(there)
        if len(idle) < asked or _another_waits(run, len(there)):
            return None
        Run.objects.filter(pk=run.pk).update(waits_for=None)
        return _taken(idle[:asked], run=run, lease_epoch=run.lease_epoch)


def hold_for_trial(preflight: Preflight) -> list[str]:
    """As `hold`, for a preflight, which waits for nobody. Raises TooFew when not as many devices are idle."""
    there = devices()
    if not there:
        return []
    with transaction.atomic():
        _one_at_a_time()
        _remember(there)
        idle, asked = _idle(there), wanted(preflight)
        if len(idle) < asked:
            raise TooFew(asked, len(idle))
        return _taken(idle[:asked], preflight=preflight, lease_epoch=preflight.lease_epoch)


def _taken(
    chosen: list[Device], *, run: Run | None = None, preflight: Preflight | None = None, lease_epoch: int
) -> list[str]:
    uuids = [device.uuid for device in chosen]
    _here().filter(uuid__in=uuids).update(run=run, preflight=preflight, lease_epoch=lease_epoch)
    return uuids


def give_back(holder: Run | Preflight) -> None:
    """Free what this claim holds of this machine, and have those runs look again that wait for devices."""
    held = {"run" if isinstance(holder, Run) else "preflight": holder}
    with transaction.atomic():
        _one_at_a_time()
        freed = _here().filter(lease_epoch=holder.lease_epoch, **held).update(run=None, preflight=None)
    if freed:
        waiting = Run.objects.filter(state=Run.State.QUEUED, waits_for__isnull=False)
        waiting.update(not_before=None)
        for other in waiting.order_by("queued_at"):
            jobs.wake(other)


def _here() -> QuerySet[Accelerator]:
    return Accelerator.objects.filter(host=settings.NODE_NAME)


def _one_at_a_time() -> None:
    """Workers of a machine choose one after the other."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"accelerators of {settings.NODE_NAME}"]
        )


def _remember(there: list[Device]) -> None:
    """What the machine has now; a device that is gone is forgotten."""
    host = settings.NODE_NAME
    _here().exclude(uuid__in=[device.uuid for device in there]).delete()
    Accelerator.objects.bulk_create(
        [
            Accelerator(host=host, uuid=device.uuid, name=device.name[:120], memory_bytes=device.memory, seen_at=Now())
            for device in there
        ],
        update_conflicts=True, unique_fields=["host", "uuid"], update_fields=["name", "memory_bytes", "seen_at"],
    )  # fmt: skip


def _most_of_any_machine() -> int:
    seen = Accelerator.objects.filter(seen_at__gte=Now() - REMEMBERED)
    return max(seen.values("host").annotate(count=Count("pk")).values_list("count", flat=True), default=0)


def _idle(there: list[Device]) -> list[Device]:
    """Neither held by a living claim nor used by any program."""
    living = Q(run__state__in=Run.HELD, run__lease_epoch=F("lease_epoch"))
    living |= Q(preflight__state__in=Preflight.HELD, preflight__lease_epoch=F("lease_epoch"))
    held = set(_here().filter(living).values_list("uuid", flat=True))
    return [device for device in there if not device.busy and device.uuid not in held]


def _another_waits(run: Run, count: int) -> bool:
    """Whether an older run waits for devices that this machine could give it."""
    older = Run.objects.filter(state=Run.State.QUEUED, waits_for__lte=count, queued_at__lt=run.queued_at)
    return older.exclude(pk=run.pk).exists()
