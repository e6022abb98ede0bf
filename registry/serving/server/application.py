"""The ASGI application: paths, who is let in, and the life of the process."""

import asyncio
import contextlib
import hmac
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

from django.conf import settings
from prometheus_client import CONTENT_TYPE_LATEST
from rest_framework.exceptions import NotAuthenticated

from registry.serving import prediction_log
from registry.serving.batching import Rows
from registry.serving.client import SECRET_HEADER, shared_secret

from . import inference_protocol, openai_api
from .answering import Answer, Answering, parsed, question_of
from .errors import NotFoundHere, refusal
from .gate import Gate, Permit, Target, bearer_of, may_ask
from .generation import ToldAlready, stream_answer, stream_text
from .http import ClientGone, body_of, organization_in, require_json, require_post, send_bytes, send_json
from .inference_protocol import InferenceProtocol
from .metrics import Metrics
from .models import Models
from .openai_api import OpenAIApi
from .rate_limit import RateLimit
from .shadows import Shadows
from .telling import Telling
from .watching import Watcher

PREDICT = re.compile(r"/api/v1/deployments/([^/]{1,200})/predict/?")
INTERNAL = re.compile(r"/internal/(versions|deployments)/([0-9a-f-]{36})/(predict|generate)")
RATE = "/internal/rate"  # for a text that the web process will ask for without the key, which was counted by this
SECRET = SECRET_HEADER.lower().encode()

logger = logging.getLogger(__name__)


class InferenceServer:
    """One process that answers predictions. `start` and `stop` are called by the server that runs it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="database")
        self.metrics = Metrics()
        self.models = Models(settings.SERVE_MEMORY_MB * 1024**2, self.metrics.batch, self.metrics.process_ended)
        self.watcher = Watcher(self.models, lambda: self.metrics.publish(self))
        self.answering = Answering(self.models, self.watcher, self._threads, self.metrics)
        self.shadows = Shadows(self.models, self.metrics)
        self.gate: Gate[Permit] = Gate(self._threads, may_ask)
        self.rate = RateLimit(settings.SERVE_KEY_RATE)
        self.telling = Telling(self.models)

        self.protocol = InferenceProtocol(
            self.answering, self.gate, self._threads, self.rate, self.models, self._is_ready, self._tell_shadows
        )
        self.openai = OpenAIApi(self.answering, self.gate, self._threads, self.rate, self.models, self._tell_shadows)

    def start(self) -> None:
        self.watcher.start()

    def stop(self) -> None:
        """After the last answer: write what waits, end threads and sandboxes."""
        self.telling.end()
        self.watcher.stop()
        self.models.close()
        self.answering.close()
        self._threads.shutdown(wait=True)
        prediction_log.drain()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answered(scope, receive, send)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.start()
                beside = asyncio.gather(self.rate.follow(), self.telling.follow(), return_exceptions=True)
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                beside.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await beside
                await asyncio.to_thread(self.stop)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answered(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        try:
            await self._route(scope, receive, send)
        except ClientGone:
            return
        except ToldAlready:
            logger.warning("writing a text failed", exc_info=True)
        except Exception as error:
            await send_bytes(send, *refusal(error))

    async def _route(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path: str = scope["path"]
        if (matched := PREDICT.fullmatch(path)) is not None:
            await self._predict(scope, receive, send, matched[1])
        elif path == "/healthz":
            await send_json(send, 200, {"status": "ok"})
        elif path == "/readyz":
            await self._readyz(send)
        elif path == "/metrics":
            self.metrics.publish(self)
            await send_bytes(send, 200, [(b"content-type", CONTENT_TYPE_LATEST.encode())], self.metrics.text())
        elif (matched := inference_protocol.PATH.fullmatch(path)) is not None:
            await self.protocol(scope, receive, send, matched[1], matched[2] or "")
        elif (matched := openai_api.PATH.fullmatch(path)) is not None:
            await self.openai(scope, receive, send, matched[1], matched[2])
        elif path.startswith("/internal/"):
            await self._internal(scope, receive, send)
        else:
            raise NotFoundHere

    def _is_ready(self) -> bool:
        return self.watcher.looked.is_set() and not self.watcher.loading

    async def _readyz(self, send: Any) -> None:
        """200 once all that is deployed is loaded, or known as unloadable, which is named."""
        loading, ready = self.watcher.loading, self._is_ready()
        told = {
            "status": "ok" if ready else "waiting", "loading": sorted(map(str, loading)),
            "unloadable": sorted(map(str, self.watcher.unloadable)),
        }  # fmt: skip
        await send_json(send, 200 if ready else 503, told)

    async def _predict(self, scope: dict[str, Any], receive: Any, send: Any, name: str) -> None:
        require_post(scope)
        headers = dict(scope["headers"])
        bearer = bearer_of(headers)
        permit = await self.gate.admitted(bearer, Target(name, organization_in(scope)))
        self.rate.take(bearer)
        require_json(headers)
        rows, key = question_of(await body_of(receive))
        await self._tell(send, await self.answering.answer(permit, rows, key, receive), rows)

    async def _tell(self, send: Any, answer: Answer, rows: Rows) -> None:
        """Send the answer; the shadows get their copies when it is on its way."""
        try:
            await send_json(send, 200, answer.to_dict())
        finally:
            self._tell_shadows(answer, rows)

    def _tell_shadows(self, answer: Answer, rows: Rows) -> None:
        if answer.served.shadows:
            self.shadows.offer(answer.served, answer.request_id, rows, answer.recorded)

    async def _internal(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """What the web process asks for a caller whom it has let in."""
        _require_secret(scope)
        if scope["path"] == RATE:
            require_post(scope)
            self.rate.take(bearer_of(dict(scope["headers"])))
            await send_bytes(send, 204, [], b"")
            return
        matched = INTERNAL.fullmatch(scope["path"])
        if matched is None:
            raise NotFoundHere
        require_post(scope)
        kind, identifier, verb = matched[1], UUID(matched[2]), matched[3]
        if b"authorization" in (headers := dict(scope["headers"])):  # not that of a person at a page
            self.rate.take(bearer_of(headers))
        body = await body_of(receive)
        if kind == "deployments" and verb == "predict":
            told = parsed(body)
            permit = Permit(identifier, told["revision"])
            rows = told["instances"]
            await self._tell(send, await self.answering.answer(permit, rows, told["key"], receive), rows)
        elif kind == "versions" and verb == "predict":
            predictions = await self.answering.predict(identifier, parsed(body)["instances"], receive)
            await send_json(send, 200, {"predictions": predictions})
        elif kind == "versions":
            await stream_text(send, receive, identifier, parsed(body), self.models)
        else:
            told = parsed(body)
            permit, row = Permit(identifier, told["revision"]), told["instance"]
            answer = await stream_answer(send, receive, self.answering, permit, row, told["key"], self.models)
            self._tell_shadows(answer, [row])


def _require_secret(scope: dict[str, Any]) -> None:
    """Raises NotAuthenticated for who is not a process of this installation."""
    given: bytes = dict(scope["headers"]).get(SECRET, b"")
    if not hmac.compare_digest(given, shared_secret().encode()):
        raise NotAuthenticated
