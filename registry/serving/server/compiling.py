"""Networks that are compiled for this machine beside those who answer, and swapped in when they are warm.

A version whose package wants it answers as it is at first. A thread finds its compiled network, or waits for a child process to
make it, tries it out, and puts it in the place of the other: one assignment, which no request notices. What goes wrong
there only means that the version goes on as it is.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings

from dlplatform.engine.compiled import CompiledRunner
from dlplatform.engine.compiling import FOLDER, Compiler
from dlplatform.engine.errors import EngineError
from dlplatform.engine.predict import Predictor

COMPILED, EAGER, COMPILING = "compiled", "eager", "compiling"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """How a version that wants to be compiled answers, ``compiled`` or ``eager``, and in the latter case why: ``compiling``, or
    the code of a failure with its sentence."""

    runtime: str
    reason: str = ""
    sentence: str = ""

    def __str__(self) -> str:
        if self.runtime == COMPILED:
            return "compiled"
        return "being compiled" if self.reason == COMPILING else f"not compiled: {self.sentence}"


class Compiling:
    """``swapped`` is told of every predictor whose network was swapped, with the bytes that this took."""

    def __init__(self, swapped: Callable[[UUID, Predictor, int], None]) -> None:
        self._swapped = swapped
        self._compiler = Compiler(settings.CACHE_PATH / FOLDER)
        # What was compiled before is opened while a child compiles something else.
        self._opening = ThreadPoolExecutor(1, thread_name_prefix="opening compiled")
        self._making = ThreadPoolExecutor(1, thread_name_prefix="compiling")
        self._predictors: dict[UUID, Predictor] = {}
        self._told: dict[UUID, Told] = {}
        self._lock = threading.Lock()

    def add(self, version: UUID, predictor: Predictor) -> None:
        """Have it compiled if its package wants that; it answers meanwhile."""
        if not predictor.compiles or self._compiler.stopped:
            return
        with self._lock:
            self._predictors[version] = predictor
            self._told[version] = Told(EAGER, COMPILING)
        self._opening.submit(self._work, version, predictor, self._compiler.found)

    def remove(self, version: UUID) -> None:
        """It is not in memory any more."""
        with self._lock:
            self._predictors.pop(version, None)
            self._told.pop(version, None)

    @property
    def told(self) -> dict[UUID, Told]:
        """Of all versions in memory that want to be compiled."""
        with self._lock:
            return dict(self._told)

    def _work(self, version: UUID, predictor: Predictor, runner_of: Callable[..., CompiledRunner | None]) -> None:
        """``runner_of``: the compiler's `found`, or its `runner`, which takes long."""
        if self._predictors.get(version) is not predictor:
            return  # it went, or came back as another one, before its turn
        before = predictor.run
        try:
            runner = runner_of(predictor.directory, predictor.network)
            if runner is None:
                self._making.submit(self._work, version, predictor, self._compiler.runner)
                return
            predictor.run = runner
            self._swapped(version, predictor, self._compiler.told(predictor.directory)["bytes"])
        except EngineError as error:
            self._go_on(version, predictor, Told(EAGER, error.code, error.sentence), error.detail)
        except Exception as error:  # the disk is full, say; nothing here may cost the version its answers
            predictor.run = before
            self._go_on(version, predictor, Told(EAGER, "not_compiled", f"{type(error).__name__}: {error}"), "")
        else:
            self._tell(version, predictor, Told(COMPILED))
            logger.info("version %s answers compiled", version)

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
        self._opening.shutdown(wait=True, cancel_futures=True)
        self._making.shutdown(wait=True, cancel_futures=True)
