"""A safetensors file in pieces: its header, then the memory of the tensors themselves.

The library's own writer joins everything into one string of bytes first, twice, and holds Python's lock meanwhile; a
training loop beside it would stand still for as long.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import orjson
import torch
from torch import Tensor

from dlplatform.engine.durable import Bytes

ALIGNMENT: Final = 8
NAMES: Final[dict[torch.dtype, str]] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def to_safetensors(tensors: Mapping[str, Tensor]) -> list[Bytes]:
    """The content of a file with contiguous tensors in main memory; it changes when they do.

    Larger items come first, so that every tensor is aligned (https://github.com/huggingface/safetensors, format).
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % ALIGNMENT)
    return [struct.pack("<Q", len(text)) + text, *(_memory(tensors[name]) for name in names)]


def _memory(tensor: Tensor) -> memoryview:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
