"""Texts of language models, sent piece by piece as they are written: one JSON object a line."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import orjson
from django.db import close_old_connections

from dlplatform.engine.errors import PackageError, PredictionInputError
from dlplatform.objects.store import CorruptObject, MissingObject
from registry.models import ModelVersion

from .cache import PredictorCache

END: dict[str, Any] = {"done": True}


async def stream_text(
    send: Any, receive: Any, version: UUID, body: bytes, torch_thread: ThreadPoolExecutor, cache: PredictorCache
) -> None:
    """Answer 200 with lines ``{"text": piece}`` and ``{"done": true}``, or an error before the first line.

    Writing ends when the reader goes away.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[tuple[int, dict[str, Any]]] = asyncio.Queue()
    gone = threading.Event()

    def work() -> None:
        for status, line in _lines(version, body, cache):
            loop.call_soon_threadsafe(lines.put_nowait, (status, line))
            if gone.is_set():
                return

    loop.run_in_executor(torch_thread, work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    status, line = await lines.get()
    kind = b"application/x-ndjson" if status == 200 else b"application/json"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    while status == 200 and line is not END and not leaving.done():
        await send({"type": "http.response.body", "body": orjson.dumps(line) + b"\n", "more_body": True})
        _, line = await lines.get()
    gone.set()
    leaving.cancel()
    await send({"type": "http.response.body", "body": orjson.dumps(line) + b"\n"})


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _lines(version: UUID, body: bytes, cache: PredictorCache) -> Any:
    """(status, line) one after the other; runs in the torch thread."""
    close_old_connections()
    try:
        predictor = cache.get(version)
        if predictor.writer is None:
            detail = "This model writes no texts; ask it for predictions."
            yield 422, {"code": "not_a_language_model", "detail": detail, "attr": None}
            return
        for piece in predictor.writer.stream(0, orjson.loads(body)):
            yield 200, {"text": piece}
        yield 200, END
    except orjson.JSONDecodeError as error:
        yield 400, {"code": "parse_error", "detail": f"The prompt cannot be read: {error}", "attr": None}
    except PredictionInputError as error:
        yield 400, {"code": error.code, "detail": error.message, "attr": error.column}
    except ModelVersion.DoesNotExist:
        yield 404, {"error": "not_found"}
    except (PackageError, MissingObject, CorruptObject) as error:
        yield 422, {"code": "model_unusable", "detail": f"This version cannot be loaded: {error}", "attr": None}
