"""How the web process asks the inference process. Imports no torch."""

import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any
from uuid import UUID

import httpx
from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import Http404
from rest_framework.exceptions import APIException, Throttled

from dlplatform.api import Conflict, Unavailable

SECRET_HEADER = "X-Platform-Secret"  # noqa: S105 - the name of a header
TIMEOUT = httpx.Timeout(30.0, connect=2.0)


class Unusable(APIException):
    """The version is there but its package cannot be loaded."""

    status_code = 422
    default_code = "model_unusable"


class Overloaded(Unavailable):
    """More requests wait than the inference process takes; ``wait`` becomes the answer's Retry-After, in seconds."""

    default_code = "overloaded"
    default_detail = "More predictions are asked for than can be made; try again in a second."
    wait = 1


class Failed(Unavailable):
    """The inference process answers, but not what it should: asking again will not help."""

    status_code = 502
    default_code = "inference_failed"
    default_detail = "The inference server failed at this request; its log says why."


class PredictionRefused(ValidationError):
    """An instance does not fit the model's inputs; ``attr`` says which row and column."""

    def __init__(self, attr: str, detail: str, code: str) -> None:
        super().__init__({attr: ValidationError(detail, code=code)})


def shared_secret() -> str:
    """Known to the processes of one installation, since they share SECRET_KEY."""
    return hmac.new(settings.SECRET_KEY.encode(), b"inference process", hashlib.sha256).hexdigest()


@lru_cache(maxsize=1)
def _client() -> httpx.Client:
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=8)
    return httpx.Client(base_url=settings.SERVE_URL, timeout=TIMEOUT, limits=limits, trust_env=False)


def generate(version: UUID, instance: dict[str, Any], *, bearer: str | None = None) -> AsyncIterator[dict[str, Any]]:
    """What is told of a text while it is written: {"text": piece} again and again, then {"done": true}. Raises Throttled and
    Unavailable at once, while a 429 can be answered, and as `predict` does before the first piece."""
    _take_rate(bearer)
    return _written(f"versions/{version}", instance)


def generate_by_deployment(
    deployment: UUID, revision: int, instance: dict[str, Any], key: str | None, *, bearer: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """As `generate`, by a deployment for a caller who was let in (see `predict_by_deployment`); the end names version,
    variant and request_id."""
    _take_rate(bearer)
    return _written(f"deployments/{deployment}", {"instance": instance, "key": key, "revision": revision})


def _take_rate(bearer: str | None) -> None:
    """Count a text for the rate of the caller's key, before its stream begins; a person at a page has none."""
    if bearer is None:
        return
    try:
        answer = _client().post("/internal/rate", headers=_headers(bearer))
    except httpx.HTTPError:
        raise Unavailable from None
    if answer.status_code != 204:
        _refuse(answer)


async def _written(what: str, question: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    address, headers = f"/internal/{what}/generate", _headers(None)
    try:
        async with (
            httpx.AsyncClient(base_url=settings.SERVE_URL, timeout=TIMEOUT, trust_env=False) as client,
            client.stream("POST", address, json=question, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                await answer.aread()
                _refuse(answer)
            async for line in answer.aiter_lines():
                told = json.loads(line) if line else {}
                if "error" in told:
                    raise Unusable(told["error"])
                if told:
                    yield told
    except httpx.HTTPError:
        raise Unavailable from None


def _refuse(answer: httpx.Response) -> None:
    """Raise what an answer that is no success says."""
    if answer.status_code == 404:
        raise Http404
    if answer.status_code == 429:
        raise Throttled(wait=float(answer.headers.get("Retry-After", 1)))
    if answer.status_code == 413:
        raise PredictionRefused("instances", "Send fewer or smaller rows in one request.", "too_large")
    if answer.status_code not in (400, 409, 422, 503):
        raise Failed
    problem = answer.json()["errors"][0]
    if answer.status_code == 400:
        raise PredictionRefused(problem["attr"] or "prompt", problem["detail"], problem["code"])
    if answer.status_code == 409:
        raise Conflict(problem["detail"], code=problem["code"])
    if answer.status_code == 422:
        raise Unusable(problem["detail"])
    raise Overloaded if problem["code"] == Overloaded.default_code else Unavailable


def predict(version: UUID, instances: list[dict[str, Any]], *, bearer: str | None = None) -> list[dict[str, Any]]:
    """Predictions of one version for rows, in order. ``bearer``: the key or token of the caller, whose rate it counts for; None
    for a person at a page. Raises ValidationError, Http404, Unusable, Throttled, Failed or Unavailable."""
    told: list[dict[str, Any]] = _asked(f"versions/{version}", {"instances": instances}, bearer)["predictions"]
    return told


def predict_by_deployment(
    deployment: UUID, revision: int, instances: list[dict[str, Any]], key: str | None, *, bearer: str | None = None
) -> dict[str, Any]:
    """The answer of a deployment for a caller who was let in: {predictions, version, variant, request_id}.

    ``revision``: of the deployment as the caller found it; the server first looks whether it knows that.

    Raises as `predict` does, and Conflict where it is archived.
    """
    return _asked(f"deployments/{deployment}", {"instances": instances, "key": key, "revision": revision}, bearer)


def _headers(bearer: str | None) -> dict[str, str]:
    return {SECRET_HEADER: shared_secret()} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})


def _asked(what: str, question: dict[str, Any], bearer: str | None) -> dict[str, Any]:
    try:
        answer = _client().post(f"/internal/{what}/predict", json=question, headers=_headers(bearer))
    except httpx.HTTPError:
        raise Unavailable from None
    if answer.status_code != 200:
        _refuse(answer)
    told: dict[str, Any] = answer.json()
    return told
