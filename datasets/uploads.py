"""Uploads of dataset versions, received in one pass: hashed and written as they come, with constant memory."""

import asyncio
import re
from typing import Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404
from rest_framework.exceptions import ErrorDetail, ValidationError

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import Answer, answered_once, fingerprint_of, key_of
from dlplatform.accounts.models import User
from dlplatform.accounts.receiving import Handler, ReceivingEndpoint, in_thread, signed_in
from dlplatform.objects.store import IncomingFile

from . import services
from .bodies import FIELD_LIMIT, Body, TooLarge, body_for, drain
from .models import Dataset
from .serializers import VersionSummary

ROUTE = re.compile(r"/api/v1/datasets/([0-9a-fA-F-]{36})/versions/?")


class UploadEndpoint(ReceivingEndpoint):
    """ASGI: answers uploads of dataset versions."""

    def handler(self, scope: dict[str, Any]) -> Handler | None:
        matched = ROUTE.fullmatch(scope["path"]) if scope.get("method") == "POST" else None
        if matched is None:
            return None
        dataset = matched[1]
        return lambda request, receive: _receive_version(request, dataset, receive)


async def _receive_version(request: ASGIRequest, dataset: str, receive: Any) -> Answer:
    length = request.headers.get("Content-Length")
    user, row = await sync_to_async(_authorise)(request, dataset)
    if length and length.isdigit() and int(length) > settings.UPLOAD_MAX_BYTES + FIELD_LIMIT:
        raise TooLarge
    incoming = IncomingFile(services.object_store(row.organization_id))
    try:
        body: Body = body_for(request, incoming)
        await drain(request, receive, body)
        await asyncio.to_thread(body.close)
        stored = await in_thread(incoming.commit)
    except BaseException:
        incoming.discard()
        raise
    return await sync_to_async(_answer)(user, row, stored, body, key_of(request))


def _authorise(request: ASGIRequest, dataset: str) -> tuple[User, Dataset]:
    """Before a byte is kept."""
    user = signed_in(request, "dataset.write")
    try:
        identifier = UUID(dataset)
    except ValueError:
        raise Http404 from None
    row = visible_or_404(Dataset.objects.select_related("organization"), user, pk=identifier)
    require(user, "dataset.write", row)
    return user, row


def _answer(user: User, dataset: Dataset, stored: Any, body: Body, key: str) -> Answer:
    """A new version, or what was answered to the same upload before.

    An upload is the same when its file, label and content type are; the bytes around the file may differ, since a
    client makes up a new boundary each time.
    """

    def act() -> Answer:
        return Answer(202, _create(user, dataset, stored, body))

    if not key:
        return act()
    content = (f"upload to {dataset.pk}", stored.sha256, body.filename, body.content_type)
    fingerprint = fingerprint_of(*(part.encode() for part in content))
    return answered_once(user=user, key=key, fingerprint=fingerprint, act=act)


def _create(user: User, dataset: Dataset, stored: Any, body: Body) -> dict[str, Any]:
    if not stored.size:
        raise ValidationError({"file": [ErrorDetail("The file is empty; send one with data.", "empty")]})
    version = services.create_version(
        actor=user, dataset=dataset, stored=stored, filename=body.filename, content_type=body.content_type
    )
    return dict(VersionSummary(version).data)
