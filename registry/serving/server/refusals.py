"""Whose fault a refused row is: its sender's, where every live variant of the deployment refuses it.

Guardrails leave such requests out: otherwise who sends rubbish could have any new version taken back.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.predict import Predictor
from registry.serving.client import PredictionRefused

from .deployments import Served
from .models import Models


class Refusals:
    """Asks the models in memory, in a thread of its own: a row may be an image, and the loop has others to answer."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refusals")

    async def by_all(self, served: Served, row: Any) -> bool:
        """Whether every live variant refuses a row as bad input. False where nobody knows: a model is not in memory, or code
        of somebody's own would have to be asked. Never raises."""
        predictors = [self._models.ready(version) for version in {one.version for one in served.live.values()}]
        known = [one for one in predictors if isinstance(one, Predictor)]
        if len(known) < len(predictors):
            return False
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _all_refuse, known, row)
        except RuntimeError:  # the thread has ended: the server is being stopped
            return False

    def close(self) -> None:
        self._thread.shutdown(wait=True)


def refused_row(error: BaseException | None, rows: Sequence[Any]) -> Any:
    """The row that an answer was refused for; None for other errors."""
    if isinstance(error, PredictionInputError):
        return rows[error.row] if 0 <= error.row < len(rows) else None
    return (
        rows[0] if isinstance(error, PredictionRefused) and len(rows) == 1 else None
    )  # a text is asked for by one row


def _all_refuse(predictors: Sequence[Predictor], row: Any) -> bool:
    return all(_refuses(one, row) for one in predictors)


def _refuses(predictor: Predictor, row: Any) -> bool:
    try:
        if predictor.writer is not None:
            predictor.writer.stream(0, row)  # nothing is written until somebody takes a piece
        else:
            predictor.read([row])
    except PredictionInputError:
        return True
    except Exception:  # a model that fails while it reads says nothing about the row
        return False
    return False
