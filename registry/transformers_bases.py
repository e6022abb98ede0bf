"""Versions that are Hugging Face directories: what their ``config.json`` says, and whether runs can start from them."""

from typing import Any

import orjson

from dlplatform.engine import chat_template
from dlplatform.engine.errors import PackageError
from dlplatform.engine.transformers_config import (
    CONFIG,
    INDEX,
    MAXIMUM_BYTES,
    POOLING,
    PREPROCESSOR,
    TEXT,
    TOKENIZER,
    is_decoder,
    refusal,
)
from dlplatform.engine.transformers_settings import sense_of
from dlplatform.objects.errors import CorruptObject, MissingObject

from .models import ModelVersion
from .services import object_store

LANGUAGE = "language-model"
TASKS = ("classification", "regression", "multilabel")  # of rows with texts or images
WEIGHTS = ".safetensors"
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
OURS = "model.json"


def is_transformers(version: ModelVersion) -> bool:
    """Whether the version is a directory that ``save_pretrained`` wrote."""
    return OURS not in version.tree and CONFIG in version.tree


def is_needed(path: str) -> bool:
    """Whether starting from a Hugging Face directory needs the file; the rest of it is for people and other programs."""
    read = (CONFIG, INDEX, POOLING, PREPROCESSOR, TOKENIZER, chat_template.CONFIG, chat_template.FILE)
    return path in read or (path.endswith(WEIGHTS) and "/" not in path)


def config_of(version: ModelVersion) -> dict[str, Any]:
    """What ``config.json`` says. Raises PackageError."""
    entry = version.tree[CONFIG]
    if entry["size"] > MAXIMUM_BYTES:
        raise PackageError(f"{CONFIG} is larger than {MAXIMUM_BYTES >> 20} MB.")
    try:
        found = orjson.loads(object_store(version.model.organization_id).read(entry["sha256"]))
    except (orjson.JSONDecodeError, MissingObject, CorruptObject) as error:
        raise PackageError(f"{CONFIG} cannot be read.") from error
    if not isinstance(found, dict):
        raise PackageError(f"{CONFIG} is not a JSON object.")
    return found


def why_not(version: ModelVersion) -> str | None:
    """Why no run can start from a Hugging Face directory, as far as it can be told without its weights; None if one can."""
    if not any(is_needed(path) and path.endswith(WEIGHTS) for path in version.tree):
        return "It has no weights in safetensors; pickles are not read. Save it again with safetensors."
    try:
        config = config_of(version)
    except PackageError as error:
        return str(error)
    if refused := refusal(config, sense_of(config)):
        return refused
    if sense_of(config) == TEXT and TOKENIZER not in version.tree:
        return f"It has no {TOKENIZER}: load its tokenizer with AutoTokenizer, save it again, and send that too."
    return None


def takes(version: ModelVersion) -> str:
    """What a Hugging Face directory takes, as a type of column: text or image. Raises PackageError."""
    return sense_of(config_of(version))


def width(version: ModelVersion) -> int:
    """Numbers that stand for a text or an image, as far as ``config.json`` says; 0 where it does not."""
    config = config_of(version)
    sizes = config.get("hidden_sizes")
    known = [sizes[-1] if isinstance(sizes, list) and sizes else None, *(config.get(name) for name in _WIDTHS)]
    return next((one for one in known if isinstance(one, int) and not isinstance(one, bool) and one > 0), 0)


def template_problem(version: ModelVersion) -> str | None:
    """Why the chat template of a Hugging Face directory cannot be used; None if it can, or where there is none."""
    try:
        return chat_template.problem_with(_read(version, chat_template.CONFIG), _read(version, chat_template.FILE))
    except (MissingObject, CorruptObject):
        return "it cannot be read"


def _read(version: ModelVersion, path: str) -> bytes | None:
    """A small file of a version; None for one that is not there or larger than any that is looked at."""
    entry = version.tree.get(path)
    if entry is None or entry["size"] > chat_template.CONFIG_BYTES:
        return None
    content: bytes = object_store(version.model.organization_id).read(entry["sha256"])
    return content


def writes(version: ModelVersion) -> bool:
    """Whether the model continues texts."""
    return is_decoder(config_of(version))


def tasks_of(version: ModelVersion) -> tuple[str, ...]:
    """What a Hugging Face directory can be taught, the likeliest first."""
    return (LANGUAGE, *TASKS) if writes(version) else TASKS
