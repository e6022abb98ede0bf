"""Networks that get another form beside those who answer, and are swapped in when that is warm: compiled for this machine where
the package wants it, a graph for onnxruntime where a network that is asked much answers faster as one.

A version answers as it is at first. A thread finds the other form of its network, or waits for a child process to
make it, tries it out, and puts it in the place of the first: one assignment, which no request notices. What goes wrong
there only means that the version goes on as it is.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings

from dlplatform.engine.compiling import FOLDER, Compiler
from dlplatform.engine.errors import EngineError
from dlplatform.engine.forms import GRAPH, gains_by_graph
from dlplatform.engine.likeness import times_as_fast
from dlplatform.engine.package import weights_file
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import Runner

COMPILED, EAGER, COMPILING, AS_GRAPH = "compiled", "eager", "compiling", "graph"
WORDS = {COMPILED: "compiled", AS_GRAPH: "as a graph"}
LEAST = {1: 1.1, 8: 1.1, 32: 0.95}  # by rows at once: as many times as fast a graph has to be, to be worth its memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """How a version answers that wants to be compiled or was made a graph: ``compiled``, ``graph`` or ``eager``, and in the last
    case why: ``compiling``, or the code of a failure with its sentence."""

    runtime: str
    reason: str = ""
    sentence: str = ""

    def __str__(self) -> str:
        if self.runtime in WORDS:
            return WORDS[self.runtime]
        return "being compiled" if self.reason == COMPILING else f"not compiled: {self.sentence}"


class Compiling:
    """``swapped`` is told of every predictor whose network was swapped, with the bytes that this took."""

    def __init__(self, swapped: Callable[[UUID, Predictor, int], None]) -> None:
        self._swapped = swapped
        folder = settings.CACHE_PATH / FOLDER
        self._compiler, self._grapher = Compiler(folder), Compiler(folder, form=GRAPH)
        # What was made before is opened while a child makes something else.
        self._opening = ThreadPoolExecutor(1, thread_name_prefix="opening compiled")
        self._making = ThreadPoolExecutor(1, thread_name_prefix="compiling")
        self._predictors: dict[UUID, Predictor] = {}
        self._told: dict[UUID, Told] = {}
        self._tried: set[UUID] = set()  # as graphs
        self._lock = threading.Lock()

    def add(self, version: UUID, predictor: Predictor) -> None:
        """It has come into memory. Have it compiled if its package wants that; it answers meanwhile."""
        with self._lock:
            self._predictors[version] = predictor
            if predictor.compiles:
                self._told[version] = Told(EAGER, COMPILING)
        if predictor.compiles:
            self._begin(version, predictor, self._compile)

    def asked_much(self, version: UUID) -> None:
        """Have it answer as a graph, if that is faster; once for each predictor that comes into memory."""
        if version in self._tried:
            return
        with self._lock:
            predictor = self._predictors.get(version)
            if predictor is None:
                return
            self._tried.add(version)
        self._begin(version, predictor, self._make_graph)

    def remove(self, version: UUID) -> None:
        """It is not in memory any more."""
        with self._lock:
            self._predictors.pop(version, None)
            self._told.pop(version, None)
            self._tried.discard(version)

    @property
    def told(self) -> dict[UUID, Told]:
        """Of all versions in memory that want to be compiled, or answer as graphs."""
        with self._lock:
            return dict(self._told)

    def _begin(self, version: UUID, predictor: Predictor, work: Callable[[UUID, Predictor, Any], bool]) -> None:
        """In a thread; again in another one, which may take long, when nothing was made before."""
        with suppress(RuntimeError):  # the thread has ended: the server is being stopped
            self._opening.submit(self._work, version, predictor, partial(work, version, predictor))

    def _work(self, version: UUID, predictor: Predictor, work: Callable[[bool], bool]) -> None:
        """``work`` with False uses only what was made before, and says whether there was something."""
        if self._is_held(version, predictor) and not work(False):
            self._making.submit(lambda: self._is_held(version, predictor) and work(True))

    def _is_held(self, version: UUID, predictor: Predictor) -> bool:
        """Whether it has not gone, or come back as another one, before its turn."""
        return self._predictors.get(version) is predictor

    def _compile(self, version: UUID, predictor: Predictor, made: bool) -> bool:
        before = predictor.run
        try:
            runner = _runner(self._compiler, predictor, made)
            if runner is None:
                return False
            self._swap(version, predictor, runner, self._compiler)
        except EngineError as error:
            self._go_on(version, predictor, Told(EAGER, error.code, error.sentence), error.detail)
        except Exception as error:  # the disk is full, say; nothing here may cost the version its answers
            predictor.run = before
            self._go_on(version, predictor, Told(EAGER, "not_compiled", f"{type(error).__name__}: {error}"), "")
        else:
            self._tell(version, predictor, Told(COMPILED))
            logger.info("version %s answers compiled", version)
        return True

    def _make_graph(self, version: UUID, predictor: Predictor, made: bool) -> bool:
        """Nobody asked for it: where it fails, or gains nothing, the log says so and the pages do not."""
        before = predictor.run
        try:
            if not gains_by_graph(predictor, _weights(predictor)):
                return True
            runner = _runner(self._grapher, predictor, made)
            if runner is None:
                return False
            gains = {rows: times_as_fast(runner, before, predictor.network, rows) for rows in LEAST}
            if any(gains[rows] < least for rows, least in LEAST.items()):
                logger.info("version %s gains nothing as a graph: %s", version, _in_words(gains))
                return True
            self._swap(version, predictor, runner, self._grapher)
        except Exception as error:
            predictor.run = before
            if not self._grapher.stopped:
                logger.info("version %s is not made a graph: %s", version, error)
        else:
            self._tell(version, predictor, Told(AS_GRAPH))
            logger.info("version %s answers as a graph: %s", version, _in_words(gains))
        return True

    def _swap(self, version: UUID, predictor: Predictor, runner: Runner, compiler: Compiler) -> None:
        predictor.run = runner
        self._swapped(version, predictor, compiler.told(predictor.directory)["bytes"])

    def _go_on(self, version: UUID, predictor: Predictor, told: Told, detail: str) -> None:
        self._tell(version, predictor, told)
        if not self._compiler.stopped:
            logger.warning("version %s answers uncompiled: %s %s", version, told.sentence, detail[-1000:])

    def _tell(self, version: UUID, predictor: Predictor, told: Told) -> None:
        with self._lock:
            if self._predictors.get(version) is predictor:
                self._told[version] = told

    def close(self) -> None:
        """End what is being compiled, and the thread."""
        self._compiler.stop()
        self._grapher.stop()
        self._opening.shutdown(wait=True, cancel_futures=True)
        self._making.shutdown(wait=True, cancel_futures=True)


def _runner(compiler: Compiler, predictor: Predictor, made: bool) -> Runner | None:
    """What a compiler has made of a network before, or (``made``) makes now. Raises EngineError, OSError."""
    look = compiler.runner if made else compiler.found
    return look(predictor.directory, predictor.network)


def _in_words(gains: dict[int, float]) -> str:
    return ", ".join(f"{gain:.2f} times as fast with {rows} rows" for rows, gain in gains.items())


def _weights(predictor: Predictor) -> int:
    """Bytes of the file of weights."""
    path: Path = predictor.directory / weights_file(predictor.description)
    return path.stat().st_size
