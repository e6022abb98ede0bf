"""A stored object as an HTTP answer: streamed, verified, with ranges and an ETag."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any
from urllib.parse import quote

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from dlplatform.objects.store import CorruptObject, ObjectStore
from dlplatform.objects.zstd import Bytes

BLOCK = 1024 * 1024
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def file_response(request: HttpRequest, store: ObjectStore, *, sha256: str, size: int, label: str) -> HttpResponseBase:
    """200 with the whole object, 206 with the asked range, 304 for a known ETag, 416 for a range outside."""
    etag = f'"{sha256}"'
    if request.headers.get("If-None-Match") == etag:
        return HttpResponse(status=304, headers={"ETag": etag})
    wanted = _range(request.headers.get("Range", ""), size)
    if wanted == "outside":
        return HttpResponse(
            status=416, headers={"Content-Range": f"bytes */{size}"}, content_type="application/octet-stream"
        )
    start, end = wanted if isinstance(wanted, tuple) else (0, size - 1)
    status, kind = 206 if wanted else 200, "application/octet-stream"
    response: HttpResponseBase
    if request.method == "HEAD":
        response = HttpResponse(status=status, content_type=kind)
    else:
        content = _pieces(store, sha256, start, end, size)
        response = PiecesResponse(_stream(content), status=status, content_type=kind)
    response["Content-Length"] = str(max(end - start + 1, 0))
    response["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(label, safe='')}"
    response["ETag"] = etag
    response["Accept-Ranges"] = "bytes"
    response["Content-Security-Policy"] = "sandbox"
    if wanted:
        response["Content-Range"] = f"bytes {start}-{end}/{size}"
    return response


def _range(header: str, size: int) -> tuple[int, int] | str | None:
    """(first, last) for one byte range, "outside", or None when there is no range that we read."""
    matched = RANGE.fullmatch(header.strip())
    if matched is None or matched[0] == "bytes=-":
        return None
    first, last = matched[1], matched[2]
    if not first:
        return (max(size - int(last), 0), size - 1) if int(last) and size else "outside"
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    return (start, end) if start <= end and start < size else "outside"


def _pieces(store: ObjectStore, sha256: str, first: int, last: int, size: int) -> Iterator[Bytes]:
    """The asked bytes, verified as far as `ObjectStore.open` does; of a whole object the last piece waits until the hash
    of all is known to match. Raises MissingObject at once."""
    if (first, last) == (0, size - 1):
        return store.chunks(sha256)
    return _part(store.open(sha256), first, last - first + 1)


def _part(source: IO[bytes], start: int, length: int) -> Iterator[bytes]:
    with source:
        source.seek(start)
        while length > 0:
            piece = source.read(min(BLOCK, length))
            if not piece:
                raise CorruptObject(f"{length} bytes are missing at the end")
            length -= len(piece)
            yield piece


class PiecesResponse(StreamingHttpResponse):
    """A stream whose pieces are sent from where they lie, without the copy that Django makes of each.

    For who asks for pieces without an event loop, as a WSGI server does, they are bytes as ever.
    """

    def make_bytes(self, value: Any) -> Any:
        return value

    def __iter__(self) -> Iterator[bytes]:
        return map(bytes, super().__iter__())


async def _stream(pieces: Iterator[Bytes]) -> AsyncIterator[Bytes]:
    """The pieces; the next one is made in a thread while one is sent."""
    following = _next(pieces)
    try:
        while (piece := await _made(following)) is not None:
            following = _next(pieces)
            yield memoryview(piece)
    finally:
        await asyncio.wait([following])
        await asyncio.to_thread(pieces.close)  # type: ignore[attr-defined]


async def _made(following: asyncio.Future[Bytes | None]) -> Bytes | None:
    """Wait for a piece; awaited directly, a cancel would abandon the thread that makes it."""
    await asyncio.wait([following])
    return following.result()


def _next(pieces: Iterator[Bytes]) -> asyncio.Future[Bytes | None]:
    return asyncio.get_running_loop().run_in_executor(None, next, pieces, None)
