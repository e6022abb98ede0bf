"""Errors as the API answers them, without Django's request: status, headers, body."""

import logging
from typing import Any

import orjson
from django.db import DatabaseError
from drf_standardized_errors.formatter import ExceptionFormatter
from rest_framework.exceptions import APIException, NotAuthenticated

from dlplatform.api import ErrorHandler, Unavailable
from dlplatform.engine.errors import PackageError, PredictionInputError
from dlplatform.objects.store import CorruptObject, MissingObject
from registry.models import ModelVersion
from registry.serving import batching, client

UNLOADABLE = (PackageError, MissingObject, CorruptObject)
JSON = (b"content-type", b"application/json")

logger = logging.getLogger(__name__)


class TooLarge(APIException):
    status_code = 413
    default_code = "too_large"
    default_detail = "The body is too long; send fewer or smaller rows in one request."


class NotFoundHere(APIException):
    status_code = 404
    default_code = "not_found"
    default_detail = "Not found."


def refusal(error: Exception) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """(status, headers, body) of the answer that an error becomes; one that nobody foresaw is logged and a 500."""
    told = as_api_error(error)
    context: Any = {}
    handler = ErrorHandler(told, context)
    known: Any = handler.convert_unhandled_exceptions(handler.convert_known_exceptions(told))
    if known.status_code == 500:
        logger.error("a request failed", exc_info=error)
    body = orjson.dumps(ExceptionFormatter(known, context, told).run())
    return known.status_code, _headers(known), body


def as_api_error(error: Exception) -> Exception:
    """Errors of engine, store and queue as those that the web process raises for them."""
    if isinstance(error, PredictionInputError):
        attr = f"instances.{error.row}" + (f".{error.column}" if error.column else "")
        return client.PredictionRefused(attr, error.message, error.code)
    if isinstance(error, batching.Overloaded):
        return client.Overloaded()
    if isinstance(error, ModelVersion.DoesNotExist):
        return NotFoundHere()
    if isinstance(error, UNLOADABLE):
        return client.Unusable(f"This version cannot be loaded: {error}")
    if isinstance(error, DatabaseError):
        return Unavailable()
    return error


def code_of(error: Exception) -> str:
    """The error in a word, as the prediction log keeps it."""
    told = as_api_error(error)
    if isinstance(told, client.PredictionRefused):
        return "invalid"
    return str(getattr(told, "default_code", "error"))


def _headers(error: APIException) -> list[tuple[bytes, bytes]]:
    headers = [JSON]
    if isinstance(error, NotAuthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="api"'))
    wait = getattr(error, "wait", None)
    if wait is None and error.status_code == 503:
        wait = 1
    if wait is not None:
        headers.append((b"retry-after", str(max(1, round(wait + 0.499))).encode()))
    return headers
