"""Tensors of the Open Inference Protocol V2, in JSON and in its binary extension: pure functions on numpy arrays."""

import gzip
import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import orjson

# {datatype: numpy's little-endian type}; BYTES and BF16 have none
DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
BF16, BYTES = "BF16", "BYTES"
MOST_UNPACKED = 64 * 1024 * 1024

Array = np.ndarray[Any, Any]


class TensorError(ValueError):
    """A sentence that says which tensor is wrong, and how."""


def split(body: bytes, header: str | None) -> tuple[dict[str, Any], bytes]:
    """(JSON part, binary part) of a body, by the `Inference-Header-Content-Length` header. Raises TensorError."""
    length = len(body)
    if header is not None:
        if not (header.isascii() and header.isdecimal()) or int(header[:12]) > len(body):
            raise TensorError("Inference-Header-Content-Length is no length within the body.")
        length = int(header)
    try:
        told = orjson.loads(body[:length])
    except orjson.JSONDecodeError:
        told = _lenient(body[:length])
    if not isinstance(told, dict):
        raise TensorError("The request is a JSON object with `inputs`.")
    return told, body[length:]


def _lenient(text: bytes) -> Any:
    """JSON with the bare NaN and Infinity that clients of this protocol write."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TensorError(f"The request is no JSON that can be read: {str(error)[:200]}.") from None


def unpacked(body: bytes, encoding: str) -> bytes:
    """The body as it was before `Content-Encoding: gzip` or `deflate`. Raises TensorError, also for a bomb."""
    if encoding in ("", "identity"):
        return body
    windows = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
    if encoding not in windows:
        raise TensorError(f"The Content-Encoding {encoding[:40]!r} is not known; there are gzip and deflate.")
    reader = zlib.decompressobj(windows[encoding])
    try:
        content = reader.decompress(body, MOST_UNPACKED)
    except zlib.error as error:
        raise TensorError(f"The body is not {encoding}: {error}.") from None
    if reader.unconsumed_tail or not reader.eof:
        raise TensorError(f"The body is cut off, or longer than {MOST_UNPACKED:,} bytes when unpacked.")
    return content


def packed(body: bytes, accepted: str) -> tuple[bytes, str]:
    """(body, encoding) for an `Accept-Encoding` header; encoding is empty where nothing is compressed."""
    names = {part.partition(";")[0].strip().lower() for part in accepted.split(",")}
    if "gzip" in names:
        return gzip.compress(body, compresslevel=1), "gzip"
    if "deflate" in names:
        return zlib.compress(body, level=1), "deflate"
    return body, ""


class BinaryTail:
    """The bytes after the JSON part, taken in the order of the tensors that name their size."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    def take(self, name: str, size: Any) -> memoryview:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(self._content):
            raise TensorError(f"The tensor {name!r}: binary_data_size is no size within the body.")
        taken, self._content = self._content[:size], self._content[size:]
        return taken

    def end(self) -> None:
        if len(self._content):
            raise TensorError(f"{len(self._content)} bytes at the end of the body belong to no tensor.")


def values_of(tensor: Any, tail: BinaryTail) -> tuple[str, str, list[int], list[Any]]:
    """(name, datatype, shape, values) of an input, values flat in row-major order: numbers, booleans, or bytes or texts.

    Raises TensorError.
    """
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise TensorError("Each input is an object with name, shape, datatype and data.")
    name, kind, shape = tensor["name"], tensor.get("datatype"), tensor.get("shape")
    if kind not in DTYPES and kind not in (BF16, BYTES):
        raise TensorError(f"The tensor {name[:80]!r} has a datatype that is not known: {str(kind)[:40]!r}.")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise TensorError(f"The tensor {name[:80]!r}: shape is a list of sizes.")
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    values = (
        _from_json(name, kind, tensor.get("data")) if size is None else _from_binary(name, kind, tail.take(name, size))
    )
    if len(values) != math.prod(shape):
        raise TensorError(f"The tensor {name[:80]!r} of shape {shape} has {len(values)} values.")
    return name, str(kind), shape, values


