"""Requests and answers of the ASGI server."""

import asyncio
from typing import Any, TypeVar
from urllib.parse import parse_qs

import orjson
from rest_framework.exceptions import MethodNotAllowed, UnsupportedMediaType

from .errors import JSON, TooLarge

BODY_LIMIT = 16 * 1024 * 1024
WATCHED_AFTER_SECONDS = 0.1  # until then nobody looks whether a client is still there
Result = TypeVar("Result")
Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class ReaderLeft(ClientGone):
    """Nobody reads the text any more, of which some was sent."""


async def body_of(receive: Any) -> bytes:
    """The whole body. Raises TooLarge, ClientGone."""
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        body: bytes = message.get("body", b"")
        if len(body) > BODY_LIMIT:
            raise TooLarge
        return body
    chunks = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks += message.get("body", b"")
        if len(chunks) > BODY_LIMIT:
            raise TooLarge
        if not message.get("more_body"):
            return bytes(chunks)
        message = await receive()


def require_post(scope: dict[str, Any]) -> None:
    if scope["method"] != "POST":
        raise MethodNotAllowed(scope["method"])


def require_json(headers: dict[bytes, bytes]) -> None:
    kind = headers.get(b"content-type", b"").decode("latin-1")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(kind)


def organization_in(scope: dict[str, Any]) -> str | None:
    """The slug that the address names with `?organization=`, the last where there are more."""
    query: bytes = scope["query_string"]
    if not query:
        return None
    return parse_qs(query.decode("latin-1"), keep_blank_values=True).get("organization", [None])[-1]


async def unless_gone(waiting: "asyncio.Future[Result]", receive: Any) -> Result:
    """What is answered, while the client is there: a request that still waits is taken out when it leaves.

    The body has been read, so what is received next is that the client has gone. Most are answered before it is worth
    looking. Raises ClientGone.
    """
    leaving: list[asyncio.Future[Any]] = []

    def watch() -> None:
        leaving.append(asyncio.ensure_future(receive()))
        leaving[0].add_done_callback(lambda done: done.cancelled() or waiting.cancel())

    soon = asyncio.get_running_loop().call_later(WATCHED_AFTER_SECONDS, watch)
    try:
        return await waiting
    except asyncio.CancelledError:
        if any(one.done() and not one.cancelled() for one in leaving):
            raise ClientGone from None
        raise
    finally:
        soon.cancel()
        for one in leaving:
            one.cancel()


async def send_json(send: Any, status: int, answer: Any, headers: Headers | None = None) -> None:
    await send_bytes(send, status, [JSON, *(headers or [])], orjson.dumps(answer, option=orjson.OPT_NON_STR_KEYS))


async def send_bytes(send: Any, status: int, headers: Headers, body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
