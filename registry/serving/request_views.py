"""The page of one request of a deployment, and the images in it."""

from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from datasets.image_responses import described
from dlplatform.api import Conflict
from dlplatform.objects.errors import CorruptObject, MissingObject

from . import logged_images, prediction_log
from .models import Deployment, PredictionRecord, Variant
from .views import deployment_or_404, told

ROWS_SHOWN = 20
KINDS = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"), (b"BM", "image/bmp"))


def record_or_404(deployment: Deployment, request_id: UUID) -> PredictionRecord:
    rows = PredictionRecord.objects.filter(deployment=deployment, request_id=request_id, role=Variant.Role.LIVE)
    found: PredictionRecord | None = rows.select_related("variant__version__model").first()
    if found is None:
        raise Http404
    return found


@require_safe
def request_page(request: HttpRequest, deployment: UUID, request_id: UUID) -> HttpResponse:
    found = deployment_or_404(request, deployment)
    record = record_or_404(found, request_id)
    labels = prediction_log.labels_of(found.pk, [request_id]).get(request_id, {})
    shadows = prediction_log.shadows_of(found.pk, [request_id]).get(request_id, [])
    for shadow in shadows:
        shadow.told = told(shadow.predictions)  # type: ignore[attr-defined]
    images = logged_images.named_in(found.pk, record.instances)
    context = {
        "section": "deployments",
        "deployment": found,
        "record": record,
        "rows": [_row(record, position, labels, images) for position in range(min(ROWS_SHOWN, len(record.instances)))],
        "more": max(0, len(record.instances) - ROWS_SHOWN),
        "shadows": shadows,
    }
    return render(request, "serving/request.html", context)


def _row(record: PredictionRecord, position: int, labels: dict[int, object], images: set[str]) -> dict[str, Any]:
    answers = record.predictions or []
    return {
        "number": position + 1,
        "inputs": [_input(name, value, images) for name, value in record.instances[position].items()],
        "answer": told(answers[position : position + 1]),
        "labelled": position in labels,
        "label": labels.get(position),
    }


def _input(name: str, value: Any, images: set[str]) -> dict[str, Any]:
    marked = isinstance(value, str) and value.startswith(logged_images.STORED)
    named = value.removeprefix(logged_images.STORED) if marked else ""
    return {"name": name, "value": value, "image": named if named in images else ""}


def logged_image(deployment: Deployment, request_id: UUID, sha256: str) -> HttpResponse:
    """The bytes as they were sent. Raises Http404 for what the request does not name, Conflict for what is lost."""
    if sha256 not in logged_images.named_in(deployment.pk, record_or_404(deployment, request_id).instances):
        raise Http404
    try:
        content = logged_images.read(deployment.organization_id, sha256)
    except (MissingObject, CorruptObject, OSError):
        raise Conflict("The image cannot be read now; restore the object from a backup.", code="unreadable") from None
    kind = _kind(content)
    response = HttpResponse(content, content_type=kind)
    shown = "inline" if kind.startswith("image/") else "attachment"
    response["Content-Disposition"] = f"{shown}; filename={sha256[:16]}"
    return described(response, sha256)


def _kind(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in KINDS if content.startswith(magic)), "application/octet-stream")


@require_safe
def request_image(request: HttpRequest, deployment: UUID, request_id: UUID, sha256: str) -> HttpResponse:
    return logged_image(deployment_or_404(request, deployment), request_id, sha256)
