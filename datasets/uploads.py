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
from django.db import close_old_connections, connections
from django.http import Http404, QueryDict
from drf_standardized_errors.handler import exception_handler
from rest_framework.exceptions import APIException, ErrorDetail, NotAuthenticated, PermissionDenied, ValidationError
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from dlplatform.accounts.access import DeclaredPolicy, require, visible_or_404
from dlplatform.accounts.idempotency import Answer, answered_once, fingerprint_of, key_of
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
            answer = await _receive_version(request, matched[1], receive)
        except (APIException, Http404, DjangoPermissionDenied) as error:
            answer = await sync_to_async(_error)(error, request)
        await _send(send, answer)


async def _receive_version(request: ASGIRequest, dataset: str, receive: Any) -> Answer:
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
        stored = await asyncio.to_thread(_commit, incoming)
    except BaseException:
        incoming.discard()
        raise
    return await sync_to_async(_answer)(user, row, stored, body, key_of(request))


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


def _commit(incoming: IncomingFile) -> Any:
    """The store writes to the database, and a thread of the pool would keep its connection for good."""
    try:
        return incoming.commit()
    finally:
        connections.close_all()


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


def _error(error: Exception, request: ASGIRequest) -> Answer:
    view = APIView()
    wrapped = view.initialize_request(request)
    # A session's CSRF check looks into the form; the body is not a form and is read by us, chunk by chunk.
    wrapped._full_data = wrapped._data = QueryDict()
    if isinstance(error, APIException) and error.status_code == 401:
        error.auth_header = api_settings.DEFAULT_AUTHENTICATION_CLASSES[0]().authenticate_header(wrapped)  # type: ignore[attr-defined]
    response = exception_handler(error, {"view": view, "request": wrapped, "args": (), "kwargs": {}})
    assert response is not None
    return Answer(response.status_code, response.data)


async def _send(send: Any, answer: Answer) -> None:
    content = orjson.dumps(answer.body, default=str)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
