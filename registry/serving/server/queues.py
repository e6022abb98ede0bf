"""Queues in front of the threads that run models: one for each kind, so that none stands in another's way."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any
from uuid import UUID

from dlplatform.engine.predict import Predictor
from registry.serving.batching import Batches, Overloaded
from registry.serving.confined import ConfinedPredictor

AnyPredictor = Predictor | ConfinedPredictor

MOST_STREAMS = 64  # texts that are being written or wait for it
LOOK_SECONDS = 0.002  # how often who gives way looks whether it still has to


def _unseen(rows: int, waited: float) -> None:
    """Observes nothing."""


class Queues:
    """One thread for torch, which uses the cores itself; one for texts, which take seconds; one for every sandbox.

    ``get`` gives the predictor of a version. ``give_way`` says whether something more important waits: then the thread for
    torch begins nothing. ``observe``: see `Batches`.
    """

    def __init__(
        self, name: str, get: Callable[[UUID], AnyPredictor], *, give_way: Callable[[], bool] | None = None,
        observe: Callable[[int, float], None] = _unseen,
    ) -> None:  # fmt: skip
        self._name = name
        self._get = get
        self._observe = observe
        self._lock = threading.Lock()
        self._threads: list[ThreadPoolExecutor] = []
        torch = self._thread("torch")
        self._torch = self._queue(GivingWay(torch, give_way) if give_way else torch)
        self._writing_thread = self._thread("writing")
        self._writing = self._queue(self._writing_thread)
        self._streams = threading.BoundedSemaphore(MOST_STREAMS)
        self._confined: dict[UUID, tuple[Batches, ThreadPoolExecutor]] = {}

    def _thread(self, kind: str) -> ThreadPoolExecutor:
        made = ThreadPoolExecutor(1, thread_name_prefix=f"{self._name} {kind}")
        self._threads.append(made)
        return made

    def _queue(self, thread: Executor) -> Batches:
        return Batches(thread, self._get, together, self._observe)

    def of(self, version: UUID, predictor: AnyPredictor) -> Batches:
        """Where requests for it wait."""
        if isinstance(predictor, Predictor):
            return self._torch if predictor.writer is None else self._writing
        with self._lock:
            if version not in self._confined:
                thread = self._thread("confined")
                self._confined[version] = (self._queue(thread), thread)
            return self._confined[version][0]

    def write(self, work: Callable[[], None]) -> None:
        """Do something in the thread for texts. Raises Overloaded when many wait for it already."""
        if not self._streams.acquire(blocking=False):
            raise Overloaded
        self._writing_thread.submit(work).add_done_callback(lambda _: self._streams.release())

    def after_what_waits(self, version: UUID, act: Callable[[], None]) -> None:
        """Do something once the sandbox of a version has answered what waits for it."""
        with self._lock:
            _, thread = self._confined.get(version, (None, None))
        if thread is None:
            act()
        else:
            thread.submit(act)

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        with self._lock:
            confined = [queue for queue, _ in self._confined.values()]
        return sum(queue.waiting for queue in (self._torch, self._writing, *confined))

    @property
    def torch_waiting(self) -> int:
        return self._torch.waiting

    def close(self) -> None:
        """End all threads; what waits is answered first."""
        for thread in self._threads:
            thread.shutdown(wait=True)


class GivingWay(Executor):
    """An executor whose work begins when nothing more important waits. The work itself is not interrupted."""

    def __init__(self, thread: Executor, give_way: Callable[[], bool]) -> None:
        self._thread = thread
        self._give_way = give_way

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        def in_turn() -> Any:
            while self._give_way():
                time.sleep(LOOK_SECONDS)
            return work(*arguments, **named)

        return self._thread.submit(in_turn)


def together(predictor: AnyPredictor) -> bool:
    """Texts are written one after the other anyway, and what code of somebody's own does with more rows is unknown."""
    return isinstance(predictor, Predictor) and predictor.writer is None
