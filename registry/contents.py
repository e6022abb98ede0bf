"""What the files of an upload are: a package of ours, a Hugging Face directory, or weights alone.

Nothing is trusted and nothing is run: JSON and headers of safetensors are read, never weights.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from dlplatform.engine import chat_template, package, safetensors_header
from dlplatform.engine.description import MODEL, chat_signature
from dlplatform.engine.errors import PackageError
from dlplatform.engine.runtime import FILES, runtime_of

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
SHOWN_CATEGORIES = 100
MOST_JSON = 16 * 1024 * 1024
ENDING = ".safetensors"


@dataclass(frozen=True)
class Contents:
    """What a version says of itself. ``kind``: package, transformers, adapter or weights."""

    kind: str
    task: str = ""
    signature: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)


def recognise(directory: Path) -> Contents:
    """Check the files of a directory and tell what they are. Raises PackageError with what to do."""
    if (directory / MODEL).is_file():
        return _package(directory)
    weights = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob(f"*{ENDING}"))}
    if not weights:
        raise PackageError(
            "There are no weights among the files. Send a package (model.json and model.safetensors), a directory that "
            "save_pretrained wrote (config.json and *.safetensors), or a state_dict saved with safetensors."
        )
    shapes = {name: safetensors_header.read_header(path) for name, path in weights.items()}
    told = {"tensors": sum(map(len, shapes.values())), "parameters": _parameters(shapes)}
    if (directory / ADAPTER).is_file():
        adapter = _json(directory / ADAPTER)
        base = str(adapter.get("base_model_name_or_path") or "")[:200]
        return Contents("adapter", lineage=told | {"adapter": str(adapter.get("peft_type", ""))[:40], "base": base})
    if (directory / CONFIG).is_file():
        _check_shards(directory, shapes)
        config = _json(directory / CONFIG)
        architectures = config.get("architectures")
        named = [str(name)[:100] for name in architectures[:10]] if isinstance(architectures, list) else []
        return Contents(
            "transformers",
            lineage=told
            | {"architectures": named, "model_type": str(config.get("model_type", ""))[:100]}
            | _chat_of_base(directory),
        )
    return Contents("weights", lineage=told)


def _chat_of_base(directory: Path) -> dict[str, Any]:
    """What is to be said of a chat template that cannot be used; the model is taken in all the same."""
    paths = [directory / name for name in (chat_template.CONFIG, chat_template.FILE)]
    small = [path.is_file() and path.stat().st_size <= chat_template.CONFIG_BYTES for path in paths]
    files = [path.read_bytes() if there else None for path, there in zip(paths, small, strict=True)]
    problem = chat_template.problem_with(*files)
    return {"chat_template_problem": problem} if problem else {}


def _package(directory: Path) -> Contents:
    """A package of ours, as far as pages and forms may rely on it: whoever sent it may have written anything."""
    description = package.verify(directory)
    if package.runs_code(description):
        raise PackageError(
            "The package brings code of its own. Code is run only from runs that were launched here with it; upload "
            "the weights alone, or launch a run with the code."
        )
    if runtime_of(description).kind in FILES:
        raise PackageError(
            "The package is a graph, or a traced program. These are run only where they were made here: upload the weights, "
            "and optimise that version."
        )
    return described(description)


def described(description: dict[str, Any]) -> Contents:
    """What a checked ``model.json`` says, as far as it can be relied on."""
    output = {name: value for name, value in description["output"].items() if _is_plain(value)}
    target = description.get("target")
    signature = {
        "inputs": [_input(column) for column in description["inputs"]],
        "output": output,
        "target": target[:200] if isinstance(target, str) else "",
        **chat_signature(description),
    }
    metrics = {str(name)[:100]: value for name, value in description["metrics"].items() if _is_number(value)}
    config = description.get("config")
    lineage = {"settings": config if _are_settings(config) else {}, "package": description["lineage"]}
    return Contents("package", description["task"], signature, metrics, lineage)


def _input(column: Mapping[str, Any]) -> dict[str, Any]:
    """Name and type are checked by ``verify``; the rest only helps people to fill in a form."""
    categories = column.get("categories")
    known = [one for one in categories if isinstance(one, str)] if isinstance(categories, list) else []
    hints = {name: column.get(name) for name in ("minimum", "maximum", "median", "example")}
    plain = {name: value for name, value in hints.items() if isinstance(value, str | bool) or _is_number(value)}
    if not {"minimum", "maximum"} <= plain.keys():
        plain |= {"minimum": None, "maximum": None}
    return {
        "name": column["name"], "type": column["type"], "nullable": column.get("nullable") is True,
        "categories": known[:SHOWN_CATEGORIES], "median": None, "example": None, **plain,
    }  # fmt: skip


def _is_plain(value: Any) -> bool:
    """Whether it is a scalar, or a list of scalars."""
    return all(not isinstance(one, list | dict) for one in (value if isinstance(value, list) else [value]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _are_settings(config: Any) -> bool:
    return isinstance(config, dict) and isinstance(config.get("params") or {}, dict)


def _parameters(shapes: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]) -> int:
    return sum(math.prod(shape) for tensors in shapes.values() for _, shape in tensors.values())


def _check_shards(directory: Path, shapes: Mapping[str, Mapping[str, Any]]) -> None:
    """An index names the file of every tensor: all of them must be there."""
    if not (directory / INDEX).is_file():
        return
    named = _json(directory / INDEX).get("weight_map")
    if not isinstance(named, dict):
        raise PackageError(f"{INDEX} has no weight_map.")
    for tensor, file in named.items():
        if tensor not in shapes.get(str(file), {}):
            raise PackageError(
                f"{INDEX} says that the tensor {str(tensor)[:100]!r} is in {str(file)[:100]!r}, and it is not there: "
                "send all files of the directory."
            )


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MOST_JSON:
        raise PackageError(f"{path.name} is larger than {MOST_JSON >> 20} MB.")
    try:
        found = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise PackageError(f"{path.name} is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise PackageError(f"{path.name} is not a JSON object.")
    return found
