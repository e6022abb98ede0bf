"""Bodies on their way to Django: refused when too long, given their length when they come without."""

import asyncio

import httpx
import pytest

from dlplatform.body_limit import BodyLimit


async def echo(scope, receive, send):
    """Answers with the declared length and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    length = dict(scope["headers"]).get(b"content-length", b"none")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": length + b" " + body})


def post(content, **headers):
    async def send():
        transport = httpx.ASGITransport(app=BodyLimit(echo))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/", content=content, headers=headers)

    return asyncio.run(send())


async def chunks(count, size=10):
    for _ in range(count):
        yield b"x" * size


@pytest.fixture(autouse=True)
def limit(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100


def test_a_body_within_the_limit_passes_as_it_is():
    assert post(b"x" * 100).content == b"100 " + b"x" * 100


def test_a_declared_length_over_the_limit_is_refused_before_it_is_read():
    answer = post(b"x" * 101)
    assert answer.status_code == 413
    assert answer.json()["errors"][0]["code"] == "too_large" and "100 bytes" in answer.json()["errors"][0]["detail"]


def test_chunks_without_a_length_are_gathered_and_get_one():
    assert post(chunks(10)).content == b"100 " + b"x" * 100


def test_chunks_that_go_over_the_limit_are_refused():
    assert post(chunks(11)).status_code == 413


def test_a_client_that_leaves_while_sending_is_passed_on():
    seen = []

    async def wrapped(scope, receive, send):
        seen.append(await receive())

    async def receive():
        return {"type": "http.disconnect"}

    scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    asyncio.run(BodyLimit(wrapped)(scope, receive, None))
    assert seen == [{"type": "http.disconnect"}]
