"""``model.json``: what a package says about itself. Torch-free, for pages and forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import orjson

from dlplatform.engine.errors import PackageError
from dlplatform.engine.schema import COLUMN_TYPES, TASKS

FORMAT: Final = 1
MODEL: Final = "model.json"
MAXIMUM_BYTES: Final = 64 << 20
_REQUIRED: Final[dict[str, type]] = {
    "task": str,
    "architecture": dict,
    "inputs": list,
    "output": dict,
    "preprocessing": list,
    "versions": dict,
    "metrics": dict,
    "lineage": dict,
}


def read_description(path: Path) -> dict[str, Any]:
    """Read ``model.json`` (or the one in a package directory) and check its outline.

    Keys: format, task, target, architecture, inputs (see `schema.InputColumn`), output, preprocessing,
    config, versions, metrics, lineage. Raises PackageError.
    """
    file = path / MODEL if path.is_dir() else path
    try:
        if file.stat().st_size > MAXIMUM_BYTES:
            raise PackageError(f"{MODEL} is larger than {MAXIMUM_BYTES >> 20} MB.")
        description = orjson.loads(file.read_bytes())
    except OSError as error:
        raise PackageError(f"The package has no readable {MODEL}.") from error
    except orjson.JSONDecodeError as error:
        raise PackageError(f"{MODEL} is not valid JSON.") from error
    return check_description(description)


def check_description(description: Any) -> dict[str, Any]:
    """Check the outline of a parsed ``model.json``. Raises PackageError."""
    if not isinstance(description, dict):
        raise PackageError(f"{MODEL} is not a JSON object.")
    if description.get("format") != FORMAT:
        found = str(description.get("format"))[:40]
        raise PackageError(f"The package has format {found}; this version reads format {FORMAT}.")
    for name, kind in _REQUIRED.items():
        if not isinstance(description.get(name), kind):
            raise PackageError(f"{MODEL} has no usable {name!r}.")
    if description["task"] not in TASKS:
        raise PackageError(f"The task {description['task'][:40]!r} is unknown.")
    _check_inputs(description["inputs"])
    return description


def chat_signature(description: dict[str, Any]) -> dict[str, bool]:
    """What the signature of a version says of messages: that a model was taught chats or has a template for them."""
    return {"chat": True} if isinstance(description.get("chat"), dict) else {}


def _check_inputs(inputs: list[Any]) -> None:
    names = set()
    for column in inputs:
        if not isinstance(column, dict) or column.get("type") not in COLUMN_TYPES:
            raise PackageError("The input schema has a column of an unknown type.")
        if not isinstance(column.get("name"), str) or column["name"] in names:
            raise PackageError("The input schema has a column without a name of its own.")
        names.add(column["name"])
