"""uvicorn's HTTP protocol, with a short way for large request bodies, or for small answers.

Large bodies go from the socket into the buffers of who takes them. An ASGI message costs three copies and a turn of the event loop for every 256 kB. Whoever takes a large body may call the
scope's extension ``BODY`` for a reader before he asks for a message. There is one where the length of the body is known
and no message waits; everywhere else, and on other servers, messages are all there is.

Small answers leave whole. Their head by itself wakes the client for nothing, and on a machine whose cores both are in a
client and a server a wake-up takes as long as a small model (measured: a sixth of an answer's time).
"""

import asyncio
import weakref
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BODY = "dlplatform.body"
WORTH_READING = 1024 * 1024
DISCARDED_AT_ONCE = 256 * 1024


class WholeAnswers(HttpToolsProtocol):
    """HTTP for small answers: head and first part of the body leave in one write, as ASGI has it anyway."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(Any, HoldingHeads(transport)))

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for another protocol gets his answer by this one; there is nothing for an operator to install."""

    def on_response_complete(self) -> None:
        cast(HoldingHeads, self.transport).release()  # of an answer without a body
        super().on_response_complete()


class HoldingHeads:
    """A transport that keeps the head of an answer back until there is more to write, or nothing more to come."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._head = b""
        for name in ("is_closing", "pause_reading", "resume_reading", "get_extra_info", "set_protocol"):
            setattr(self, name, getattr(transport, name))  # called for each request: not through __getattr__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(b"".join((head, data)))
        elif _is_head(data):
            self._head = data
        else:
            self._transport.write(data)

    def release(self) -> None:
        """Write what is kept back."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        self.release()
        self._transport.close()


def _is_head(data: bytes) -> bool:
    """Of a final answer: a client waits for 100 Continue."""
    return (
        isinstance(data, bytes)
        and data.startswith(b"HTTP/1.1 ")
        and data.endswith(b"\r\n\r\n")
        and not data.startswith(b"HTTP/1.1 1")
    )


class HttpProtocol(HttpToolsProtocol):
    """HTTP for large bodies: what came is passed on as it is."""

    _request = 0  # the number, on this connection, of the request that was parsed last
    _left = 0  # bytes of its body that have not come yet

    def on_headers_complete(self) -> None:
        self._request += 1
        self._left = _length_of_body(self.headers)
        # Weak: a connection that its own scope holds would stay until the collector of cycles finds it.
        offer = partial(_reader_for, weakref.ref(self), self._request)
        cast(dict[str, Any], self.scope)["extensions"] = {BODY: offer}
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._left -= len(body)
        if not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]  # bytes plus nothing are themselves; a bytearray is two copies
        super().on_body(body)

    def body_reader(self, request: int) -> "BodyReader | None":
        """A reader of what is left of a request's body; None when messages are as good, or hold some of it already.

        Another request may have been parsed behind this one, whose body is complete then; and the parser may take for
        complete what is not, as of a request to speak another protocol.
        """
        cycle, left = self.cycle, self._left
        if request != self._request or not cycle.more_body or left < WORTH_READING:
            return None
        if cycle.body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        self._left = 0
        self.flow.pause_reading()
        reader = BodyReader(self, left)
        self.transport.set_protocol(reader)
        return reader

    def wait_for_more(self) -> None:
        """Give a client that still sends what nobody wants as long again as one that is silent after its answer."""
        self._unset_keepalive_if_required()
        if self.cycle.response_complete:
            wait, end = self.timeout_keep_alive, self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(wait, end)

    def continue_after_body(self) -> None:
        """Take the connection back from a reader. The parser waits for bytes that it will never see: a new one begins.

        Nothing is read before the answer is out: a client that closes its side after the body would lose it.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()
        self.transport.set_protocol(self)
        self.transport.pause_reading()
        self.flow.read_paused = True
        if self.cycle.response_complete:
            self.flow.resume_reading()


def _reader_for(http: "weakref.ref[HttpProtocol]", request: int) -> "BodyReader | None":
    protocol = http()
    return protocol.body_reader(request) if protocol is not None else None


class BodyReader(asyncio.BufferedProtocol):
    """The rest of one request's body."""

    def __init__(self, http: HttpProtocol, left: int) -> None:
        self.left = left
        self._http = http
        self._transport = http.transport
        self._buffer = memoryview(b"")
        self._waiting: asyncio.Future[int] | None = None
        self._lost = False

    async def read_into(self, buffer: memoryview) -> int:
        """Wait for bytes and count them; 0 at the end of the body. Raises ConnectionResetError when the client leaves."""
        if self._lost:
            raise ConnectionResetError
        if not self.left:
            return 0
        self._buffer = buffer[: self.left]
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.resume_reading()
        try:
            return await self._waiting
        finally:
            self._waiting, self._buffer = None, memoryview(b"")  # uvloop keeps a reader until the connection's next one
            if self.left and not self._lost:
                self._transport.pause_reading()

    def close(self) -> None:
        """Nobody wants the rest any more: it is read and forgotten, so that the client comes to read its answer."""
        if self.left and not self._lost:
            self._buffer = memoryview(bytearray(DISCARDED_AT_ONCE))
            self._transport.resume_reading()

    # --- what the transport calls -------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[: self.left]

    def buffer_updated(self, nbytes: int) -> None:
        self.left -= nbytes
        if self._waiting is not None:
            self._transport.pause_reading()
            if not self._waiting.done():
                self._waiting.set_result(nbytes)
        else:
            self._http.wait_for_more()
        if not self.left:
            self._buffer = memoryview(b"")
            self._http.continue_after_body()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionResetError())
        self._http.connection_lost(exc)

    def eof_received(self) -> None:
        self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()


def _length_of_body(headers: list[tuple[bytes, bytes]]) -> int:
    """The announced length in bytes; 0 when there is none, or a body in chunks, or several that contradict."""
    named = dict(headers)
    lengths = {value for name, value in headers if name == b"content-length"}
    if b"transfer-encoding" in named or len(lengths) != 1:
        return 0
    (length,) = lengths
    return int(length) if length.isdigit() else 0
