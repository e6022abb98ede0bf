"""REST API of language models: texts, streamed while they are written."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import orjson
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.views import APIView

from dlplatform.accounts.access import require
from dlplatform.api import Conflict, Strict, documented

from . import availability
from .api import visible_version
from .serving import client

LANGUAGE = "language-model"


class MessageIn(Strict):
    role = serializers.ChoiceField(choices=["system", "user", "assistant"])
    content = serializers.CharField(max_length=100_000, trim_whitespace=False, allow_blank=True)


class GenerateIn(Strict):
    prompt = serializers.CharField(
        required=False, max_length=100_000, allow_blank=True, trim_whitespace=False, help_text="The text to go on from"
    )
    # As a list field its own errors are those of `messages`; a nested serializer would call them `non_field_errors`.
    messages = serializers.ListField(
        child=MessageIn(), required=False, allow_empty=False, help_text="A chat to go on with, instead of a prompt",
        error_messages={
            "not_a_list": "Give a list of messages with role and content.",
            "empty": "Give at least one message, or leave this out and give a prompt.",
        },
    )  # fmt: skip
    max_tokens = serializers.IntegerField(required=False, min_value=1, max_value=2048, help_text="Default: 128")
    temperature = serializers.FloatField(
        required=False, min_value=0, max_value=5, help_text="0 takes the likeliest token; default: 0.8"
    )
    top_k = serializers.IntegerField(required=False, min_value=0, max_value=1_000_000, help_text="Default: 50; 0: all")
    seed = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1, help_text="Default: 0")


class VersionGenerateView(APIView):
    policy = {"POST": "predict"}

    @documented(
        "Write a text with a language model", request=GenerateIn, answer=OpenApiTypes.STR, tags=["predictions"],
        description="Server-sent events while the text is written: `data: {\"text\": \"…\"}` for each piece, then "
                    "`data: {\"done\": true}`; `data: {\"error\": \"…\"}` when it cannot go on.",
        example=({"prompt": "Once upon a time", "max_tokens": 64}, 'data: {"text": " there was"}'),
    )  # fmt: skip
    def post(self, request: Request, version: UUID) -> StreamingHttpResponse:
        found = visible_version(request, version)
        require(request.user, "predict", found)
        availability.require_files(found)
        if found.task != LANGUAGE:
            raise Conflict("This model writes no texts; ask it for predictions.", code="not_a_language_model")
        given = GenerateIn(data=request.data)
        given.is_valid(raise_exception=True)
        return streamed(client.generate(found.pk, dict(given.validated_data), bearer=request.auth))


def streamed(told: AsyncIterator[dict[str, Any]]) -> StreamingHttpResponse:
    """What `client.generate` tells, as server-sent events."""
    response = StreamingHttpResponse(_events(told), content_type="text/event-stream")
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    return response


async def _events(told: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for one in told:
            yield _event(one)
    # The headers are out: what goes wrong from here on is told as an event.
    except Exception as error:
        yield _event({"error": _told(error)})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _told(error: Exception) -> str:
    if isinstance(error, client.PredictionRefused):
        return "; ".join(error.messages)
    detail = getattr(error, "detail", None)
    return str(detail) if detail else "The model cannot be asked now; try again."
