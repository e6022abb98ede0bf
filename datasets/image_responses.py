"""Images of a version as HTTP answers, and where rows find them. Bytes are sent as they were stored, never decoded."""

from typing import Any
from urllib.parse import quote

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse

from dlplatform.api import Conflict
from dlplatform.objects.store import CorruptObject, MissingObject

from . import services
from .images import image_of
from .ingestion.images.index import CONTENT_TYPES, ImageRecord
from .models import DatasetVersion

SHOWN_BY_BROWSERS = frozenset({"PNG", "JPEG", "WEBP", "GIF", "BMP"})
CACHED_SECONDS = 600
POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"  # a browser's page around an image has styles


def image_response(request: HttpRequest, version: DatasetVersion, sha256: str, *, small: bool) -> HttpResponse:
    """The bytes, or 304 for a known ETag. Raises Http404, Conflict for what has no rows or whose bytes are lost."""
    if version.state != DatasetVersion.State.READY:
        raise Conflict(f"This version is {version.state}; it has no images to show.", code="not_ready")
    store = services.object_store(version.dataset.organization_id)
    try:
        record = image_of(store, version, sha256)
        if record is None:
            raise Http404
        digest, kind = _chosen(record, small)
        if request.headers.get("If-None-Match") == f'"{digest}"':
            return described(HttpResponse(status=304), digest)
        response = HttpResponse(store.read(digest), content_type=CONTENT_TYPES[kind])
    except (MissingObject, CorruptObject, OSError):
        raise Conflict("The image cannot be read now; restore the object from a backup.", code="unreadable") from None
    name = quote(f"{sha256[:16]}.{kind.lower()}", safe="")
    response["Content-Disposition"] = f"{'inline' if kind in SHOWN_BY_BROWSERS else 'attachment'}; filename={name}"
    return described(response, digest)


def _chosen(record: ImageRecord, small: bool) -> tuple[str, str]:
    return (record.thumbnail, record.thumbnail_format) if small else (record.sha256, record.format)


def described(response: HttpResponse, digest: str) -> HttpResponse:
    """Whatever the bytes are, the browser takes them for an image of the named kind and for nothing else."""
    response["ETag"] = f'"{digest}"'
    response["Cache-Control"] = f"private, max-age={CACHED_SECONDS}"
    response["Content-Security-Policy"] = POLICY
    response["Cross-Origin-Resource-Policy"] = "same-origin"
    return response


def image_path(version: DatasetVersion, sha256: str) -> str:
    return reverse("dataset-image", args=[version.dataset_id, version.number, sha256])


def linked_rows(request: HttpRequest, version: DatasetVersion, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with an object in the place of each image: its SHA-256, and where it and its thumbnail are."""
    for name in version.image_columns:
        for row in rows:
            if row[name] is not None:
                row[name] = _link(request, version, row[name])
    return rows


def _link(request: HttpRequest, version: DatasetVersion, sha256: str) -> dict[str, str]:
    address = request.build_absolute_uri(image_path(version, sha256))
    return {"sha256": sha256, "url": address, "thumbnail_url": f"{address}?thumbnail=1"}
