"""The Open Inference Protocol V2 over HTTP, as KServe and Triton speak it: models are deployments, inputs their columns.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensors.
"""

import base64
import math
import re
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import orjson
from rest_framework.exceptions import APIException

from registry.serving.batching import Rows

from . import repository
from .answering import MOST_ROWS, Answer, Answering, parsed
from .deployments import Served, ServedVariant
from .errors import NotFoundHere, refusal
from .gate import Gate, Permit, Target, bearer_of
from .http import JSON, ClientGone, Headers, body_of, organization_in, require_post, send_bytes, send_json
from .models import Models
from .rate_limit import RateLimit
from .tensors import Array, BinaryTail, TensorError, encoded, output_of, packed, split, unpacked, values_of

PATH = re.compile(r"(?:/([A-Za-z0-9_-]{1,60}))?/v2(/.*)?")
MODEL = re.compile(r"/models/([^/]{1,200})(?:/versions/([^/]{1,20}))?(?:/(ready|infer))?/?")
LENGTH = b"inference-header-content-length"
DATATYPES = {"number": "FP64", "integer": "INT64", "boolean": "BOOL"}  # BYTES for all other columns
STATISTICS = re.compile(r"/models(?:/([^/]{1,200})(?:/versions/([^/]{1,20}))?)?/stats/?")
LOADING = re.compile(r"/repository/models/[^/]{1,200}/(?:load|unload)/?")
EXTENSIONS = ["binary_tensor_data", "parameters", "model_repository", "statistics"]


class BadTensor(APIException):
    status_code = 400
    default_code = "invalid"


class NotByProtocol(APIException):
    status_code = 400
    default_code = "not_supported"
    default_detail = "What is served is what is deployed: deploy a version, or archive the deployment."


class NotReady(APIException):
    status_code = 503
    default_code = "not_ready"
    default_detail = "The model is being loaded."


@dataclass(frozen=True)
class Asked:
    """The deployment that a request names, and the variant if it names a version."""

    permit: Permit
    served: Served
    named: ServedVariant | None

    @property
    def shown(self) -> ServedVariant:
        """The variant whose inputs and outputs are told."""
        return self.named or self.served.telling


