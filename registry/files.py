"""A stored object as an HTTP answer: streamed, verified, with ranges and an ETag."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import IO
from urllib.parse import quote

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from dlplatform.objects.store import CorruptObject, ObjectStore

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
    whole = start == 0 and end == size - 1
    status, kind = 206 if wanted else 200, "application/octet-stream"
    response: HttpResponseBase
    if request.method == "HEAD":
        response = HttpResponse(status=status, content_type=kind)
    else:
        content = _stream(store.open(sha256, verify=not whole), start, end - start + 1, sha256 if whole else None)
        response = StreamingHttpResponse(content, status=status, content_type=kind)
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


async def _stream(source: IO[bytes], start: int, length: int, sha256: str | None) -> AsyncIterator[bytes]:
    """Chunks; the next is read in a thread while one is sent.

    A whole object is verified: its last chunk is sent only if the hash matches.
    """
    digest = hashlib.sha256() if sha256 else None
    reading = _reading(source, start, min(BLOCK, length), digest)
    try:
        while length > 0:
            chunk = await reading
            length -= len(chunk)
            if not chunk or (length == 0 and digest and digest.hexdigest() != sha256):
                raise CorruptObject(sha256 or "")
            start += len(chunk)
            reading = _reading(source, start, min(BLOCK, length), digest)
            yield chunk
    finally:
        await asyncio.wait([reading])
        source.close()


def _reading(source: IO[bytes], start: int, length: int, digest: "hashlib._Hash | None") -> asyncio.Future[bytes]:
    return asyncio.get_running_loop().run_in_executor(None, _read, source, start, length, digest)


def _read(source: IO[bytes], start: int, length: int, digest: "hashlib._Hash | None") -> bytes:
    source.seek(start)
    chunk = source.read(length)
    if digest:
        digest.update(chunk)
    return chunk
