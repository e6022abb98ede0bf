"""A whole version as a zip, streamed as it is made: nothing is held but one piece of one file."""

import asyncio
import zipfile
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from dlplatform.objects.store import ObjectStore

from .models import ModelVersion
from .services import object_store

PIECE = 1024 * 1024


class Outlet:
    """A file that cannot be sought: what the zip writer gives it waits here until it is taken."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._position = 0

    def write(self, data: Any) -> int:
        self._waiting += data
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing waits anywhere else."""

    def take(self, least: int = 0) -> bytes:
        """What is waiting, if it is at least so much."""
        if len(self._waiting) <= least:
            return b""
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken


def zipped(store: ObjectStore, version: ModelVersion) -> Iterator[bytes]:
    """The zip's bytes; the same for the same version. Weights do not get smaller by deflating, so nothing is deflated.

    Raises CorruptObject or MissingObject in the middle: the zip then lacks its directory, and no reader takes it.
    """
    moment = version.created_at.timetuple()[:6]
    outlet = Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for path in sorted(version.tree):
            entry = zipfile.ZipInfo(path, moment)
            with archive.open(entry, "w", force_zip64=True) as out:
                for chunk in store.chunks(version.tree[path]["sha256"]):
                    out.write(chunk)
                    if ready := outlet.take(PIECE):
                        yield ready
    yield outlet.take()


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


def archive_response(request: HttpRequest, version: ModelVersion) -> HttpResponseBase:
    """200 with the zip, 304 for a known ETag."""
    etag = f'"{version.digest}"'
    if request.headers.get("If-None-Match") == etag:
        return HttpResponse(status=304, headers={"ETag": etag})
    pieces = zipped(object_store(version.model.organization_id), version)
    response = StreamingHttpResponse(_in_thread(pieces), content_type="application/zip")
    name = quote(f"{version.model.name}-v{version.number}.zip", safe="")
    response["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
    response["ETag"] = etag
    response["Content-Security-Policy"] = "sandbox"
    return response
