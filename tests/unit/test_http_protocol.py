"""Bodies that are read from the socket into the taker's buffers, on both event loops that uvicorn may run on."""

import asyncio
import gc
import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dlplatform.http_protocol import BODY, WORTH_READING, HttpProtocol
from tests.fixtures.conversations import LOOPS, Talk, converse

LARGE = 3 * WORTH_READING + 17


class Taker:
    """Takes what is posted and answers with the number of its bytes; any other request with "got"."""

    def __init__(self, most: int = 1 << 40, seconds: float = 0.0) -> None:
        self.most = most
        self.seconds = seconds
        self.bodies: list[bytes] = []
        self.readers: list[bool] = []
        self.left = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = await self._taken(scope, receive) if scope["method"] == "POST" else b"got"
        if body is None:
            self.left.set()
            return
        text = str(len(body)).encode() if scope["method"] == "POST" else body
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})

    async def _taken(self, scope: dict[str, Any], receive: Any) -> bytes | None:
        await asyncio.sleep(self.seconds)  # as an endpoint looks whether somebody may send this
        body, more, reader = bytearray(), True, scope["extensions"][BODY]()
        while more and reader is None:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message["body"]
            more = message["more_body"]
            reader = scope["extensions"][BODY]() if more else None
        self.readers.append(reader is not None)
        if reader is not None and not await self._read(reader, body):
            return None
        self.bodies.append(bytes(body))
        return bytes(body)

    async def _read(self, reader: Any, body: bytearray) -> bool:
        buffer = memoryview(bytearray(100_000))
        try:
            while len(body) < self.most and (count := await reader.read_into(buffer)):
                body += buffer[:count]
        except ConnectionResetError:
            return False
        finally:
            reader.close()
        return True


@pytest.fixture(params=LOOPS)
def talk(request: pytest.FixtureRequest) -> Callable[[Taker, Talk], None]:
    """Run a server with this application, and a client's side of a conversation with it."""
    return partial(converse, request.param, HttpProtocol)


def post(length: int, more: str = "") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{more}\r\n".encode()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return await reader.readexactly(int(length.split(b":")[1]))


def test_a_large_body_is_read_to_its_last_byte_and_the_connection_goes_on(talk):
    taker, body = Taker(), os.urandom(LARGE)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(post(len(body)))
            for start in range(0, len(body), 700_001):
                writer.write(body[start : start + 700_001])
                await writer.drain()
            assert await answer(reader) == str(len(body)).encode()

    talk(taker, client)
    assert taker.bodies == [body, body]
    assert taker.readers == [True, True]


def test_a_request_that_follows_in_the_same_breath_is_answered_too(talk):
    taker, body = Taker(), os.urandom(LARGE)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(len(body)) + body + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + post(3) + b"abc")
        assert [await answer(reader) for _ in range(3)] == [str(len(body)).encode(), b"got", b"3"]

    talk(taker, client)
    assert taker.bodies == [body, b"abc"]


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (post(WORTH_READING // 2), b"x" * (WORTH_READING // 2)),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
         b"%x\r\n" % LARGE + b"x" * LARGE + b"\r\n0\r\n\r\n"),
    ],
    ids=["small", "in chunks"],
)  # fmt: skip
def test_a_small_body_and_one_of_unknown_length_come_as_messages(talk, head, body):
    taker = Taker()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head + body)
        await answer(reader)

    talk(taker, client)
    assert taker.readers == [False]
    assert set(taker.bodies[0]) == {ord("x")}


def test_who_waits_to_be_told_to_continue_is_told(talk):
    taker, body = Taker(), os.urandom(LARGE)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(len(body), "Expect: 100-continue\r\n"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(body)
        assert await answer(reader) == str(len(body)).encode()

    talk(taker, client)
    assert taker.bodies == [body]


def test_a_client_that_leaves_in_the_middle_is_noticed(talk):
    taker = Taker()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(LARGE) + b"x" * (LARGE - 1))
        await writer.drain()
        writer.close()
        await taker.left.wait()

    talk(taker, client)
    assert (taker.bodies, taker.readers) == ([], [True])


def test_what_nobody_wants_is_passed_over_and_the_next_request_is_answered(talk):
    taker = Taker(most=WORTH_READING)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(LARGE) + b"x" * LARGE)
        taken = int(await answer(reader))
        assert WORTH_READING <= taken < LARGE
        await writer.drain()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await answer(reader) == b"got"

    talk(taker, client)
    assert taker.readers == [True]


def test_a_request_is_not_given_the_body_of_the_one_behind_it(talk):
    taker, body = Taker(seconds=0.2), os.urandom(LARGE)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(3) + b"abc" + post(len(body)))
        await asyncio.sleep(0.1)
        writer.write(body)
        assert [await answer(reader) for _ in range(2)] == [b"3", str(len(body)).encode()]

    talk(taker, client)
    assert taker.bodies == [b"abc", body]


def test_a_body_that_the_parser_passes_over_is_not_looked_for(talk):
    """As of a request to go on in HTTP/2."""
    taker = Taker()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(LARGE, "Connection: Upgrade\r\nUpgrade: h2c\r\n"))
        assert await answer(reader) == b"0"

    talk(taker, client)
    assert taker.readers == [False]


def test_who_closes_his_side_after_the_body_is_answered(talk):
    taker, body = Taker(), os.urandom(LARGE)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(len(body)) + body)
        writer.write_eof()
        assert await answer(reader) == str(len(body)).encode()

    talk(taker, client)
    assert taker.bodies == [body]


def test_a_connection_that_has_ended_is_not_held(talk):
    held: list[weakref.ref[Any]] = []

    class Remembering(Taker):
        async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
            held.append(scope["extensions"][BODY].args[0])
            await super().__call__(scope, receive, send)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(post(LARGE) + b"x" * LARGE)
        await answer(reader)

    gc.collect()
    gc.disable()
    try:
        talk(Remembering(), client)
        assert [http() for http in held] == [None]
    finally:
        gc.enable()
