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
from dlplatform.objects.store import CorruptObject, MissingObject
from registry.models import ModelVersion

from .cache import PredictorCache
from .client import SECRET_HEADER, shared_secret
from .generation import stream_text

MODEL_BUDGET = 1024**3
BODY_LIMIT = 16 * 1024 * 1024
PATH = re.compile(r"/internal/versions/([0-9a-f-]{36})/(predict|generate)")
# One thread: torch uses the cores itself, and a predictor is used by one request at a time.
torch_thread = ThreadPoolExecutor(1, thread_name_prefix="torch")
cache = PredictorCache(MODEL_BUDGET)


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
    loop = asyncio.get_running_loop()
    if matched[2] == "generate":
        await stream_text(send, receive, UUID(matched[1]), body, torch_thread, cache)
        return
    status, answer = await loop.run_in_executor(torch_thread, predict, UUID(matched[1]), body)
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
    """(status, answer) for one request; runs in the torch thread."""
    close_old_connections()
    try:
        instances = orjson.loads(body)["instances"]
        return 200, {"predictions": cache.get(version).predict(instances)}
    except orjson.JSONDecodeError as error:
        return 400, {"code": "parse_error", "detail": f"The rows cannot be read: {error}", "attr": "instances"}
    except PredictionInputError as error:
        attr = f"instances.{error.row}" + (f".{error.column}" if error.column else "")
        return 400, {"code": error.code, "detail": error.message, "attr": attr}
    except ModelVersion.DoesNotExist:
        return 404, {"error": "not_found"}
    except (PackageError, MissingObject, CorruptObject) as error:
        return 422, {"code": "model_unusable", "detail": f"This version cannot be loaded: {error}", "attr": None}


async def _answer(send: Any, status: int, answer: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(answer, option=orjson.OPT_NON_STR_KEYS)})


def warm_up() -> None:
    """Pay for torch's lazy start before the first request does."""
    import torch

    torch.set_num_threads(max(1, min(4, settings.MAX_WORKERS)))
    torch.nn.functional.linear(torch.zeros(1, 2), torch.zeros(2, 2))
