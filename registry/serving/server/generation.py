"""Texts of language models, sent piece by piece as they are written: one JSON object a line."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from rest_framework.exceptions import APIException, ValidationError

from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.predict import Predictor
from dlplatform.engine.writer import Writer
from registry.serving import client

from .answering import Answer, Answering
from .errors import code_of
from .gate import Permit
from .http import ClientGone, ReaderLeft
from .models import Models

LANGUAGE = "language-model"
END: dict[str, Any] = {"done": True}


class WritesNoTexts(APIException):
    status_code = 400
    default_code = "not_a_language_model"
    default_detail = "This deployment writes no texts; ask it for predictions."


class ToldAlready(Exception):
    """An error that came after the headers, as a line or an event; ``default_code`` is its word in the prediction log."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.default_code = code


async def stream_text(send: Any, receive: Any, version: UUID, instance: Any, models: Models) -> None:
    """Answer 200 with lines ``{"text": piece}`` and ``{"done": true}``. Raises before the first line what `pieces` does,
    after it ToldAlready.

    Writing ends when the reader goes away.
    """
    leaving = asyncio.ensure_future(receive())
    try:
        await _sent(send, pieces(version, instance, models, leaving.done), END)
    finally:
        leaving.cancel()


async def stream_answer(
    send: Any, receive: Any, answering: Answering, permit: Permit, row: Any, key: str | None, models: Models
) -> Answer:
    """As `stream_text`, by the variant of a deployment that the key belongs to; the last line names it, and the request in
    the prediction log. Raises what `Answering.served` does too, and WritesNoTexts."""
    served = await answering.served(permit)
    variant = served.choose(key)
    if variant.task != LANGUAGE:
        raise WritesNoTexts
    leaving = asyncio.ensure_future(receive())
    try:
        async with answering.record(served, variant, [row], key) as record:
            named = {"version": variant.version, "variant": variant.id, "request_id": record.request_id}
            text = await _sent(send, pieces(variant.version, row, models, leaving.done), END | named)
            record.predictions = [{"text": text}]
    finally:
        leaving.cancel()
    return record.answer


async def _sent(send: Any, written: AsyncGenerator[str, None], end: dict[str, Any]) -> str:
    """Send the pieces as they come; all of them together. The headers go out with the first: what goes wrong from there on is
    a line too, and raised as ToldAlready."""
    told = []
    try:
        told.append(await anext(written, ""))
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]}
        )
        try:
            await send({"type": "http.response.body", "body": _line({"text": told[0]}), "more_body": True})
            async for piece in written:
                told.append(piece)
                await send({"type": "http.response.body", "body": _line({"text": piece}), "more_body": True})
        except ClientGone:
            raise ReaderLeft from None
        except Exception as error:
            sentence = f"It could not be written to its end: {type(error).__name__}."
            await send({"type": "http.response.body", "body": _line({"error": sentence})})
            raise ToldAlready(code_of(error)) from error
        await send({"type": "http.response.body", "body": _line(end)})
    finally:
        await written.aclose()
    return "".join(told)


def _line(value: dict[str, Any]) -> bytes:
    return orjson.dumps(value) + b"\n"


@dataclass
class Usage:
    """Tokens that were read and written so far; ``whole``: the text ended before it had the most tokens it may have."""

    prompt_tokens: int = 0
    tokens: int = 0
    whole: bool = True


async def pieces(
    version: UUID, instance: Any, models: Models, gone: Callable[[], bool], usage: Usage | None = None
) -> AsyncGenerator[str, None]:
    """The pieces of a text, written in the thread for texts until ``gone()``, or until nobody takes them any more.

    ``usage`` is kept up to date. Raises Unusable for a model that writes none, PredictionRefused for the instance, Overloaded, ClientGone, and what
    loading does.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
    stopped = threading.Event()

    def put(item: str | BaseException | None) -> None:
        loop.call_soon_threadsafe(waiting.put_nowait, item)

    def work() -> None:
        try:
            for piece in _written(writer, instance, lambda: stopped.is_set() or gone(), usage or Usage()):
                put(piece)
            put(None)
        except BaseException as error:
            put(error)

    predictor = await models.loaded(version)
    if not isinstance(predictor, Predictor) or predictor.writer is None:
        raise client.Unusable("This model writes no texts; ask it for predictions.")
    writer = predictor.writer
    models.live.write(work)
    try:
        while (item := await waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


def _written(writer: Writer, instance: Any, gone: Callable[[], bool], usage: Usage) -> Iterator[str]:
    if gone():  # while it waited for the thread
        raise ClientGone
    if not isinstance(instance, dict):
        raise ValidationError("Send a JSON object with a prompt or messages.")
    try:
        text = writer.stream(0, instance)
        usage.prompt_tokens = text.prompt_tokens
        for piece in text:
            if gone():
                raise ClientGone
            usage.tokens = text.tokens
            yield piece
        usage.tokens, usage.whole = text.tokens, text.tokens < text.most
    except PredictionInputError as error:
        raise client.PredictionRefused(error.column or "prompt", error.message, error.code) from None
