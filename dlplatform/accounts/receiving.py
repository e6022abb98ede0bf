"""Endpoints in front of Django that receive bodies of any size: the same credentials, errors and answers as the API.

Django's ASGI handler would spool the whole body into a temporary file before any view runs. An endpoint stands in
front of it for the few routes that take files, and reads the body as it comes.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.core.handlers.asgi import ASGIRequest
from django.db import close_old_connections, connections
from django.http import Http404, QueryDict
from drf_standardized_errors.handler import exception_handler
from rest_framework.exceptions import APIException, NotAuthenticated, PermissionDenied
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from .access import DeclaredPolicy
from .idempotency import Answer
from .models import User

Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
Handler = Callable[[ASGIRequest, Any], Awaitable[Answer]]
Done = TypeVar("Done")


class ReceivingEndpoint:
    """ASGI: answers the requests that ``handler`` names somebody for, and passes everything else on."""

    def __init__(self, wrapped: Application) -> None:
        self.wrapped = wrapped

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        handler = self.handler(scope)
        if handler is None:
            await self.wrapped(scope, receive, send)
            return
        request = ASGIRequest(scope, io.BytesIO())
        try:
            answer = await handler(request, receive)
        except Exception as error:
            refused = await sync_to_async(self.refusal)(error, request)
            if refused is None:
                raise
            answer = refused
        await _send(send, answer)

    def handler(self, scope: dict[str, Any]) -> Handler | None:
        raise NotImplementedError

    def refusal(self, error: Exception, request: ASGIRequest) -> Answer | None:
        """What the API answers to this error; None for one that nobody foresaw."""
        if not isinstance(error, APIException | Http404 | DjangoPermissionDenied | DjangoValidationError):
            return None
        view, wrapped = _as_view(request)
        if isinstance(error, APIException) and error.status_code == 401:
            error.auth_header = api_settings.DEFAULT_AUTHENTICATION_CLASSES[0]().authenticate_header(wrapped)  # type: ignore[attr-defined]
        response = exception_handler(error, {"view": view, "request": wrapped, "args": (), "kwargs": {}})
        return None if response is None else Answer(response.status_code, response.data)


def signed_in(request: ASGIRequest, action: str) -> User:
    """The caller, who may do this kind of action at all: the same authentication, throttles and scopes as an API view."""
    close_old_connections()
    request.META["CONTENT_LENGTH"] = "0"  # nobody but the endpoint reads the body, the CSRF check included
    _open_session(request)
    view, wrapped = _as_view(request)
    view.policy = {request.method: action}  # type: ignore[attr-defined]
    view.request = wrapped
    if not wrapped.user.is_authenticated:
        raise NotAuthenticated
    if not DeclaredPolicy().has_permission(wrapped, view):
        raise PermissionDenied
    return wrapped.user


def _as_view(request: ASGIRequest) -> tuple[APIView, Any]:
    view = APIView()
    wrapped = view.initialize_request(request)
    # A session's CSRF check looks into the form; the body is not a form and is read by us, chunk by chunk.
    wrapped._full_data = wrapped._data = QueryDict()
    return view, wrapped


def _open_session(request: ASGIRequest) -> None:
    """What Django's session and authentication middleware would have done."""
    from django.contrib.auth import get_user
    from django.contrib.sessions.backends.db import SessionStore

    request.session = SessionStore(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    request.user = get_user(request)
    request._dont_enforce_csrf_checks = False  # type: ignore[attr-defined]


async def in_thread(work: Callable[[], Done]) -> Done:
    """Work that may take long. A thread of the pool would keep its database connection for good, so it is closed."""

    def closing() -> Done:
        try:
            return work()
        finally:
            connections.close_all()

    return await asyncio.to_thread(closing)


async def _send(send: Any, answer: Answer) -> None:
    content = b"" if answer.status == 204 else orjson.dumps(answer.body, default=str)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
