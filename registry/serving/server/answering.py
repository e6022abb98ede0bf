"""Answering with a deployment: who answers, the answer, and its record. The one place where that happens."""

import asyncio
import io
import os
import random
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

import orjson
from django.db import DatabaseError
from django.http import Http404

from dlplatform.api import Conflict
from dlplatform.engine.predict import Predictor
from dlplatform.parsers import StrictJSONParser
from registry.serving import prediction_log
from registry.serving.batching import Rows
from registry.serving.log_entries import Entry
from registry.serving.models import PredictionRecord
from registry.serving.serializers import DeploymentPredictIn

from .deployments import Served, ServedVariant
from .errors import code_of
from .gate import Permit
from .http import ClientGone, ReaderLeft, unless_gone
from .metrics import Metrics
from .models import Models
from .records import record_of
from .refusals import Refusals, refused_row
from .watching import Watcher

MOST_ROWS, LONGEST_KEY = 1000, 200
RANDOM_BYTES, DRAWN_AT_ONCE = 10, 256
RANDOM_BITS, VERSION_7 = (1 << 76) - 1 & ~(3 << 62), 7 << 76 | 2 << 62


class RequestIds:
    """UUIDs of version 7 (RFC 9562, 5.7): the milliseconds since 1970, then 74 random bits. The log's index of them grows at its end;
    random ones would touch all of its pages.

    Bits are drawn for many at once: asking the system takes longer than all else that one needs.
    """

    def __init__(self) -> None:
        self._drawn = b""
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._drawn = b""

    def next(self) -> UUID:
        if not self._drawn:
            self._drawn = os.urandom(RANDOM_BYTES * DRAWN_AT_ONCE)
        taken, self._drawn = self._drawn[:RANDOM_BYTES], self._drawn[RANDOM_BYTES:]
        drawn = int.from_bytes(taken, "big") & RANDOM_BITS
        return UUID(int=time.time_ns() // 1_000_000 << 80 | VERSION_7 | drawn)


request_ids = RequestIds()


@dataclass(frozen=True)
class Answer:
    """``recorded``: whether the prediction log keeps it."""

    request_id: UUID
    served: Served
    variant: ServedVariant
    predictions: Rows
    recorded: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "predictions": self.predictions, "version": self.variant.version, "variant": self.variant.id,
            "request_id": self.request_id,
        }  # fmt: skip


def parsed(body: bytes) -> Any:
    """JSON as the web process reads it. Raises ParseError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:  # the strict parser knows what is wrong, or how to read it after all
        return StrictJSONParser().parse(io.BytesIO(body))


def question_of(body: bytes) -> tuple[Rows, str | None]:
    """Rows and key of a request's body. Raises ParseError, ValidationError as the web process does."""
    try:
        told = orjson.loads(body)
        if _is_plain(told):
            return told["instances"], told.get("key")
    except orjson.JSONDecodeError:
        told = parsed(body)
    given = DeploymentPredictIn(data=told)
    given.is_valid(raise_exception=True)
    return given.validated_data["instances"], given.validated_data.get("key")


def _is_plain(told: Any) -> bool:
    """Whether the serializer, which takes longer than many a model, would accept it as it is."""
    if not isinstance(told, dict) or not told.keys() <= {"instances", "key"}:
        return False
    rows, key = told.get("instances"), told.get("key")
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_ROWS or not all(type(row) is dict for row in rows):
        return False
    return key is None or (
        isinstance(key, str) and 0 < len(key) <= LONGEST_KEY and key.isprintable() and key == key.strip()
    )


