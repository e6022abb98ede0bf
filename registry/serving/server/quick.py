"""Models so small that another thread would cost more than they do: the event loop runs them itself.

What arrived in one turn of the loop is run together, so batches grow with the load here too. Between threads an answer
changes hands twice, and each small operation of torch lets go of Python's lock and waits to get it back from the thread
that reads requests: measured, that is most of the time of a small model under load.

Where one turn after the other brought a single request, there is nothing to wait for: the next one is run as it comes.
Small models of images are run so when they are asked by one caller alone; under load the thread, which decodes and computes
beside the loop, answers more of them.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from registry.serving.batching import Predicting, Request, Rows, run_together

LONELY_TURNS = 16  # in a row, after which a request that comes alone is expected to be alone


class Quick:
    """``observe``: see `registry.serving.batching.Batches`. All of it happens in the event loop."""

    def __init__(self, observe: Callable[[int, float], None]) -> None:
        self._observe = observe
        self._waiting: dict[UUID, list[Request]] = {}
        self._came = 0  # requests, in this turn of the loop
        self._lonely = 0  # turns in a row with one, while no thread had any
        self._elsewhere = 0  # requests that wait for threads
        self._crowded = False  # whether there were any when the first of this turn came

    async def ask(self, version: UUID, predictor: Predicting, rows: Rows, at_once: int) -> Rows:
        """The answer. ``at_once``: how many rows may hold up the loop; those of one request are not parted. Raises what
        predicting does."""
        if self.alone():
            return self.run(predictor, rows)
        return await self._with_others(version, predictor, rows, at_once)

    def alone(self) -> bool:
        """To be told once of a request that came; whether no other is to be expected beside it."""
        if not self._came:
            self._crowded = self._elsewhere > 0
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._came += 1
        return self._came == 1 and self._lonely >= LONELY_TURNS and not self._crowded

    def run(self, predictor: Predicting, rows: Rows) -> Rows:
        """The answer, now. Raises what predicting does."""
        self._observe(len(rows), 0.0)
        return predictor.predict(rows)

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """While a thread has a request."""
        self._elsewhere += 1
        try:
            yield
        finally:
            self._elsewhere -= 1

    def _end_turn(self) -> None:
        self._lonely = self._lonely + 1 if self._came == 1 and not self._crowded else 0
        self._came = 0

    def _with_others(self, version: UUID, predictor: Predicting, rows: Rows, at_once: int) -> "asyncio.Future[Rows]":
        loop = asyncio.get_running_loop()
        request = Request(rows, time.monotonic(), loop.create_future())
        waiting = self._waiting.setdefault(version, [])
        waiting.append(request)
        if len(waiting) == 1:
            loop.call_soon(self._turn, version, predictor, at_once)
        return request.answer  # type: ignore[no-any-return]

    def _turn(self, version: UUID, predictor: Predicting, at_once: int) -> None:
        """Run what has come, up to so many rows; the rest after what else the loop has to do."""
        waiting = self._waiting.pop(version)
        batch: list[Request] = []
        count = 0
        while waiting and (not batch or count + len(waiting[0].rows) <= at_once):
            request = waiting.pop(0)
            if not request.answer.cancelled():
                batch.append(request)
                count += len(request.rows)
        if waiting:
            self._waiting[version] = waiting
            asyncio.get_running_loop().call_soon(self._turn, version, predictor, at_once)
        if batch:
            self._observe(count, time.monotonic() - batch[0].asked)
            run_together(predictor, batch)