class InferenceProtocol:
    """Answers everything below `/v2`, and below `/{organization}/v2`."""

    def __init__(
        self, answering: Answering, gate: Gate[Permit], threads: Executor, rate: RateLimit, models: Models, ready: Any,
        tell_shadows: Any,
    ) -> None:  # fmt: skip
        self._answering = answering
        self._gate = gate
        self._lists: Gate[tuple[UUID, ...]] = Gate(threads, repository.to_ask)
        self._rate = rate
        self._models = models
        self._ready = ready
        self._tell_shadows = tell_shadows

    async def __call__(
        self, scope: dict[str, Any], receive: Any, send: Any, organization: str | None, path: str
    ) -> None:
        try:
            await self._route(scope, receive, send, organization, path)
        except ClientGone:
            raise
        except Exception as error:
            told: Exception = BadTensor(str(error)) if isinstance(error, TensorError) else error
            status, headers, body = refusal(told)
            first = orjson.loads(body)["errors"][0]
            where = f"{first['attr']}: " if first["attr"] else ""
            await send_bytes(send, status, headers, orjson.dumps({"error": where + first["detail"]}))

    async def _route(self, scope: dict[str, Any], receive: Any, send: Any, organization: str | None, path: str) -> None:
        if path in ("", "/"):
            await send_json(send, 200, {"name": "DL Platform", "version": "1", "extensions": EXTENSIONS})
        elif path == "/health/live":
            await send_json(send, 200, {"live": True})
        elif path == "/health/ready":
            ready = self._ready()
            await send_json(send, 200 if ready else 503, {"ready": ready})
        elif path.rstrip("/") == "/repository/index":
            require_post(scope)
            served = await self._visible(scope, organization)
            told = parsed(await body_of(receive) or b"{}")
            wanted = isinstance(told, dict) and told.get("ready") is True
            await send_json(send, 200, repository.index(served, self._models, ready_only=wanted))
        elif LOADING.fullmatch(path) is not None:
            require_post(scope)
            bearer_of(dict(scope["headers"]))
            raise NotByProtocol
        elif (matched := STATISTICS.fullmatch(path)) is not None:
            await self._statistics(scope, send, organization, matched)
        elif (matched := MODEL.fullmatch(path)) is not None:
            await self._model(scope, receive, send, organization, matched)
        else:
            raise NotFoundHere

    async def _visible(self, scope: dict[str, Any], organization: str | None) -> list[Served]:
        """What is served of all that the caller may ask."""
        bearer = bearer_of(dict(scope["headers"]))
        ids = await self._lists.admitted(bearer, Target("", organization_in(scope) or organization))
        self._rate.take(bearer)
        return self._answering.served_of(ids)

    async def _statistics(
        self, scope: dict[str, Any], send: Any, organization: str | None, matched: re.Match[str]
    ) -> None:
        if matched[1] is None:
            served = await self._visible(scope, organization)
        else:
            bearer = bearer_of(dict(scope["headers"]))
            permit = await self._gate.admitted(bearer, Target(matched[1], organization_in(scope) or organization))
            self._rate.take(bearer)
            served = [(await self._asked(permit, matched[2])).served]
        told = repository.statistics(served, self._answering.metrics)
        if matched[2] is not None:
            told["model_stats"] = [line for line in told["model_stats"] if line["version"] == matched[2]]
        await send_json(send, 200, told)

    async def _model(
        self, scope: dict[str, Any], receive: Any, send: Any, organization: str | None, matched: re.Match[str]
    ) -> None:
        headers = dict(scope["headers"])
        bearer = bearer_of(headers)
        permit = await self._gate.admitted(bearer, Target(matched[1], organization_in(scope) or organization))
        asked = await self._asked(permit, matched[2])
        if matched[3] == "infer":
            require_post(scope)
            self._rate.take(bearer)
            await self._infer(asked, headers, receive, send)
        elif matched[3] == "ready":
            self._require_ready(asked)
            await send_json(send, 200, {"name": asked.served.name, "ready": True})
        else:
            await send_json(send, 200, _metadata(asked))

    async def _asked(self, permit: Permit, number: str | None) -> Asked:
        served = await self._answering.served(permit)
        if number is None:
            return Asked(permit, served, None)
        named = [one for one in served.live.values() if str(one.number) == number]
        if not named:
            raise NotFoundHere(f"No live variant of “{served.name}” is version {number}.")
        if len(named) > 1:
            raise BadTensor(f"Several models of “{served.name}” have a version {number}; leave the version out.")
        return Asked(permit, served, named[0])

    def _require_ready(self, asked: Asked) -> None:
        versions = {asked.named.version} if asked.named else asked.served.answering
        if not all(self._models.ready(version) for version in versions):
            raise NotReady

    async def _infer(self, asked: Asked, headers: dict[bytes, bytes], receive: Any, send: Any) -> None:
        encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        body = unpacked(await body_of(receive), encoding)
        length = headers[LENGTH].decode("latin-1") if LENGTH in headers else None
        told, content = split(body, length)
        parameters: dict[str, Any] = told["parameters"] if isinstance(told.get("parameters"), dict) else {}
        rows = rows_of(told.get("inputs"), content, asked.shown)
        answer = await self._answering.answer(asked.permit, rows, _key(parameters), receive, asked.named)
        try:
            accepted = headers.get(b"accept-encoding", b"").decode("latin-1")
            await send_bytes(send, 200, *_answered(asked, told, parameters, answer, accepted))
        finally:
            self._tell_shadows(answer, rows)


def _key(parameters: dict[str, Any]) -> str | None:
    """Whom the answer is for, as in the platform's own API: the request parameter `key`."""
    key = parameters.get("key")
    if key is None:
        return None
    key = str(key).strip()
    if not 0 < len(key) <= 200 or not key.isprintable():
        raise TensorError("The parameter `key` is a text of 1 to 200 characters.")
    return key


