"""`manage.py scheduler`: runs the periodic ticks. A second scheduler stands by until the first is gone."""

import logging
import signal
import time
from typing import Any

from django.core.management.base import BaseCommand
from django.db import Error, connection

logger = logging.getLogger(__name__)

LOCK = 0x444C5053  # one number for all schedulers of a database
STAND_BY_SECONDS = 2.0


class Command(BaseCommand):
    help = "Run the periodic ticks: take back lost runs, wake forgotten work, collect garbage."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stopping = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        due: dict[str, float] = {}
        while not self.stopping:
            try:
                if self._leading():
                    self._tick(due)
                    time.sleep(0.5)
                else:
                    time.sleep(STAND_BY_SECONDS)
            except Error as error:
                logger.warning("the database is away: %s", error)
                connection.close()
                time.sleep(1.0)

    def _stop(self, *_: Any) -> None:
        self.stopping = True

    def _leading(self) -> bool:
        """Hold the database's advisory lock; it goes with the connection, so a dead leader frees it."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s "
                "AND pid = pg_backend_pid())",
                [LOCK],
            )
            if cursor.fetchone()[0]:
                return True
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [LOCK])
            return bool(cursor.fetchone()[0])

    def _tick(self, due: dict[str, float]) -> None:
        from dlplatform.cron import TICKS

        for tick in TICKS:
            if time.monotonic() < due.get(tick.name, 0.0):
                continue
            due[tick.name] = time.monotonic() + tick.seconds
            result = tick.work()
            if result and (not isinstance(result, dict) or any(result.values())):
                logger.info("%s: %s", tick.name, result)
