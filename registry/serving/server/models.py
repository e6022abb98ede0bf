"""Models in memory: loaded and warmed by threads of their own, while others answer."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from uuid import UUID

from django.conf import settings
from django.db import close_old_connections

from registry.serving.batching import Overloaded
from registry.serving.cache import PredictorCache
from registry.serving.confined import ConfinedPredictor, ProcessEnded

from .compiling import Compiling
from .deployments import Served
from .queues import AnyPredictor, Queues
from .quick import Quick
from .resting import Rests

LOAD_SECONDS = 25.0  # that a request waits for its model
RETRY_SECONDS = 10.0


class Models:
    """Predictors by version, and the queues in front of them: ``live`` for answers, ``shadow`` for copies of requests.
    ``quick`` runs what is too small to go to another thread.

    A copy never waits in a queue for answers, and its thread for torch begins nothing while an answer waits. The sandbox of
    a shadow has a low priority, and rests when it ends again and again. Threads have no priorities here: one that
    waits for a core while it holds Python's lock would hold up all others.

    ``ended`` is told of each process of a model that ended of itself.
    """

    def __init__(
        self, budget: int, observe: Callable[[int, float], None] = lambda rows, waited: None,
        ended: Callable[[UUID], None] = lambda version: None,
    ) -> None:  # fmt: skip
        self.rests = Rests()
        self.compiling = Compiling(lambda *swapped: self.cache.swapped(*swapped))
        self.cache = PredictorCache(
            budget, self._let_go, lambda version: version in self.rests.shadows, self.compiling.add
        )
        self._asked: Counter[UUID] = Counter()
        self._tell_ended = ended
        self.live = Queues("live", self._get, observe=observe)
        self.quick = Quick(observe)
        self.shadow = Queues("shadow", self._get, give_way=lambda: self.live.torch_waiting > 0)
        self._loaders = ThreadPoolExecutor(2, thread_name_prefix="loading")
        self._shadow_loader = ThreadPoolExecutor(
            1, thread_name_prefix="loading shadows"
        )  # one that hangs holds up no answer
        self._ending = ThreadPoolExecutor(1, thread_name_prefix="ending")
        self._loading: dict[UUID, Future[AnyPredictor]] = {}
        self._failed: dict[UUID, tuple[Future[AnyPredictor], float]] = {}
        self._lock = threading.Lock()

    def _get(self, version: UUID) -> AnyPredictor:
        if self.cache.ready(version) is None and (resting := self.rests.refusal(version)):
            raise resting
        close_old_connections()
        try:
            return self.cache.get(version)
        finally:
            close_old_connections()

    def ready(self, version: UUID) -> AnyPredictor | None:
        """Its predictor, if that is loaded."""
        return self.cache.ready(version)

    def asked(self, served: Served) -> None:
        """A request came for a deployment. Once there were many, all versions in it get the form that answers fastest, and those that
        join it at once: none looks slow because it is asked less. For the event loop alone."""
        self._asked[served.id] += 1
        if 0 < settings.SERVE_AS_GRAPH_AFTER <= self._asked[served.id]:
            for variant in (*served.live.values(), *served.shadows):
                self.compiling.asked_much(variant.version)

    def load(self, version: UUID) -> "Future[AnyPredictor]":
        """The predictor to come; those who ask meanwhile wait for the same one. It has what `cache.get` raises.

        What failed is not tried again for some seconds, however many ask.
        """
        with self._lock:
            failed, at = self._failed.get(version, (None, 0.0))
            if failed is not None and time.monotonic() - at < RETRY_SECONDS:
                return failed
            coming = self._loading.get(version)
            if coming is not None:
                return coming
            if resting := self.rests.refusal(version):
                return _failed(resting)
            loaders = self._shadow_loader if version in self.rests.shadows else self._loaders
            coming = self._loading[version] = loaders.submit(self._get, version)
        coming.add_done_callback(lambda done: self._ended(version, done))
        return coming

    def _ended(self, version: UUID, loading: "Future[AnyPredictor]") -> None:
        """One that went well is not kept: it would hold its model in memory."""
        with self._lock:
            self._loading.pop(version, None)
            self._failed.pop(version, None)
            if not loading.cancelled() and loading.exception() is not None:
                self._failed[version] = (loading, time.monotonic())
                if isinstance(loading.exception(), ProcessEnded):
                    self.rests.ended(version, 0.0, str(loading.exception()))

    async def loaded(self, version: UUID) -> AnyPredictor:
        """The predictor, waited for. Raises Overloaded when that takes too long, and what loading does."""
        predictor = self.ready(version)
        if predictor is not None:
            return predictor
        coming = asyncio.shield(asyncio.wrap_future(self.load(version)))  # others wait for it too
        try:
            return await asyncio.wait_for(coming, LOAD_SECONDS)
        except TimeoutError:
            raise Overloaded from None

    def _let_go(self, version: UUID, predictor: AnyPredictor) -> None:
        """Called when the cache drops one: a sandbox ends once it has answered what waits, and in a thread, for its files
        may be many."""
        self.compiling.remove(version)
        if not isinstance(predictor, ConfinedPredictor):
            return
        if not predictor.alive:
            self._tell_ended(version)
            self.rests.ended(version, predictor.lived)
        answered = partial(self.shadow.after_what_waits, version, lambda: self._end(predictor))
        self.live.after_what_waits(version, answered)

    def _end(self, predictor: ConfinedPredictor) -> None:
        self._ending.submit(predictor.close)

    def follow_shadows(self, versions: Collection[UUID]) -> None:
        """These answer nobody. One that has become more gets a process of full priority before it answers."""
        self.rests.follow(versions)
        self.cache.drop_yielding(self.rests.shadows)

    def pin(self, versions: Collection[UUID]) -> None:
        """These stay in memory whatever the budget says."""
        self.cache.pin(versions)

    def close(self) -> None:
        """End all threads and sandboxes; what waits is answered first."""
        for loaders in (self._loaders, self._shadow_loader):
            loaders.shutdown(wait=True, cancel_futures=True)
        self.compiling.close()
        self.cache.clear()
        self.live.close()
        self.shadow.close()
        self._ending.shutdown(wait=True)


def _failed(error: Exception) -> "Future[AnyPredictor]":
    done: Future[AnyPredictor] = Future()
    done.set_exception(error)
    return done
