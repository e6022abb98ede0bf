"""The inference process: a small ASGI application that answers the web process, and nobody else.

It imports torch so that web does not have to. The real inference server will grow here.
"""

import asyncio
import hmac
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.db import close_old_connections

from dlplatform.engine.errors import PackageError, PredictionInputError
from dlplatform.engine.predict import Predictor
from dlplatform.objects.store import CorruptObject, MissingObject
from registry.models import ModelVersion

from .batching import Batches, Overloaded
from .cache import PredictorCache
from .client import SECRET_HEADER, shared_secret
from .confined import ConfinedPredictor
from .generation import stream_text

MODEL_BUDGET = 1024**3
BODY_LIMIT = 16 * 1024 * 1024
PATH = re.compile(r"/internal/versions/([0-9a-f-]{36})/(predict|generate)")
# One thread: torch uses the cores itself, and a predictor is used by one request at a time.
torch_thread = ThreadPoolExecutor(1, thread_name_prefix="torch")
cache = PredictorCache(MODEL_BUDGET)
EXPECTED = (
    orjson.JSONDecodeError, PredictionInputError, ModelVersion.DoesNotExist, Overloaded, PackageError, MissingObject,
    CorruptObject,
)  # fmt: skip


def _predictor(version: UUID) -> Predictor | ConfinedPredictor:
    close_old_connections()
    return cache.get(version)


def _together(predictor: Predictor | ConfinedPredictor) -> bool:
    """Texts are written one after the other anyway, and what code of somebody's own does with more rows is unknown."""
    return isinstance(predictor, Predictor) and predictor.writer is None


batches = Batches(torch_thread, _predictor, _together)


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    if scope["path"] == "/healthz":
        await _answer(send, 200, {"status": "ok"})
        return
    headers = dict(scope["headers"])
    if not hmac.compare_digest(headers.get(SECRET_HEADER.lower().encode(), b"").decode("latin-1"), shared_secret()):
        await _answer(send, 401, {"error": "unauthenticated"})
        return
    matched = PATH.fullmatch(scope["path"])
    if matched is None or scope["method"] != "POST":
        await _answer(send, 404, {"error": "not_found"})
        return
    body = await _body(receive)
    if body is None:
        await _answer(send, 413, {"error": "too_large"})
        return
    if matched[2] == "generate":
        await stream_text(send, receive, UUID(matched[1]), body, torch_thread, cache)
        return
    status, answer = await _predicted(UUID(matched[1]), body)
    await _answer(send, status, answer)


async def _body(receive: Any) -> bytes | None:
    chunks = bytearray()
    while True:
        message = await receive()
        chunks += message.get("body", b"")
        if len(chunks) > BODY_LIMIT:
            return None
        if not message.get("more_body"):
            return bytes(chunks)


def predict(version: UUID, body: bytes) -> tuple[int, dict[str, Any]]:
    """(status, answer) for one request, waited for by a thread that is not the one of torch."""
    try:
        return 200, {"predictions": batches.ask(version, _rows(body)).result()}
    except EXPECTED as error:
        return _refusal(error)


async def _predicted(version: UUID, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        return 200, {"predictions": await asyncio.wrap_future(batches.ask(version, _rows(body)))}
    except EXPECTED as error:
        return _refusal(error)


def _rows(body: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = orjson.loads(body)["instances"]
    return rows


def _refusal(error: Exception) -> tuple[int, dict[str, Any]]:
    if isinstance(error, orjson.JSONDecodeError):
        return 400, {"code": "parse_error", "detail": f"The rows cannot be read: {error}", "attr": "instances"}
    if isinstance(error, PredictionInputError):
        attr = f"instances.{error.row}" + (f".{error.column}" if error.column else "")
        return 400, {"code": error.code, "detail": error.message, "attr": attr}
    if isinstance(error, ModelVersion.DoesNotExist):
        return 404, {"error": "not_found"}
    if isinstance(error, Overloaded):
        return 503, {"error": "overloaded"}
    return 422, {"code": "model_unusable", "detail": f"This version cannot be loaded: {error}", "attr": None}


async def _answer(send: Any, status: int, answer: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(answer, option=orjson.OPT_NON_STR_KEYS)})


def warm_up() -> None:
    """Pay for torch's lazy start before the first request does."""
    import torch

    torch.set_num_threads(max(1, min(4, settings.MAX_WORKERS)))
    torch.nn.functional.linear(torch.zeros(1, 2), torch.zeros(2, 2))
