"""Uploads, received in one pass: hashed and written as they come, with constant memory.

Django's ASGI handler would spool the whole body into a temporary file before any view runs, and its multipart
parser is slow. This endpoint stands in front of it for one route, with the same authentication and services.
"""

import asyncio
import io
import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import orjson
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections
from django.http import Http404, QueryDict
from drf_standardized_errors.handler import exception_handler
from rest_framework.exceptions import APIException, ErrorDetail, NotAuthenticated, PermissionDenied, ValidationError
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from dlplatform.accounts.access import DeclaredPolicy, require, visible_or_404
from dlplatform.accounts.models import User
from dlplatform.objects.store import IncomingFile

from . import services
from .bodies import FIELD_LIMIT, Body, TooLarge, body_for, drain
from .models import Dataset
from .serializers import VersionSummary

ROUTE = re.compile(r"/api/v1/datasets/([0-9a-fA-F-]{36})/versions/?")

Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class UploadEndpoint:
    """ASGI: answers uploads of dataset versions, and passes everything else on."""

    def __init__(self, wrapped: Application) -> None:
        self.wrapped = wrapped

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        matched = ROUTE.fullmatch(scope["path"]) if scope.get("method") == "POST" else None
        if matched is None:
            await self.wrapped(scope, receive, send)
            return
        request = ASGIRequest(scope, io.BytesIO())
        try:
            status, body = 202, await _receive_version(request, matched[1], receive)
        except (APIException, Http404, DjangoPermissionDenied) as error:
            status, body = await sync_to_async(_error)(error, request)
        await _answer(send, status, body)


async def _receive_version(request: ASGIRequest, dataset: str, receive: Any) -> dict[str, Any]:
    length = request.headers.get("Content-Length")
    request.META["CONTENT_LENGTH"] = "0"  # nobody but this endpoint reads the body, the CSRF check included
    user, row = await sync_to_async(_authorise)(request, dataset)
    if length and length.isdigit() and int(length) > settings.UPLOAD_MAX_BYTES + FIELD_LIMIT:
        raise TooLarge
    incoming = IncomingFile(services.object_store(row.organization_id))
    try:
        body: Body = body_for(request, incoming)
        await drain(receive, body)
        await asyncio.to_thread(body.close)
        stored = await asyncio.to_thread(incoming.commit)
    except BaseException:
        incoming.discard()
        raise
    return await sync_to_async(_create)(user, row, stored, body)


def _authorise(request: ASGIRequest, dataset: str) -> tuple[User, Dataset]:
    """The same authentication, throttles of sight and right as an API view; before a byte is kept."""
    close_old_connections()
    view = APIView()
    view.policy = {"POST": "dataset.write"}  # type: ignore[attr-defined]
    _open_session(request)
    wrapped = view.initialize_request(request)
    # A session's CSRF check looks into the form; the body is not a form and is read by us, chunk by chunk.
    wrapped._full_data = wrapped._data = QueryDict()
    view.request = wrapped
    user = wrapped.user
    if not user.is_authenticated:
        raise NotAuthenticated
    if not DeclaredPolicy().has_permission(wrapped, view):
        raise PermissionDenied
    try:
        identifier = UUID(dataset)
    except ValueError:
        raise Http404 from None
    row = visible_or_404(Dataset.objects.select_related("organization"), user, pk=identifier)
    require(user, "dataset.write", row)
    return user, row


def _open_session(request: ASGIRequest) -> None:
    """What Django's session and authentication middleware would have done."""
    from django.contrib.auth import get_user
    from django.contrib.sessions.backends.db import SessionStore

    request.session = SessionStore(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    request.user = get_user(request)
    request._dont_enforce_csrf_checks = False  # type: ignore[attr-defined]


def _create(user: User, dataset: Dataset, stored: Any, body: Body) -> dict[str, Any]:
    if not stored.size:
        raise ValidationError({"file": [ErrorDetail("The file is empty; send one with data.", "empty")]})
    version = services.create_version(
        actor=user, dataset=dataset, stored=stored, filename=body.filename, content_type=body.content_type
    )
    return dict(VersionSummary(version).data)


def _error(error: Exception, request: ASGIRequest) -> tuple[int, Any]:
    view = APIView()
    wrapped = view.initialize_request(request)
    # A session's CSRF check looks into the form; the body is not a form and is read by us, chunk by chunk.
    wrapped._full_data = wrapped._data = QueryDict()
    if isinstance(error, APIException) and error.status_code == 401:
        error.auth_header = api_settings.DEFAULT_AUTHENTICATION_CLASSES[0]().authenticate_header(wrapped)  # type: ignore[attr-defined]
    response = exception_handler(error, {"view": view, "request": wrapped, "args": (), "kwargs": {}})
    assert response is not None
    return response.status_code, response.data


async def _answer(send: Any, status: int, body: Any) -> None:
    content = orjson.dumps(body, default=str)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
