"""The header of a safetensors file from outside: read and checked before anything of the size that it promises is allocated.

https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import orjson
import torch
from torch import Tensor

from dlplatform.engine.description import MODEL
from dlplatform.engine.errors import PackageError

MAXIMUM_BYTES: Final = 16 << 30
MAXIMUM_HEADER: Final = 16 << 20
# By dtype the format's name of it, and bytes of a number.
DTYPES: Final = {
    torch.float32: ("F32", 4), torch.int64: ("I64", 8), torch.bfloat16: ("BF16", 2), torch.int8: ("I8", 1),
}  # fmt: skip


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes in a safetensors file, whose layout is checked against its size.

    Raises PackageError.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start, first = file.read(8), file.read(1)
        # The length of a good header may begin with the same bytes as a pickle; its JSON does not.
        if first != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
            raise PackageError(f"{path.name} is a pickle or a zip archive, not a safetensors file.")
        if size > MAXIMUM_BYTES:
            raise PackageError(f"{path.name} is larger than {MAXIMUM_BYTES >> 30} GB.")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAXIMUM_HEADER, size - 8):
            raise PackageError(f"{path.name} is not a whole safetensors file.")
        raw = first + file.read(length - 1)
    try:
        header = orjson.loads(raw)
        header.pop("__metadata__", None)
        return _check_layout(header, size - 8 - length)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise PackageError(f"The header of {path.name} is damaged.") from error


def _check_layout(header: dict[str, Any], content: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensors must lie one after the other and fill the file."""
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        first, last = entry["data_offsets"]
        shape = tuple(int(each) for each in entry["shape"])
        if first != end or last < first or any(not 0 <= each <= MAXIMUM_BYTES for each in shape):
            raise ValueError(name)
        entries[name], end = (str(entry["dtype"]), shape), last
    if end != content:
        raise ValueError("size")
    return entries


def require_tensors(
    expected: dict[str, Tensor], found: dict[str, tuple[str, tuple[int, ...]]], name_of_file: str
) -> None:
    """The header must promise the very tensors that are expected. Raises PackageError."""
    for name in sorted(expected.keys() ^ found.keys()):
        state = "is missing from" if name in expected else "is not expected in"
        raise PackageError(f"The tensor {name[:200]!r} {state} {name_of_file}.")
    for name, tensor in expected.items():
        dtype, shape = found[name]
        if dtype != DTYPES[tensor.dtype][0] or shape != tuple(tensor.shape):
            raise PackageError(
                f"The tensor {name!r} is {dtype} {list(shape)}, but {MODEL} describes "
                f"{DTYPES[tensor.dtype][0]} {list(tensor.shape)}."
            )
