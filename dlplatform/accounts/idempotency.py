"""`Idempotency-Key`: the same key and body give the first answer again; the same key with another body is 422."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone
from rest_framework.exceptions import APIException, ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.encoders import JSONEncoder

from dlplatform.api import Conflict

from .models import RememberedAnswer, User

LONGEST_KEY = 200
LIFETIME = timedelta(hours=24)


class KeyReused(APIException):
    status_code = 422
    default_code = "idempotency_key_reused"
    default_detail = "This Idempotency-Key was used with another request. Use a new key."


@dataclass(frozen=True)
class Answer:
    """What was answered to a request; `again` when it had been answered before."""

    status: int
    body: Any
    again: bool = False
    more_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {**self.more_headers, **({"Idempotent-Replay": "true"} if self.again else {})}


def key_of(request: Any) -> str:
    """The key that a request carries; empty when it carries none. Raises ValidationError for one that is too long."""
    key = str(request.headers.get("Idempotency-Key", ""))
    if len(key) > LONGEST_KEY or "\0" in key:
        told = ErrorDetail(f"Use at most {LONGEST_KEY} characters.", "max_length")
        raise ValidationError({"Idempotency-Key": [told]})
    return key


def fingerprint_of(*content: bytes) -> str:
    """What tells two requests apart: everything that decides what they do, in order."""
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def answered_once(*, user: User, key: str, fingerprint: str, act: Callable[[], Answer]) -> Answer:
    """What `act` answers, or answered when the key first came.

    The key's row is taken in the same transaction as what `act` creates: both are there, or neither. Raises KeyReused
    when the key stands for another request.
    """
    with transaction.atomic():
        first = _claim(user, key, fingerprint)
        if first is not None:
            return _again(first, fingerprint)
        answer = act()
        RememberedAnswer.objects.filter(user=user, key=key).update(
            status=answer.status, body=json.loads(json.dumps(answer.body, cls=JSONEncoder))
        )
        return answer


def idempotent(post: Any) -> Any:
    """Decorate a view's POST that creates something: a repeated key is answered from memory."""

    @functools.wraps(post)
    def once(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = key_of(request)
        if not key:
            return post(view, request, *args, **kwargs)
        body = request._request.body  # before the parser consumes the stream
        responses: list[Response] = []

        def act() -> Answer:
            responses.append(post(view, request, *args, **kwargs))
            return Answer(responses[0].status_code, responses[0].data)

        fingerprint = fingerprint_of(request.method.encode(), request.path.rstrip("/").encode(), body)
        answer = answered_once(user=request.user, key=key, fingerprint=fingerprint, act=act)
        return responses[0] if responses else Response(answer.body, status=answer.status, headers=answer.headers)

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


def _again(first: RememberedAnswer, fingerprint: str) -> Answer:
    if first.fingerprint != fingerprint:
        raise KeyReused
    if first.status is None:
        raise Conflict("A request with this Idempotency-Key is still being answered.", code="in_progress")
    return Answer(first.status, first.body, again=True)
