"""Names and shapes of the tensors of a version, read from the heads of its weight files alone."""

import json
import struct
from typing import Any

from dlplatform.objects.errors import CorruptObject

from .models import ModelVersion
from .services import object_store

MOST_HEADER = 16 << 20
ENDING = ".safetensors"


def tensor_shapes(version: ModelVersion) -> dict[str, list[int]]:
    """{tensor: shape} of all safetensors files of a version, in the order in which they lie.

    Raises MissingObject, CorruptObject.
    """
    store = object_store(version.model.organization_id)
    shapes: dict[str, list[int]] = {}
    for path, entry in sorted(version.tree.items()):
        if path.endswith(ENDING):
            with store.open(entry["sha256"]) as file:
                shapes |= _shapes(path, file)
    return shapes


def _shapes(path: str, file: Any) -> dict[str, list[int]]:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= MOST_HEADER:
        raise CorruptObject(f"{path} is no safetensors file")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    return {name: entry["shape"] for name, entry in ordered}
