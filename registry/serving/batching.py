"""Dynamic batching: requests that wait for the same model are run together.

Nothing waits for a batch to fill. While the one thread that runs torch is busy, requests gather; when it is free, it takes
all that wait for one model, up to a number of rows. So a lone request is run at once, and batches grow with the load.

Whoever asks from an event loop is answered through it: what a batch answers wakes it once.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from dlplatform.engine.errors import PredictionInputError

Rows = list[dict[str, Any]]

MOST_ROWS = 1024
MOST_WAITING = 256
SECONDS = 25.0  # less than the web process waits


class Overloaded(Exception):
    """Too many requests wait already, or this one has waited too long: it was not run."""


class Predicting(Protocol):
    """What batches are run by. ``writer`` is None unless the model writes texts, one after the other anyway."""

    writer: Any

    def predict(self, instances: Rows, /) -> Rows: ...


@dataclass
class Request:
    """Rows that somebody asks. ``answer`` is a future of threads, a `LoopAnswer`, or a future of an event loop where that
    runs the model itself; ``asked`` by `time.monotonic`."""

    rows: Rows
    asked: float
    answer: Any = field(default_factory=Future)


@dataclass(eq=False)
class _Batch:
    """Requests that are run in one turn, with as many rows together."""

    requests: list[Request]
    rows: int

    def takes(self, request: Request) -> bool:
        """Whether it has room for this one, which it then has."""
        if self.rows + len(request.rows) > MOST_ROWS:
            return False
        self.requests.append(request)
        self.rows += len(request.rows)
        return True


class Deliveries:
    """Answers on their way from threads to an event loop, which is woken once for all that have come by then."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._come: deque[tuple[asyncio.Future[Rows], Rows | None, Exception | None]] = deque()
        self._woken = False

    def put(self, waiting: "asyncio.Future[Rows]", answer: Rows | None, error: Exception | None) -> None:
        """From any thread."""
        self._come.append((waiting, answer, error))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # before the first is taken: what comes from now on wakes the loop again
        while self._come:
            waiting, answer, error = self._come.popleft()
            if waiting.done():  # nobody waits any more
                continue
            if error is not None:
                waiting.set_exception(error)
            else:
                waiting.set_result(answer or [])


class LoopAnswer:
    """What a thread sees of somebody who waits in an event loop: as much of a future as `Batches` uses. A future of threads
    and its twin in the loop cost, with their locks, more than a small model."""

    __slots__ = ("_deliveries", "waiting")

    def __init__(self, deliveries: Deliveries, waiting: "asyncio.Future[Rows]") -> None:
        self._deliveries = deliveries
        self.waiting = waiting

    def set_running_or_notify_cancel(self) -> bool:
        """Whether somebody still waits."""
        return not self.waiting.cancelled()

    def set_result(self, answer: Rows) -> None:
        self._deliveries.put(self.waiting, answer, None)

    def set_exception(self, error: Exception) -> None:
        self._deliveries.put(self.waiting, None, error)


class Batches:
    """Queues by version in front of one thread. ``together`` says of a predictor whether its requests may be joined."""

    def __init__(
        self,
        thread: Executor,
        predictor_of: Callable[[UUID], Predicting],
        together: Callable[[Any], bool] = lambda predictor: predictor.writer is None,
        observe: Callable[[int, float], None] = lambda rows, waited: None,
    ) -> None:
        """``observe`` is told of everything that is run: how many rows at once, and how long the first of them waited,
        in seconds."""
        self._thread = thread
        self._observe = observe
        self._predictor_of = predictor_of
        self._together = together
        self._queues: dict[UUID, deque[_Batch]] = {}
        self._waiting = 0
        self._lock = threading.Lock()
        self._deliveries: Deliveries | None = None

    def ask(self, version: UUID, rows: Rows) -> "Future[Rows]":
        """The answer to come, or the error of the model. Raises Overloaded when the queue is full."""
        request = Request(rows, time.monotonic())
        self._add(version, request)
        return request.answer  # type: ignore[no-any-return]

    def ask_in_loop(self, version: UUID, rows: Rows) -> "asyncio.Future[Rows]":
        """As `ask`, for the event loop that calls; always the same one."""
        loop = asyncio.get_running_loop()
        if self._deliveries is None:
            self._deliveries = Deliveries(loop)
        waiting: asyncio.Future[Rows] = loop.create_future()
        self._add(version, Request(rows, time.monotonic(), LoopAnswer(self._deliveries, waiting)))
        return waiting

    def _add(self, version: UUID, request: Request) -> None:
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise Overloaded
            self._waiting += 1
            queue = self._queues.setdefault(version, deque())
            if queue and queue[-1].takes(request):  # whose turn will come
                return
            batch = _Batch([request], len(request.rows))
            queue.append(batch)
        try:
            self._thread.submit(self._turn, version)
        except RuntimeError:  # the thread has ended: so no turn will come
            self._forget(version, batch)
            raise

    def _forget(self, version: UUID, batch: "_Batch") -> None:
        with self._lock:
            self._queues[version].remove(batch)
            self._waiting -= len(batch.requests)

    @property
    def waiting(self) -> int:
        """Requests that have not been begun."""
        return self._waiting

    def _turn(self, version: UUID) -> None:
        """Run one batch: what comes meanwhile has a turn of its own, behind those of others."""
        batch = [request for request in self._taken(version) if _in_time(request)]
        if not batch:
            return
        self._observe(sum(len(request.rows) for request in batch), time.monotonic() - batch[0].asked)
        try:
            predictor = self._predictor_of(version)
        except Exception as error:
            for request in batch:
                request.answer.set_exception(error)
            return
        if self._together(predictor):
            run_together(predictor, batch)
        else:
            for request in batch:
                _run(predictor, request)

    def _taken(self, version: UUID) -> list[Request]:
        """The oldest batch of a version."""
        with self._lock:
            queue = self._queues[version]
            taken = queue.popleft().requests
            self._waiting -= len(taken)
            if not queue:
                del self._queues[version]
        return taken


def run_together(predictor: Predicting, requests: list[Request]) -> None:
    """Answer all at once; where a row is refused, each alone, so that only its own sender hears of it."""
    if len(requests) == 1:
        return _run(predictor, requests[0])
    try:
        answers = predictor.predict([row for request in requests for row in request.rows])
    except PredictionInputError:
        for request in requests:
            _run(predictor, request)
    except Exception as error:
        for request in requests:
            request.answer.set_exception(error)
    else:
        begin = 0
        for request in requests:
            request.answer.set_result(answers[begin : begin + len(request.rows)])
            begin += len(request.rows)
    return None


def _in_time(request: Request) -> bool:
    if not request.answer.set_running_or_notify_cancel():
        return False
    if time.monotonic() > request.asked + SECONDS:
        request.answer.set_exception(Overloaded())
        return False
    return True


def _run(predictor: Predicting, request: Request) -> None:
    try:
        request.answer.set_result(predictor.predict(request.rows))
    except Exception as error:
        request.answer.set_exception(error)
