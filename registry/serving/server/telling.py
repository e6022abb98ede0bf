"""Tells the pages what this process does with the versions that it holds, again and again, beside the requests."""

import asyncio
import logging
import threading
from uuid import uuid4

import redis

from registry.serving import processes
from registry.serving.processes import Said

from .models import Models

logger = logging.getLogger(__name__)


class Telling:
    """What the pages hear of one process."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._name = uuid4().hex
        self._away = False
        self._lock = threading.Lock()  # between the last word of a thread, which cannot be cancelled, and the end
        self._ended = False

    async def follow(self) -> None:
        """Tell every second, until it is cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.tell)
            except Exception:  # whatever it is, the next word may go through, and requests are answered meanwhile
                logger.exception("the pages could not be told of this inference process")
            await asyncio.sleep(processes.TELL_SECONDS)

    def tell(self) -> None:
        """Without Valkey the pages hear nothing, and the log of the process says so once."""
        runtimes = {str(version): str(each) for version, each in self._models.compiling.told.items()}
        resting = {str(version): each for version, each in self._models.rests.told().items()}
        try:
            with self._lock:
                if not self._ended:
                    processes.tell(self._name, Said(runtimes, resting))
        except (redis.RedisError, OSError) as error:
            if not self._away:
                logger.warning("Valkey does not answer, the pages are not told of this inference process: %s", error)
            self._away = True
        else:
            self._away = False

    def end(self) -> None:
        """At the end of a process in good order; of one that is killed nothing is heard after some seconds."""
        try:
            with self._lock:
                self._ended = True
                processes.withdraw(self._name)
        except (redis.RedisError, OSError) as error:
            logger.info("nobody could be told that this inference process ends: %s", error)
