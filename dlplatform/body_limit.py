"""Bodies that Django reads whole: none longer than the limit, and each with its length.

Django's ASGI handler writes a body of any size into a temporary file before it looks at the limit, and takes one
that comes in chunks without a length for an empty one. Uploads do not come this way (`accounts.receiving`).
"""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from django.conf import settings

Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class TooLong(Exception):
    """More bytes came than Django may be given."""


class BodyLimit:
    """ASGI: 413 for a body over DATA_UPLOAD_MAX_MEMORY_SIZE; one of unknown length is gathered and passed on whole."""

    def __init__(self, wrapped: Application) -> None:
        self.wrapped = wrapped

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        try:
            if length.isdigit() and int(length) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
                raise TooLong
            if not length and b"chunked" in headers.get(b"transfer-encoding", b"").lower():
                scope, receive = await _gathered(scope, receive)
        except TooLong:
            await _refuse(send)
            return
        await self.wrapped(scope, receive, send)


async def _gathered(scope: dict[str, Any], receive: Any) -> tuple[dict[str, Any], Any]:
    """The same request with its body in one piece and the length in the headers."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return scope, _replay(message, receive)
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise TooLong
    headers = [*scope["headers"], (b"content-length", str(len(body)).encode())]
    whole = {"type": "http.request", "body": bytes(body), "more_body": False}
    return {**scope, "headers": headers}, _replay(whole, receive)


def _replay(message: dict[str, Any], receive: Any) -> Any:
    """A ``receive`` that gives this message first."""
    waiting = [message]

    async def again() -> Any:
        return waiting.pop() if waiting else await receive()

    return again


async def _refuse(send: Any) -> None:
    limit = f"{settings.DATA_UPLOAD_MAX_MEMORY_SIZE:,}"
    detail = f"The body is longer than {limit} bytes; send files to the address that takes uploads."
    error = {"code": "too_large", "detail": detail, "attr": None}
    content = orjson.dumps({"type": "client_error", "errors": [error]})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": content})
