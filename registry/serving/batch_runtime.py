"""How the rows of a whole dataset are answered by a version that wants to be compiled: compiled where that is there already or pays."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.conf import settings

from dlplatform.engine.compiling import FOLDER, Compiler
from dlplatform.engine.environment import serving_threads
from dlplatform.engine.errors import EngineError
from dlplatform.engine.optimizing.report import threads
from dlplatform.engine.predict import Predictor
from dlplatform.engine.runners import Runner

from .confined import ConfinedPredictor

# Of answering as it is: compiling takes a minute or so of a core, and saves from a tenth to two thirds of the time.
WORTH_SECONDS = 600.0

logger = logging.getLogger(__name__)


class BatchRuntime:
    """``waiting`` is called a few times a second while something is compiled; what it raises ends that. ``name``: for the log."""

    def __init__(
        self, predictor: Predictor | ConfinedPredictor, name: str, waiting: Callable[[], None] = lambda: None
    ) -> None:
        self.told = ""  # in a word, of a version that wants to be compiled
        self._name = name
        self._wanting = predictor if isinstance(predictor, Predictor) and predictor.compiles else None
        self._compiler = Compiler(settings.CACHE_PATH / FOLDER, waiting=waiting)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """While the rows are answered: by what was compiled on this machine before, if it is there. What is compiled is of as many
        threads as those who answer online have."""
        if self._wanting is None:
            yield
            return
        with threads(serving_threads(settings.SERVE_PROCESSES)):
            self._take(self._compiler.found, "it was not compiled here before")
            yield

    def consider(self, seconds: float) -> None:
        """Compile it now where the rows that are left would take so long as it is that this pays."""
        if self._wanting is not None and seconds >= WORTH_SECONDS:
            self._take(self._compiler.runner, "")

    def _take(self, runner_of: Callable[..., Runner | None], otherwise: str) -> None:
        """Whatever goes wrong, the network answers as it is, and nothing is tried again."""
        predictor, runner = self._wanting, None
        assert predictor is not None
        try:
            runner = runner_of(predictor.directory, predictor.network)
        except (EngineError, OSError) as error:
            otherwise, self._wanting = str(error), None
        if runner is not None:
            predictor.run, self._wanting = runner, None
        self.told = "compiled" if runner is not None else "not compiled"
        logger.info("%s: answered %s", self._name, self.told if runner is not None else f"{self.told}: {otherwise}")
