"""Where the tensors of a safetensors file lie, read from its header alone. The file may come from anybody.

A file is an 8-byte length, that many bytes of JSON, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors, "Format"). Whatever deviates has no layout here and is stored in one piece.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

SLICE = 8 * 1024 * 1024
MOST_HEADER = 8 * 1024 * 1024
MOST_TENSORS = 20_000
METADATA = "__metadata__"
PREFIX = 8
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor: ``start`` counts from the first byte of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Region:
    """A part of a file that becomes one object. ``key`` finds the same part in another version of the file."""

    start: int
    size: int
    width: int
    key: tuple[str, str, int]


def header_length(prefix: bytes, file_size: int) -> int | None:
    """Length of the JSON header in bytes, or None when the file cannot be safetensors."""
    if len(prefix) < PREFIX:
        return None
    length = int.from_bytes(prefix[:PREFIX], "little")
    return length if 2 <= length <= min(MOST_HEADER - PREFIX, file_size - PREFIX) else None


def regions(header: bytes, file_size: int) -> list[Region] | None:
    """The regions of a file, in order and without gaps: the header, then tensors or slices of them.

    ``header`` is the JSON text without its prefix. None when the file is not laid out as the format says.
    """
    tensors = _tensors(header)
    if tensors is None:
        return None
    end = PREFIX + len(header)
    found = [Region(0, end, 1, ("", "", 0))]
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != end:
            return None
        end += tensor.size
        found += _slices(tensor)
    return found if end == file_size else None


def fixed_slices(file_size: int) -> list[Region]:
    """Regions of equal size of a file that is not safetensors."""
    starts = range(0, file_size, SLICE)
    return [Region(start, min(SLICE, file_size - start), 1, ("", "", start // SLICE)) for start in starts]


def _slices(tensor: Tensor) -> Iterator[Region]:
    """A small tensor whole, a large one in slices of whole rows, so that a changed row costs its slice."""
    width = WIDTHS[tensor.dtype]
    step = _rows_in_slice(tensor, width)
    for index, offset in enumerate(range(0, tensor.size, step)):
        size = min(step, tensor.size - offset)
        yield Region(tensor.start + offset, size, width, (tensor.name, tensor.dtype, index))


def _rows_in_slice(tensor: Tensor, width: int) -> int:
    """Bytes of a slice: as many whole rows as fit, or whole items when a row is larger than a slice."""
    row = prod(tensor.shape[1:]) * width
    return SLICE // row * row if 0 < row <= SLICE else SLICE // width * width


def _tensors(header: bytes) -> list[Tensor] | None:
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entries, dict) or len(entries) > MOST_TENSORS:
        return None
    entries.pop(METADATA, None)
    tensors = [_tensor(name, entry, PREFIX + len(header)) for name, entry in entries.items()]
    found = [tensor for tensor in tensors if tensor is not None]
    return found if len(found) == len(tensors) else None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name twice")
    return content


def _tensor(name: str, entry: Any, data_start: int) -> Tensor | None:
    """None for whatever is not an entry whose offsets fit its type and shape."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and dtype in WIDTHS and _counts(shape) and _counts(offsets) and len(offsets) == 2):
        return None
    begin, end = offsets
    if end < begin or prod(shape) * WIDTHS[dtype] != end - begin:
        return None
    return Tensor(name, dtype, tuple(shape), data_start + begin, end - begin)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= 64 and all(type(v) is int and 0 <= v < 2**63 for v in values)
