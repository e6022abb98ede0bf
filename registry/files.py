"""A stored object as an HTTP answer: streamed, verified, with ranges and an ETag."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import IO
from urllib.parse import quote

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from dlplatform.objects import CHUNK, CorruptObject, ObjectStore

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
    source = store.open(sha256)
    whole = start == 0 and end == size - 1
    content = _stream(source, start, end - start + 1, sha256 if whole else None)
    response = StreamingHttpResponse(content, status=206 if wanted else 200, content_type="application/octet-stream")
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
    """Chunks read in a thread. A whole object is verified: its last chunk is sent only if the hash matches."""
    digest = hashlib.sha256() if sha256 else None
    try:
        await asyncio.to_thread(source.seek, start)
        while length > 0:
            chunk = await asyncio.to_thread(_read, source, min(CHUNK, length), digest)
            length -= len(chunk)
            if not chunk or (length == 0 and digest and digest.hexdigest() != sha256):
                raise CorruptObject(f"object {sha256} fails its hash")
            yield chunk
    finally:
        source.close()


def _read(source: IO[bytes], length: int, digest: "hashlib._Hash | None") -> bytes:
    chunk = source.read(length)
    if digest:
        digest.update(chunk)
    return chunk
