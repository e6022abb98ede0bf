"""Copies of answered requests for the shadow variants: run beside, recorded beside, never waited for."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from uuid import UUID

from registry.serving import prediction_log
from registry.serving.batching import Overloaded, Rows
from registry.serving.models import PredictionRecord

from .deployments import Served, ServedVariant
from .errors import code_of
from .metrics import Metrics
from .models import Models
from .records import record_of
from .resting import Resting

DROPPED = PredictionRecord.DROPPED


@dataclass(frozen=True)
class Copy:
    """Of a request that was answered, for one shadow."""

    served: Served
    variant: ServedVariant
    request_id: UUID
    recorded: bool
    began: float


class Shadows:
    """Hands copies on and keeps what came of them. A copy that finds a full queue, or no model yet, or one that rests, is dropped."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    def offer(self, served: Served, request_id: UUID, rows: Rows, recorded: bool) -> None:
        """To every shadow of the deployment. ``recorded``: whether the log keeps the live answer, and so these."""
        for variant in served.shadows:
            copy = Copy(served, variant, request_id, recorded, time.perf_counter())
            predictor = self._models.ready(variant.version)
            if predictor is None:
                self._without_model(copy)
                continue
            try:
                asked = self._models.shadow.of(variant.version, predictor).ask(variant.version, rows)
            except Overloaded:
                self._keep(copy, None, DROPPED)
                continue
            asked.add_done_callback(lambda done, copy=copy: self._ended(copy, done))  # type: ignore[misc]

    def _without_model(self, copy: Copy) -> None:
        loading = self._models.load(copy.variant.version)
        failed = loading.exception() if loading.done() and not loading.cancelled() else None
        self._keep(copy, None, _error_of(failed) if failed else DROPPED)

    def _ended(self, copy: Copy, asked: "Future[Rows]") -> None:
        error = asked.exception()
        if error is None:
            self._keep(copy, asked.result(), "")
        else:
            self._keep(copy, None, _error_of(error))

    def _keep(self, copy: Copy, predictions: Rows | None, error: str) -> None:
        """Without the rows, which are in the live record."""
        self._metrics.copied(copy.served.id, copy.variant.id, error)
        if copy.recorded:
            milliseconds = (time.perf_counter() - copy.began) * 1000
            row = record_of(copy.served, copy.variant, copy.request_id, [], predictions, milliseconds, error)
            row.pack()
            prediction_log.buffer.add(row)


def _error_of(error: BaseException) -> str:
    if isinstance(error, Overloaded | Resting):
        return DROPPED
    return code_of(error) if isinstance(error, Exception) else "error"
