"""Language-model deployments as OpenAI's API shows models: `/v1/models`, `/v1/completions`, `/v1/chat/completions`."""

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from typing import Any

import orjson
from rest_framework.exceptions import ValidationError

from dlplatform.accounts.models import User
from dlplatform.accounts.organizations import resolve
from registry.serving.batching import Rows
from registry.serving.client import PredictionRefused
from registry.serving.models import Deployment

from .answering import Answering, parsed
from .errors import NotFoundHere, code_of, refusal
from .gate import Gate, Permit, Target, bearer_of
from .generation import LANGUAGE, ToldAlready, Usage, WritesNoTexts, pieces
from .http import ClientGone, ReaderLeft, body_of, require_post, send_bytes, send_json
from .models import Models
from .openai_questions import Question, Stopping, question_of
from .rate_limit import RateLimit

PATH = re.compile(r"/v1/(models|completions|chat/completions)(?:/([^/]{1,200}))?/?")
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
logger = logging.getLogger(__name__)
Listed = tuple[dict[str, Any], ...]


def language_deployments(user: User, target: Target) -> Listed:
    """The language models that a caller may ask, of one organization if the target names one."""
    rows = Deployment.objects.visible_to(user).filter(
        state=Deployment.State.ACTIVE, variants__removed_at=None, variants__version__task=LANGUAGE
    )
    if target.organization is not None:
        rows = rows.filter(organization=resolve(user, target.organization))
    found = rows.select_related("organization").distinct().order_by("-created_at")
    return tuple(
        {
            "id": row.name,
            "object": "model",
            "created": int(row.created_at.timestamp()),
            "owned_by": row.organization.slug,
        }
        for row in found
    )


class OpenAIApi:
    """Answers below `/v1`. The model is a deployment by its name; the organization may come as `OpenAI-Organization`."""

    def __init__(
        self, answering: Answering, gate: Gate[Permit], threads: Executor, rate: RateLimit, models: Models,
        tell_shadows: Any,
    ) -> None:  # fmt: skip
        self._answering = answering
        self._gate = gate
        self._lists: Gate[Listed] = Gate(threads, language_deployments)
        self._rate = rate
        self._models = models
        self._tell_shadows = tell_shadows

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any, verb: str, name: str | None) -> None:
        try:
            if verb == "models":
                await self._listed(scope, send, name)
            else:
                await self._written(scope, receive, send, chat=verb.startswith("chat"))
        except ClientGone:
            raise
        except ToldAlready:
            logger.warning("writing a text failed", exc_info=True)
        except Exception as error:
            await send_bytes(send, *_refused(error))

    async def _listed(self, scope: dict[str, Any], send: Any, name: str | None) -> None:
        headers = dict(scope["headers"])
        listed = await self._lists.admitted(bearer_of(headers), Target("", _organization(headers)))
        if name is None:
            await send_json(send, 200, {"object": "list", "data": listed})
            return
        for one in listed:
            if one["id"] == name:
                await send_json(send, 200, one)
                return
        raise NotFoundHere

    async def _written(self, scope: dict[str, Any], receive: Any, send: Any, *, chat: bool) -> None:
        require_post(scope)
        headers = dict(scope["headers"])
        bearer = bearer_of(headers)
        await self._lists.admitted(bearer, Target("", _organization(headers)))  # nobody's body is read
        question = question_of(parsed(await body_of(receive)), chat=chat)
        permit = await self._gate.admitted(bearer, Target(question.model, _organization(headers)))
        self._rate.take(bearer)
        served = await self._answering.served(permit)
        variant = served.choose(question.key)
        if variant.task != LANGUAGE:
            raise WritesNoTexts
        row = question.instance | ({} if "seed" in question.instance else {"seed": random.randrange(2**31)})  # noqa: S311
        leaving = asyncio.ensure_future(receive())
        try:
            async with self._answering.record(served, variant, [row], question.key) as record:
                usage = Usage()
                texts = pieces(variant.version, row, self._models, leaving.done, usage)
                answer = _Answer(question, str(record.request_id), usage)
                if question.stream:
                    text = await _streamed(send, answer, texts)
                else:
                    text = "".join([piece async for piece in answer.of(texts)])
                record.predictions = [{"text": text}]
            if not question.stream:
                await send_json(send, 200, answer.whole(text))
        finally:
            leaving.cancel()
        rows: Rows = [row]
        self._tell_shadows(record.answer, rows)


