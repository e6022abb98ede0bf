"""A machine's side of a run that another one leads: make the job directory, say so, train, leave when sent away."""

import shutil
import signal
import time
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.db import connection as database

from dlplatform.engine.nodes import Group
from dlplatform.jobs import LeaseLost
from dlplatform.objects.store import CorruptObject, MissingObject

from .. import states
from ..accelerators import leases
from ..confined import read_plain
from ..connection import OUTPUT_FILE, LocalConnection
from ..job_directories import node_directory
from ..models import Node
from ..preparing import prepare
from .gathering import STOPPING, wanted
from .machines import own_address

RENEW_SECONDS = 1.0
POLL_SECONDS = 0.1
DEVICES_SECONDS = 1.0
LAST_WORDS = 500


class Dismissed(Exception):
    """The group is not needed any more, or this worker is to end before it trains."""


class Joining:
    """Works on one claimed node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.run = node.run
        self.directory = node_directory(node)
        self.connection = LocalConnection()
        self.draining = False
        self._told = False
        self._renewed = float("-inf")

    def work(self) -> None:
        """From the claim to the end. Never leaves an engine behind."""
        signal.signal(signal.SIGTERM, self._drain)
        try:
            self._beat()
            devices = self._hold()
            prepare(self.run, self.directory, lambda _count: self._beat())
            self.node.write(state="ready")
            self._meet().write(self.directory)
            self.connection.start(self.directory, devices)
            self.node.write(state="running")
            self._conclude(self._follow())
        except Dismissed:
            self._leave()
        except leases.TooFew as few:
            self._fail(states.failure("too_few_accelerators", asked=few.args[0], most=few.args[1]))
        except (MissingObject, CorruptObject) as error:
            self._fail(states.failure("data_unavailable", reason=error))
        except (LeaseLost, OperationalError, InterfaceError):
            return  # the leader notices that nothing is heard of us
        finally:
            self.connection.kill()
            leases.give_back(self.run)

    def _drain(self, _signal: int, _frame: Any) -> None:
        self.draining = True

    def _hold(self) -> list[str]:
        """Devices of this machine for the run, waited for."""
        while (held := leases.hold(self.run)) is None:
            self._beat()
            time.sleep(DEVICES_SECONDS)
        return held

    def _meet(self) -> Group:
        """Where the leader listens, once all are ready."""
        while True:
            self._beat()
            self.node.refresh_from_db(fields=["meeting"])
            if self.node.meeting:
                return Group(
                    **self.node.meeting, nodes=wanted(self.run), node=self.node.rank, own_address=own_address()
                )
            time.sleep(POLL_SECONDS)

    def _follow(self) -> int:
        while (code := self.connection.poll()) is None:
            try:
                self._beat(starting=False)
            except (OperationalError, InterfaceError):
                database.close()  # the engine goes on without it; the leader decides whether we are missed
            time.sleep(POLL_SECONDS)
        return code

    def _beat(self, starting: bool = True) -> None:
        """Keep the lease. Raises Dismissed when the leader sends us away, or its claim is over."""
        if self.draining:
            self._pass_on(starting)
        if time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        self._renewed = time.monotonic()
        if self.node.renew() or not Node.objects.of_living_runs().filter(pk=self.node.pk).exists():
            raise Dismissed

    def _pass_on(self, starting: bool) -> None:
        """This worker is to end. While the group trains, all of it has to stop, after a checkpoint of the leader."""
        if starting:
            raise Dismissed
        if not self._told:
            self._told = True
            self.node.write(error=states.failure(STOPPING, host=settings.NODE_NAME))
            self.connection.interrupt()

    def _conclude(self, code: int) -> None:
        if code == 0:
            self.node.finish("succeeded")
            shutil.rmtree(self.directory, ignore_errors=True)
        elif not self._told:
            words = read_plain(self.directory / OUTPUT_FILE, LAST_WORDS).strip()
            self._fail(states.failure("machine_failed", host=self.node.host, how=f"code {code}", words=words))
        else:
            self.node.finish("cancelled")

    def _leave(self) -> None:
        """Sent away, or about to end: in either case the leader needs no reason but the row."""
        self.connection.kill()
        state, error = (
            ("failed", states.failure(STOPPING, host=self.node.host)) if self.draining else ("cancelled", None)
        )
        self.node.finish(state, error=error)

    def _fail(self, error: dict[str, str]) -> None:
        self.node.finish("failed", error=error)
