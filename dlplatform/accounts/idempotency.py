"""`Idempotency-Key`: the same key and body give the first answer again; the same key with another body is 422."""

import functools
import hashlib
import json
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.encoders import JSONEncoder

from dlplatform.api import Conflict

from .models import RememberedAnswer, User

LIFETIME = timedelta(hours=24)


class KeyReused(APIException):
    status_code = 422
    default_code = "idempotency_key_reused"
    default_detail = "This Idempotency-Key was used with another request. Use a new key."


def idempotent(post: Any) -> Any:
    """Decorate a view's POST that creates something: a repeated key is answered from memory.

    The key's row is taken in the same transaction as the creation: both are there, or neither.
    """

    @functools.wraps(post)
    def once(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = request.headers.get("Idempotency-Key", "")[:200]
        if not key:
            return post(view, request, *args, **kwargs)
        body = request._request.body  # before the parser consumes the stream
        fingerprint = hashlib.sha256(b"\0".join([request.method.encode(), request.path.encode(), body])).hexdigest()
        with transaction.atomic():
            first = _claim(request.user, key, fingerprint)
            if first is not None:
                return _again(first, fingerprint)
            response = post(view, request, *args, **kwargs)
            RememberedAnswer.objects.filter(user=request.user, key=key).update(
                status=response.status_code, body=json.loads(json.dumps(response.data, cls=JSONEncoder))
            )
            return response

    return once


def _claim(user: User, key: str, fingerprint: str) -> RememberedAnswer | None:
    """Take the key for this request; the row that already holds it otherwise (waits for its transaction)."""
    RememberedAnswer.objects.filter(user=user, key=key, created_at__lt=timezone.now() - LIFETIME).delete()
    try:
        with transaction.atomic():
            RememberedAnswer.objects.create(user=user, key=key, fingerprint=fingerprint)
    except IntegrityError:
        return RememberedAnswer.objects.get(user=user, key=key)
    return None


def _again(first: RememberedAnswer, fingerprint: str) -> Response:
    if first.fingerprint != fingerprint:
        raise KeyReused
    if first.status is None:
        raise Conflict("A request with this Idempotency-Key is still being answered.", code="in_progress")
    return Response(first.body, status=first.status, headers={"Idempotent-Replay": "true"})
