"""The leader's side of a run on several machines: ask others, wait until all are ready, notice who is lost.

Machines are asked by rows (`Node`) that belong to one claim of the run. One group gathers at a time, so that two cannot
each hold half of the workers that both need.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import redis
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from dlplatform import jobs
from dlplatform.engine.nodes import Group, free_port

from ..models import Node, Run
from .machines import machines, own_address

PATIENCE = 60.0
LOOK_SECONDS = 0.1
WATCH_SECONDS = 1.0
WAKE_SECONDS = 5.0
UNANSWERED = timedelta(minutes=10)
STOPPING = "worker_stopping"


class TooFewMachines(Exception):
    """Not now: there are fewer machines with workers, they are busy, or another group gathers. ``str()``: which."""


def wanted(run: Run) -> int:
    """How many machines a run trains on."""
    asked = run.config.get("nodes", 1)
    return asked if isinstance(asked, int) else 1


class Gathering:
    """The other machines of one claim of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._looked = self._woken = time.monotonic()

    def ask(self) -> None:
        """Ask as many other machines as the run needs. Raises TooFewMachines."""
        hosts = self._hosts()
        with transaction.atomic():
            _one_at_a_time()
            if Node.objects.gathering().exclude(run=self.run).exists():
                raise TooFewMachines("another run gathers its machines")
            Node.objects.bulk_create(
                Node(run=self.run, run_epoch=self.run.lease_epoch, rank=rank, host=host)
                for rank, host in enumerate(hosts, start=1)
            )
        self._wake()

    def wait(self, beat: Callable[[], Any]) -> Group:
        """Until all are ready; where and as whom this machine meets them. Raises TooFewMachines; ``beat`` may raise."""
        deadline = time.monotonic() + PATIENCE
        self.run.write(phase=f"waiting for {', '.join(self._unready())}"[:60])
        while not self._all_ready():
            beat()
            if reason := self.lost():
                raise TooFewMachines(reason)
            if time.monotonic() > deadline:
                raise TooFewMachines(f"{', '.join(self._unready())} did not become ready")
            if time.monotonic() - self._woken > WAKE_SECONDS:
                self._wake()
            time.sleep(LOOK_SECONDS)
        return self._meet()

    def hosts(self) -> list[str]:
        """The other machines by name."""
        return list(self._rows().order_by("rank").values_list("host", flat=True))

    def lost(self) -> str | None:
        """Why the group cannot go on: a machine failed, or is heard of no more."""
        gone = self._rows().filter(Q(state="failed") | Q(state__in=Node.HELD, lease_expires_at__lt=Now())).first()
        if gone is None:
            return None
        return f"{gone.host}: {gone.error['sentence']}" if gone.error else f"{gone.host} is heard of no more"

    def watch(self) -> str | None:
        """`lost`, looked at once a second."""
        if time.monotonic() - self._looked < WATCH_SECONDS:
            return None
        self._looked = time.monotonic()
        return self.lost()

    def stopping(self) -> bool:
        """Whether a machine asked all to stop because its worker is to end."""
        return self._rows().filter(error__code=STOPPING).exists()

    def dissolve(self) -> None:
        """Send all machines away: those that work on it at once, those that have not begun for good."""
        rows = self._rows()
        rows.filter(state=Node.QUEUED).update(state="cancelled", finished_at=Now())
        rows.filter(state__in=Node.HELD).update(cancel_requested_at=Now())

    # --- within ---------------------------------------------------------------------------------------

    def _rows(self) -> Any:
        return Node.objects.filter(run=self.run, run_epoch=self.run.lease_epoch)

    def _hosts(self) -> list[str]:
        """Other machines: those with idle workers first, those that did not answer lately last. Raises TooFewMachines."""
        needed = wanted(self.run) - 1
        try:
            known = machines()
        except (redis.RedisError, OSError):
            raise TooFewMachines("Redis is away") from None
        known.pop(settings.NODE_NAME, None)
        if len(known) < needed:
            raise TooFewMachines(f"{len(known) + 1} of {needed + 1} machines have workers")
        silent = set(
            Node.objects.filter(
                state="cancelled", started_at=None, queued_at__gt=Now() - UNANSWERED, host__in=known
            ).values_list("host", flat=True)
        )
        return sorted(known, key=lambda host: (host in silent, -known[host], host))[:needed]

    def _wake(self) -> None:
        self._woken = time.monotonic()
        for node in self._rows().filter(state=Node.QUEUED):
            jobs.wake(node)

    def _all_ready(self) -> bool:
        return not self._rows().exclude(state="ready").exists()

    def _unready(self) -> list[str]:
        return sorted(self._rows().exclude(state="ready").values_list("host", flat=True))

    def _meet(self) -> Group:
        address = own_address()
        name = f"{self.run.pk}-{self.run.lease_epoch}"
        group = Group(name, wanted(self.run), 0, address, free_port(address), address)
        self._rows().update(meeting={"name": name, "address": address, "port": group.port})
        return group


def end_orphans() -> int:
    """End what nobody works on any more, of runs whose claim is over: the leader that asked died before it could."""
    unheld = Q(state=Node.QUEUED) | Q(state__in=Node.HELD, lease_expires_at__lt=Now())
    living = Node.objects.of_living_runs().values("pk")
    return int(Node.objects.filter(unheld).exclude(pk__in=living).update(state="cancelled", finished_at=Now()))


def _one_at_a_time() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('gathering machines', 0))")