def _from_json(name: str, kind: str, data: Any) -> list[Any]:
    if kind == BF16:
        raise TensorError(f"The tensor {name[:80]!r}: BF16 comes in the binary form only.")
    if not isinstance(data, list):
        raise TensorError(f"The tensor {name[:80]!r} has neither data nor a binary_data_size.")
    values = _flat(data)
    if strange := set(map(type, values)) - _types_of(kind):
        raise _no_value(name, kind, next(one for one in values if type(one) in strange))
    return _within(name, kind, values)


def _types_of(kind: str) -> set[type]:
    """What JSON may hold for a datatype. Types are compared, for to Python true is a number."""
    if kind == BYTES:
        return {str}
    if kind == "BOOL":
        return {bool, int}
    return {int} if "INT" in kind else {int, float}


def _within(name: str, kind: str, values: list[Any]) -> list[Any]:
    """The values, true and false for 0 and 1 of a BOOL; TensorError for a number that the datatype does not have.

    The least and the greatest are found without Python's interpreter, which a large tensor would hold up.
    """
    if not values or not (kind == "BOOL" or "INT" in kind):
        return values
    low, high = (0, 1) if kind == "BOOL" else (int(np.iinfo(DTYPES[kind]).min), int(np.iinfo(DTYPES[kind]).max))
    for extreme in (min(values), max(values)):
        if not low <= extreme <= high:
            raise _no_value(name, kind, extreme, f": {'true, false, 0 or 1' if kind == 'BOOL' else f'{low} to {high}'}")
    return list(map(bool, values)) if kind == "BOOL" else values


def _no_value(name: str, kind: str, value: Any, wanted: str = "") -> TensorError:
    return TensorError(f"The tensor {name[:80]!r} holds {_written(value)}, which is no {kind}{wanted}.")


def _written(value: Any) -> str:
    """As JSON writes it; its beginning where it is long."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer with too many digits to be written
        return "a number of thousands of digits"
    return text if len(text) <= 40 else f"{text[:40]}…"


def _flat(data: list[Any]) -> list[Any]:
    while data and isinstance(data[0], list):
        if not all(isinstance(part, list) for part in data):
            raise TensorError("A nested list of data is uneven.")
        data = [one for part in data for one in part]
    return data


def _from_binary(name: str, kind: str, content: memoryview) -> list[Any]:
    if kind == BYTES:
        return _texts(name, content)
    try:
        if kind == BF16:
            wide = np.frombuffer(content, "<u2").astype("<u4") << 16
            return list(wide.view("<f4").tolist())
        return list(np.frombuffer(content, DTYPES[kind]).tolist())
    except ValueError:
        raise TensorError(f"The tensor {name[:80]!r}: its bytes are no whole number of {kind}.") from None


def _texts(name: str, content: memoryview) -> list[bytes]:
    found, at = [], 0
    while at < len(content):
        if at + 4 > len(content):
            raise TensorError(f"The tensor {name[:80]!r} is cut off.")
        (length,) = struct.unpack_from("<I", content, at)
        if at + 4 + length > len(content):
            raise TensorError(f"The tensor {name[:80]!r} is cut off.")
        found.append(bytes(content[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def output_of(name: str, array: Array, binary: bool) -> tuple[dict[str, Any], bytes]:
    """(JSON of an output, its bytes): an array of float64, int64, bool, or of texts (object)."""
    kinds = {"f": "FP64", "i": "INT64", "b": "BOOL", "O": BYTES}
    told: dict[str, Any] = {"name": name, "datatype": kinds[array.dtype.kind], "shape": list(array.shape)}
    if not binary:
        return told | {"data": array.ravel().tolist()}, b""
    content = _text_bytes(array) if array.dtype.kind == "O" else np.ascontiguousarray(array).tobytes()
    return told | {"parameters": {"binary_data_size": len(content)}}, content


def _text_bytes(array: Array) -> bytes:
    texts = [one.encode() for one in array.ravel().tolist()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def encoded(told: dict[str, Any]) -> bytes:
    """JSON, with the bare NaN and Infinity of this protocol where a number is not finite."""
    return json.dumps(told, separators=(",", ":")).encode()
