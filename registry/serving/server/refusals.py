"""Whose fault a refused row is: its sender's, where every live variant of the deployment refuses it.

Guardrails leave such requests out: otherwise who sends rubbish could have any new version taken back.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.predict import Predictor
from registry.serving.client import PredictionRefused

from .deployments import Served
from .models import Models

MOST_WAITING = 32  # rows, each of which may be an image of megabytes


class Refusals:
    """Asks the models in memory, in a thread of its own: a row may be an image, and the loop has others to answer."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refusals")
        self._waiting = 0

    async def by_all(self, served: Served, refusing: UUID, row: Any) -> bool:
        """Whether every live variant refuses a row as bad input, as ``refusing``, a version, did. False where nobody knows: a
        model is not in memory, code of somebody's own would have to be asked, or many rows wait for that. Never raises."""
        known = {one.version: self._models.ready(one.version) for one in served.live.values()}
        others = [one for version, one in known.items() if version != refusing and isinstance(one, Predictor)]
        # Of each variant or of none: what one of two is excused for must not count against the other.
        if not all(isinstance(one, Predictor) for one in known.values()) or self._waiting >= MOST_WAITING:
            return False
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, _all_refuse, others, row)
        except RuntimeError:  # the thread has ended: the server is being stopped
            return False
        finally:
            self._waiting -= 1

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
