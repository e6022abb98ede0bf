"""`manage.py worker`: workers that have imported torch before they fork, so that a run starts at once."""

import gc
import logging
import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from typing import Any

from channels.layers import get_channel_layer
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, connections
from rq.serializers import JSONSerializer

from dlplatform.jobs import PlatformWorker, connection
from dlplatform.processes import die_with_parent

logger = logging.getLogger(__name__)


class Command(BaseCommand):
    help = "Start workers: --count for training, and one more that ingests data and compares models."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--count", type=int, default=settings.MAX_WORKERS, help="Workers that train")
        parser.add_argument("--queue", action="append", help="Serve only this queue (datasets, registry, training)")

    def handle(self, *args: Any, **options: Any) -> None:
        self.stopping = False
        self.children: dict[int, list[str]] = {}
        _preload()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        queues = options["queue"] or ["training"]
        if "training" in queues:
            queues = [_queue_of_this_machine(), *queues]  # first: other machines wait for what is on it
        for _ in range(options["count"]):
            self._fork(queues)
        if not options["queue"]:
            self._fork(["datasets", "registry"])
        self._watch()

    def _stop(self, *_: Any) -> None:
        self.stopping = True
        for pid in list(self.children):
            os.kill(pid, signal.SIGTERM)

    def _fork(self, queues: list[str]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self.children[pid] = queues
            return
        code = 1
        try:
            die_with_parent(signal.SIGTERM, parent)
            _serve(queues)
            code = 0
        finally:
            os._exit(code)

    def _watch(self) -> None:
        """Replace a worker that died; end when all have ended after a request to stop."""
        while self.children:
            pid, status = os.wait()
            queues = self.children.pop(pid)
            if not self.stopping:
                logger.warning("worker %s ended (%s); starting another", pid, os.waitstatus_to_exitcode(status))
                time.sleep(0.5)
                self._fork(queues)


def _preload() -> None:
    """Everything that a run needs, once, before forking; no thread and no connection may survive the fork."""
    import registry.jobs  # noqa: F401
    import training.jobs
    from dlplatform.engine import package, run  # noqa: F401

    run.warm_up()
    get_channel_layer()
    with suppress(DatabaseError):
        training.jobs.train(str(uuid.uuid4()))  # of no run: what the first claim of a process prepares is done here
    connections.close_all()
    # What is there now is never garbage: without this, collections in the forks would copy its pages.
    gc.collect()
    gc.freeze()


def _queue_of_this_machine() -> str:
    from training.models.nodes import queue_of

    return queue_of(settings.NODE_NAME)


def _serve(queues: list[str]) -> None:
    """One RQ worker: forks for every job, so that nothing of a job stays behind."""
    logging.getLogger("rq").setLevel(logging.WARNING)
    worker = PlatformWorker(queues, connection=connection(), serializer=JSONSerializer)
    worker.work(with_scheduler=False, logging_level="WARNING")
    sys.stdout.flush()
