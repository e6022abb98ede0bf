"""Texts of language models, sent piece by piece as they are written: one JSON object a line."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from rest_framework.exceptions import ValidationError

from dlplatform.engine.errors import PredictionInputError
from dlplatform.engine.predict import Predictor
from dlplatform.engine.writer import Writer
from registry.serving import client

from .http import ClientGone, send_bytes
from .models import Models

logger = logging.getLogger(__name__)

END: dict[str, Any] = {"done": True}


async def stream_text(send: Any, receive: Any, version: UUID, instance: Any, models: Models) -> None:
    """Answer 200 with lines ``{"text": piece}`` and ``{"done": true}``. Raises before the first line what `pieces` does.

    Writing ends when the reader goes away.
    """
    leaving = asyncio.ensure_future(receive())
    written = pieces(version, instance, models, leaving.done)
    try:
        first = await anext(written, None)
        if first is None:
            await send_bytes(send, 200, [(b"content-type", b"application/x-ndjson")], _line(END))
            return
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]}
        )
        await send({"type": "http.response.body", "body": _line({"text": first}), "more_body": True})
        await send({"type": "http.response.body", "body": await _rest(written, send)})
    finally:
        leaving.cancel()
        await written.aclose()


async def _rest(written: AsyncGenerator[str, None], send: Any) -> bytes:
    """Send the further pieces; the last line. The headers are out: what goes wrong from here on is a line too."""
    try:
        async for piece in written:
            await send({"type": "http.response.body", "body": _line({"text": piece}), "more_body": True})
    except ClientGone:
        return b""
    except Exception as error:
        logger.exception("writing a text failed")
        return _line({"error": f"It could not be written to its end: {type(error).__name__}."})
    return _line(END)


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
            usage.tokens = text.tokens
            yield piece
            if gone():
                raise ClientGone
        usage.tokens, usage.whole = text.tokens, text.tokens < text.most
    except PredictionInputError as error:
        raise client.PredictionRefused(error.column or "prompt", error.message, error.code) from None
