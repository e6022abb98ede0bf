"""Dynamic batching: requests that wait for the same model are run together.

Nothing waits for a batch to fill. While the one thread that runs torch is busy, requests gather; when it is free, it takes
all that wait for one model, up to a number of rows. So a lone request is run at once, and batches grow with the load.
"""

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
    """Rows that somebody asks. ``answer`` is a future of threads or of an event loop; ``asked`` by `time.monotonic`."""

    rows: Rows
    asked: float
    answer: Any = field(default_factory=Future)


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
        self._queues: dict[UUID, deque[Request]] = {}
        self._waiting = 0
        self._lock = threading.Lock()

    def ask(self, version: UUID, rows: Rows) -> "Future[Rows]":
        """The answer to come, or the error of the model. Raises Overloaded when the queue is full."""
        request = Request(rows, time.monotonic())
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise Overloaded
            self._waiting += 1
            self._queues.setdefault(version, deque()).append(request)
        # One turn for each request: a turn that finds its request answered in an earlier batch does nothing.
        self._thread.submit(self._turn, version)
        return request.answer

    @property
    def waiting(self) -> int:
        """Requests that have not been begun."""
        return self._waiting

    def _turn(self, version: UUID) -> None:
        batch = self._taken(version)
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
        """Those that wait for a version, up to so many rows, without who has gone or waited too long."""
        taken: list[Request] = []
        rows = 0
        with self._lock:
            queue = self._queues.get(version, deque())
            while queue and (not taken or rows + len(queue[0].rows) <= MOST_ROWS):
                taken.append(queue.popleft())
                rows += len(taken[-1].rows)
            self._waiting -= len(taken)
            if not queue:
                self._queues.pop(version, None)
        return [request for request in taken if _in_time(request)]


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
