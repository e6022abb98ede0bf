"""The body of an upload: which of its bytes belong to the file, and their way into it."""

import asyncio
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from rest_framework.exceptions import APIException, ErrorDetail, ValidationError

from dlplatform.http_protocol import BODY
from dlplatform.objects.store import IncomingFile

BUFFER = 1024 * 1024
IDLE_SECONDS = 60.0
FIELD_LIMIT = 64 * 1024

Chunk = bytes | memoryview


class TooLarge(APIException):
    status_code = 413
    default_code = "too_large"

    def __init__(self) -> None:
        super().__init__(f"The file is larger than {settings.UPLOAD_MAX_BYTES:,} bytes, which is the limit here.")


class Broken(APIException):
    status_code = 400
    default_code = "broken_upload"
    default_detail = "The upload ended before the file was complete; send it again."


class Body:
    """A raw body: every byte belongs to the file."""

    def __init__(self, incoming: IncomingFile, filename: str, content_type: str) -> None:
        self.incoming = incoming
        self.filename = filename
        self.content_type = content_type
        self.complete = True

    def write(self, chunk: Chunk) -> None:
        if self.incoming.size + len(chunk) > settings.UPLOAD_MAX_BYTES:
            raise TooLarge
        self.incoming.write(chunk)

    def close(self) -> None:
        if not self.complete:
            raise Broken


class MultipartBody(Body):
    """multipart/form-data: the bytes of the field `file` belong to the file, other fields are passed over."""

    def __init__(self, incoming: IncomingFile, boundary: bytes) -> None:
        super().__init__(incoming, "upload", "")
        self.complete = False
        self._field = self._value = b""
        self._headers: dict[str, bytes] = {}
        self._in_file = False
        self._found = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def write(self, chunk: Chunk) -> None:
        try:
            self._parser.write(bytes(chunk))
        except FormParserError:
            raise Broken("The multipart body is malformed; send the file again.") from None

    def close(self) -> None:
        super().close()
        if not self._found:
            raise ValidationError({"file": [ErrorDetail("Send the file in the multipart field `file`.", "required")]})

    def _begin(self) -> None:
        self._headers, self._in_file = {}, False

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        if len(self._value) > FIELD_LIMIT:
            raise Broken("A multipart header is too long.")

    def _header_end(self) -> None:
        self._headers[self._field.decode("latin-1").lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._in_file = options.get(b"name") == b"file" and not self._found
        if self._in_file:
            self._found = True
            self.filename = options.get(b"filename", b"upload").decode("utf-8", "replace")
            self.content_type = self._headers.get("content-type", b"").decode("latin-1")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            super().write(data[start:end])

    def _end(self) -> None:
        self.complete = True


def body_for(request: ASGIRequest, incoming: IncomingFile) -> Body:
    content_type = request.headers.get("Content-Type", "")
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        boundary = options.get(b"boundary")
        if not boundary:
            raise Broken("The multipart body names no boundary.")
        return MultipartBody(incoming, boundary)
    return Body(incoming, request.GET.get("filename", "upload"), content_type)


class DoubleBuffer:
    """Two buffers in turn: one fills from the network while a thread writes the other."""

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write = write
        self._filling, self._other = bytearray(BUFFER), bytearray(BUFFER)
        self._used = 0
        self._writing: asyncio.Future[None] | None = None

    async def add(self, data: bytes) -> None:
        """Take some bytes; waits while both buffers are full. Raises what writing earlier ones raised."""
        left = memoryview(data)
        while left:
            space = self.space()
            count = min(len(left), len(space))
            space[:count] = left[:count]
            left = left[count:]
            await self.filled(count)

    def space(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return memoryview(self._filling)[self._used :]

    async def filled(self, count: int) -> None:
        """So many bytes have come into `space`; waits and raises as `add` does."""
        self._used += count
        if self._used == BUFFER:
            await self._swap()

    async def finish(self) -> None:
        """Write what is left, and wait for it."""
        await self._swap()
        await self._swap()

    async def _swap(self) -> None:
        await self.let_go()
        if self._writing is not None:
            self._writing.result()
        full = memoryview(self._filling)[: self._used]
        self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, full)
        self._filling, self._other, self._used = self._other, self._filling, 0

    async def let_go(self) -> None:
        """Until no thread uses the buffers or the file any more, whatever became of its work."""
        if self._writing is not None:
            await asyncio.wait([self._writing])  # awaited directly, a cancel would abandon the thread


async def drain(request: ASGIRequest, receive: Any, body: Body) -> None:
    """The whole body into the file. Raises Broken when the client leaves or falls silent, and what writing raises."""
    loop = asyncio.get_running_loop()
    buffer = DoubleBuffer(body.write)
    try:
        async with asyncio.timeout(IDLE_SECONDS) as patience:

            def heard() -> None:
                patience.reschedule(loop.time() + IDLE_SECONDS)

            more = True
            while more and not await _read(request, buffer, heard):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Broken
                heard()
                await buffer.add(message.get("body", b""))
                more = message.get("more_body", False)
            patience.reschedule(None)
            await buffer.finish()
    except TimeoutError:
        raise Broken("No data came for a minute; send the file again.") from None
    finally:
        await buffer.let_go()


async def _read(request: ASGIRequest, buffer: DoubleBuffer, heard: Callable[[], None]) -> bool:
    """Take the rest of the body without messages; False where that is not to be had, or not yet."""
    offered = request.scope.get("extensions", {}).get(BODY)
    reader = offered() if offered else None
    if reader is None:
        return False
    try:
        while count := await reader.read_into(buffer.space()):
            heard()
            await buffer.filled(count)
    except ConnectionResetError:
        raise Broken from None
    finally:
        reader.close()
    return True
