"""Answers whose head leaves with their body: what reaches the socket in one write, and that nothing is kept back for good."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dlplatform.http_protocol import HoldingHeads, WholeAnswers
from tests.fixtures.conversations import LOOPS, Talk, converse

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Written:
    """A transport that remembers what was written, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None:
        self.closed = True

    def __getattr__(self, name: str) -> Any:
        return lambda *given: None


def test_head_and_body_are_one_write():
    written = Written()
    transport = HoldingHeads(written)
    for _ in range(2):
        transport.write(HEAD)
        assert transport.write(b"ok") is None
    assert written.pieces == [HEAD + b"ok"] * 2


def test_only_the_head_of_a_final_answer_is_kept_back():
    written = Written()
    transport = HoldingHeads(written)
    for piece in (b"HTTP/1.1 100 Continue\r\n\r\n", b"body\r\n\r\n", b""):
        transport.write(piece)
        assert written.pieces[-1] == piece


def test_what_is_kept_back_goes_before_the_end():
    written = Written()
    transport = HoldingHeads(written)
    transport.write(HEAD)
    transport.close()
    assert written.pieces == [HEAD]
    assert written.closed
    transport.release()
    assert written.pieces == [HEAD]


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """/empty, /parts (a second one when the client has asked again), /fails after the head, /body (its length)."""
    path, body = scope["path"], b""
    while path == "/body" or scope["method"] == "POST":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    status = 204 if path == "/empty" else 200
    headers = [(b"content-length", b"4")] if path in ("/", "/fails") else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if path == "/fails":
        raise RuntimeError("after the head")
    if path == "/parts":
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"two"})
    else:
        told = {"/empty": b"", "/body": str(len(body)).encode()}.get(path, b"four")
        await send({"type": "http.response.body", "body": told})


@pytest.fixture(params=LOOPS)
def talk(request: pytest.FixtureRequest) -> Callable[[Talk], None]:
    return partial(converse, request.param, WholeAnswers, application)


def ask(path: str, method: str = "GET", more: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


def test_one_connection_carries_answers_of_every_shape(talk):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(ask("/"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
            assert await reader.readexactly(4) == b"four"
            writer.write(ask("/", "HEAD"))
            assert b"content-length: 4" in await reader.readuntil(b"\r\n\r\n")
            writer.write(ask("/empty"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            writer.write(ask("/parts"))
            assert b"chunked" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"

    talk(client)


def test_requests_in_one_breath_are_answered_in_order(talk):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ask("/empty") + ask("/", "HEAD") + ask("/"))
        told = [await reader.readuntil(b"\r\n\r\n") for _ in range(3)]
        assert [head[9:12] for head in told] == [b"204", b"200", b"200"]
        assert await reader.readexactly(4) == b"four"

    talk(client)


def test_a_client_that_waits_is_told_to_continue(talk):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ask("/body", "POST", "Content-Length: 3\r\nExpect: 100-continue\r\n"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"0\r\n\r\n") == b"1\r\n3\r\n0\r\n\r\n"

    talk(client)


@pytest.mark.parametrize("more", ["", "Connection: close\r\n"])
def test_a_failure_after_the_head_closes_the_connection_behind_it(talk, more):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ask("/fails", more=more))
        told = await reader.read()
        assert told.startswith(b"HTTP/1.1 200 OK")
        assert told.endswith(b"\r\n\r\n")

    talk(client)


def test_an_answer_without_a_body_ends_a_connection_that_is_to_close(talk):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ask("/", "HEAD", "Connection: close\r\n"))
        assert (await reader.read()).endswith(b"\r\n\r\n")

    talk(client)


def test_what_is_no_request_is_refused(talk):
    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")

    talk(client)