def rows_of(inputs: Any, content: bytes, variant: ServedVariant) -> Rows:
    """The rows of a request: one input for each column, of shape [rows] or [rows, 1]. Raises TensorError.

    NaN is a missing value. Of an image, the bytes of the file, or in JSON its base64.
    """
    if not isinstance(inputs, list) or not inputs:
        raise TensorError("The request has no inputs.")
    types = {column["name"]: column["type"] for column in variant.inputs}
    tail, columns = BinaryTail(content), {}
    for tensor in inputs:
        name, kind, shape, values = values_of(tensor, tail)
        if name not in types:
            raise TensorError(f"The model has no input {name[:80]!r}; its inputs are {', '.join(list(types)[:20])}.")
        if name in columns:
            raise TensorError(f"The input {name[:80]!r} comes twice.")
        if not shape or math.prod(shape[1:]) != 1:
            raise TensorError(f"The input {name[:80]!r} has the shape {shape}; it is [rows] or [rows, 1].")
        columns[name] = _cells(name, kind, types[name], values)
    tail.end()
    counts = {len(values) for values in columns.values()}
    if len(counts) != 1 or not 0 < min(counts) <= MOST_ROWS:
        raise TensorError(f"All inputs have the same number of rows, from 1 to {MOST_ROWS:,}; here {sorted(counts)}.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _cells(name: str, kind: str, type_: str, values: list[Any]) -> list[Any]:
    """Values as the platform's own API takes them."""
    if (kind == "BYTES") == (type_ in DATATYPES):
        raise TensorError(f"The input {name[:80]!r} is {DATATYPES.get(type_, 'BYTES')}, not {kind}.")
    if type_ in DATATYPES:
        return [None if isinstance(one, float) and math.isnan(one) else one for one in values]
    return [_text(name, type_, one) for one in values]


def _text(name: str, type_: str, value: str | bytes) -> str:
    """A text comes as bytes in the binary form, and in JSON as it is, where it may hold half a surrogate pair."""
    if isinstance(value, bytes) and type_ == "image":
        return base64.b64encode(value).decode()
    try:
        return value.decode() if isinstance(value, bytes) else value.encode().decode()
    except UnicodeError:
        raise TensorError(f"The input {name[:80]!r} holds what is no UTF-8.") from None


# --- outputs ------------------------------------------------------------------------------------------


def outputs_of(predictions: Rows) -> dict[str, Array]:
    """Arrays by output name: `label` and `probabilities`, `labels` (joined by semicolons) and `probabilities`, `value`,
    `values` [rows, targets], or `text`."""
    first = predictions[0]
    found: dict[str, Array] = {}
    for name in ("label", "text"):
        if name in first:
            found[name] = np.array([str(one[name]) for one in predictions], object)
    if "labels" in first:
        found["labels"] = np.array([";".join(map(str, one["labels"])) for one in predictions], object)
    if "value" in first:
        found["value"] = np.array([one["value"] for one in predictions], np.float64)
    for name in ("values", "probabilities"):
        if name in first:
            found[name] = np.array([list(one[name].values()) for one in predictions], np.float64)
    return found


def _answered(
    asked: Asked, told: dict[str, Any], parameters: dict[str, Any], answer: Answer, accepted: str
) -> tuple[Headers, bytes]:
    arrays = outputs_of(answer.predictions)
    wanted = _wanted(told.get("outputs"), parameters, list(arrays))
    parts = [output_of(name, arrays[name], binary) for name, binary in wanted]
    shown = {
        "model_name": asked.served.name, "model_version": str(answer.variant.number),
        "parameters": {"request_id": str(answer.request_id), "variant": str(answer.variant.id)},
        **({"id": told["id"]} if "id" in told else {}), "outputs": [part for part, _ in parts],
    }  # fmt: skip
    head = encoded(shown)
    content = b"".join(part for _, part in parts)
    binary = any(binary for _, binary in wanted)
    body, encoding = packed(head + content, accepted)
    headers = [(b"content-type", b"application/octet-stream"), (LENGTH, b"%d" % len(head))] if binary else [JSON]
    return [*headers, *([(b"content-encoding", encoding.encode())] if encoding else [])], body


def _wanted(outputs: Any, parameters: dict[str, Any], names: list[str]) -> list[tuple[str, bool]]:
    """(name, whether binary) of the outputs that are asked for, all by default. Raises TensorError."""
    usual = parameters.get("binary_data_output") is True
    if not outputs:
        return [(name, usual) for name in names]
    if not isinstance(outputs, list):
        raise TensorError("outputs is a list of objects with names.")
    wanted = []
    for one in outputs:
        name = one.get("name") if isinstance(one, dict) else None
        if name not in names:
            raise TensorError(f"The model has no output {str(name)[:80]!r}; its outputs are {', '.join(names)}.")
        own = one.get("parameters") if isinstance(one.get("parameters"), dict) else {}
        wanted.append((name, own.get("binary_data", usual) is True))
    return wanted


def _metadata(asked: Asked) -> dict[str, Any]:
    variant = asked.shown
    inputs = [
        {"name": column["name"], "datatype": DATATYPES.get(column["type"], "BYTES"), "shape": [-1, 1]}
        for column in variant.inputs
    ]
    versions = sorted({one.number for one in asked.served.live.values()})
    return {
        "name": asked.served.name, "versions": [str(number) for number in versions], "platform": "dl-platform",
        "inputs": inputs, "outputs": _described_outputs(variant.output),
    }  # fmt: skip


def _described_outputs(output: dict[str, Any]) -> list[dict[str, Any]]:
    kind, names = output.get("kind"), [str(name) for name in output.get("classes", ())]
    wide = {"datatype": "FP64", "shape": [-1, len(names)], "parameters": {"names": orjson.dumps(names).decode()}}
    if kind == "number":
        return [{"name": "value", "datatype": "FP64", "shape": [-1]}]
    if kind == "numbers":
        return [{"name": "values", **wide}]
    if kind == "text":
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    label = "labels" if kind == "labels" else "label"
    return [{"name": label, "datatype": "BYTES", "shape": [-1]}, {"name": "probabilities", **wide}]