async def _streamed(send: Any, answer: "_Answer", texts: AsyncGenerator[str, None]) -> str:
    """Send the pieces as events while they come; the whole text. An error before the first is raised as it is, a later
    one is sent, and raised as ToldAlready."""
    written = answer.of(texts)
    first = await anext(written, "")
    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    told = [first]
    await _send_event(send, answer.piece(first, opening=True))
    try:
        async for piece in written:
            told.append(piece)
            await _send_event(send, answer.piece(piece))
    except ClientGone:
        raise ReaderLeft from None
    except Exception as error:
        await _send_event(send, orjson.loads(_refused(error)[2]))
        await send({"type": "http.response.body", "body": b""})
        raise ToldAlready(code_of(error)) from error
    for last in answer.ending():
        await _send_event(send, last)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    return "".join(told)


async def _send_event(send: Any, event: dict[str, Any]) -> None:
    await send({"type": "http.response.body", "body": b"data: " + orjson.dumps(event) + b"\n\n", "more_body": True})


class _Answer:
    """The shapes of one answer: whole, or in pieces."""

    def __init__(self, question: Question, request_id: str, usage: Usage) -> None:
        self._question = question
        self._usage = usage
        self._stopped = False
        kind = "chat.completion" if question.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if question.chat else 'cmpl'}-{request_id}", "created": int(time.time()),
            "model": question.model, "object": kind + (".chunk" if question.stream and question.chat else ""),
        }  # fmt: skip

    async def of(self, texts: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The pieces up to the first stop sequence."""
        stopping = Stopping(self._question.stop)
        try:
            async for piece in texts:
                if told := stopping.feed(piece):
                    yield told
                if stopping.stopped:
                    self._stopped = True
                    return
            if rest := stopping.rest():
                yield rest
        finally:
            await texts.aclose()

    def whole(self, text: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self._question.chat else {"text": text}
        return self._with([{"index": 0, **said, "finish_reason": self._reason, "logprobs": None}]) | {
            "usage": self._used
        }

    def piece(self, text: str, *, opening: bool = False) -> dict[str, Any]:
        if not self._question.chat:
            return self._with([{"index": 0, "text": text, "finish_reason": None, "logprobs": None}])
        delta = {"role": "assistant", "content": text} if opening else {"content": text}
        return self._with([{"index": 0, "delta": delta, "finish_reason": None}])

    def ending(self) -> list[dict[str, Any]]:
        last: dict[str, Any] = {"delta": {}} if self._question.chat else {"text": "", "logprobs": None}
        events = [self._with([{"index": 0, **last, "finish_reason": self._reason}])]
        if self._question.include_usage:
            events.append(self._with([]) | {"usage": self._used})
        return events

    def _with(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "choices": choices}

    @property
    def _reason(self) -> str:
        return "stop" if self._stopped or self._usage.whole else "length"

    @property
    def _used(self) -> dict[str, int]:
        prompt, tokens = self._usage.prompt_tokens, self._usage.tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def _organization(headers: dict[bytes, bytes]) -> str | None:
    given = headers.get(b"openai-organization", b"").decode("latin-1").strip()
    return given or None


def _refused(error: Exception) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """An error in OpenAI's form."""
    if isinstance(error, PredictionRefused):
        error = ValidationError({"messages" if "messages" in error.message_dict else "prompt": error.messages})
    status, headers, body = refusal(error)
    first = orjson.loads(body)["errors"][0]
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    told = {"message": first["detail"], "type": kind, "param": first["attr"], "code": first["code"]}
    return status, headers, orjson.dumps({"error": told})