class Answering:
    """Chooses the variant, has its model answer, and keeps the record."""

    def __init__(self, models: Models, watcher: Watcher, threads: Executor, metrics: Metrics) -> None:
        self.metrics = metrics
        self._models = models
        self._watcher = watcher
        self._threads = threads
        self._refusals = Refusals(models)

    def close(self) -> None:
        self._refusals.close()

    async def served(self, permit: Permit) -> Served:
        """What answers now. Raises Http404, and Conflict where it is archived."""
        if not self._watcher.knows(permit.deployment, permit.revision):
            await self._look()
        found = self._watcher.served.get(permit.deployment)
        if found is None:
            raise Http404
        if not found.active:
            raise Conflict(f"“{found.name}” is archived and does not answer.", code="archived")
        return found

    def served_of(self, deployments: Iterable[UUID]) -> list[Served]:
        """What answers now of these, without those that are archived or not served yet."""
        found = (self._watcher.served.get(one) for one in deployments)
        return [one for one in found if one is not None and one.active]

    async def _look(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._watcher.look)
        except DatabaseError:
            return

    async def answer(
        self, permit: Permit, rows: Rows, key: str | None, receive: Any, variant: ServedVariant | None = None
    ) -> Answer:
        """By the variant that the key belongs to, unless one is named. Raises what `served` and `predict` do; all but the
        first of these leave a record."""
        served = await self.served(permit)
        self._models.asked(served)
        by_chance = variant is None
        variant = variant or served.choose(key)
        async with self.record(served, variant, rows, key, by_chance) as record:
            record.predictions = await self.predict(variant.version, rows, receive)
        return record.answer

    def record(
        self, served: Served, variant: ServedVariant, rows: Rows, key: str | None, by_chance: bool = True
    ) -> "Record":
        """A context in which the variant answers. ``by_chance``: the weights chose it, and nobody named it."""
        return Record(self.metrics, self._refusals, served, variant, rows, key, by_chance)

    async def predict(self, version: UUID, rows: Rows, receive: Any) -> Rows:
        """The answers of one version. Raises ClientGone, Overloaded, and what loading and predicting do."""
        predictor = self._models.ready(version) or await self._models.loaded(version)
        at_once, quick = self._models.cache.at_once(version), self._models.quick
        if len(rows) <= at_once and isinstance(predictor, Predictor):  # done before anybody could leave
            if predictor.plain:
                return await quick.ask(version, predictor, rows, at_once)
            if quick.alone() and (light := predictor.light(rows)) is not None:
                return quick.run(predictor, light)
        with quick.elsewhere():
            return await unless_gone(self._models.live.of(version, predictor).ask_in_loop(version, rows), receive)


class Record:
    """An answer on its way. As the context ends, it is counted and kept in the prediction log, with the error if there is
    one. See `Answering.record`."""

    def __init__(
        self, metrics: Metrics, refusals: Refusals, served: Served, variant: ServedVariant, rows: Rows, key: str | None,
        by_chance: bool,
    ) -> None:  # fmt: skip
        self.served, self.variant, self.request_id = served, variant, request_ids.next()
        self.predictions: Rows | None = None
        self._metrics, self._rows, self._key, self._by_chance = metrics, rows, key, by_chance
        self._refusals = refusals
        self._recorded = random.random() < served.sample_rate  # noqa: S311 - a sample, no secret
        self._began = time.perf_counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        seconds = time.perf_counter() - self._began
        code = "" if error is None else await self._code_of(error)
        asyncio.get_running_loop().call_soon(self._keep, seconds, code)  # when the answer is on its way

    def _keep(self, seconds: float, code: str) -> None:
        self._metrics.answered(self.served.id, self.variant.id, code, seconds)
        if self._recorded:
            row = self._row(seconds * 1000, code)
            row.pack()
            prediction_log.buffer.add(row)

    async def _code_of(self, error: BaseException) -> str:
        row = refused_row(error, self._rows)
        if row is not None and await self._refusals.by_all(self.served, self.variant.version, row):
            return PredictionRecord.REFUSED_BY_ALL
        return _code(error)

    def _row(self, milliseconds: float, code: str) -> Entry:
        propensity = self.served.propensities[self.variant.name] if self._by_chance else None
        return record_of(
            self.served, self.variant, self.request_id, self._rows, self.predictions, milliseconds, code, self._key,
            propensity,
        )  # fmt: skip

    @property
    def answer(self) -> Answer:
        assert self.predictions is not None
        return Answer(self.request_id, self.served, self.variant, self.predictions, self._recorded)


def _code(error: BaseException) -> str:
    if isinstance(error, ReaderLeft):
        return PredictionRecord.READER_LEFT
    return "client_gone" if isinstance(error, ClientGone) or not isinstance(error, Exception) else code_of(error)
