"""Architectures of the ``transformers`` library that a run may start from nothing, as its settings name them. Torch-free.

A setting such as ``text_model`` is what `AutoConfig` of the library takes: ``{"model_type": "bert", "hidden_size": 64}``.
Names are compared with the source of the library's own configuration class, which is read and not imported: it would
bring torch into processes that do without. Its types and ranges are checked by the library when a run begins.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import orjson

from dlplatform.engine.errors import PackageError
from dlplatform.engine.transformers_config import CONFIG, IMAGE, TEXT, folder_of, safe_config

SENSES: Final = {"text_model": TEXT, "image_model": IMAGE}
MOST_BYTES: Final = 20_000
LONGEST_LIST: Final = 64
SHOWN_NAMES: Final = 40
# What follows from the data, by what the network reads, and where it is set instead.
_FITTED: Final = "it follows from the tokenizer that is fitted on the data; set `vocabulary`"
DECIDED: Final[dict[str, dict[str, str]]] = {
    TEXT: {"vocab_size": _FITTED, **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), _FITTED)},
    IMAGE: {
        "image_size": "it is the side to which images are brought; set `image_size` of the run",
        "num_channels": "it follows from the images",
    },
}
_SIGN: Final = {TEXT: "vocab_size", IMAGE: "num_channels"}  # a setting of all that read texts, or look at images
# Sizes that almost every architecture has, by any of its names, and the least of each.
_SIZES: Final = {
    "num_hidden_layers": 0, "n_layer": 0,
    **dict.fromkeys(
        ("hidden_size", "hidden_sizes", "embedding_size", "intermediate_size", "num_attention_heads", "n_embd", "n_head",
         "depths", "patch_size"), 1,
    ),
}  # fmt: skip
_BASE: Final = "PreTrainedConfig"


@dataclass(frozen=True)
class Preset:
    """An architecture of moderate size to begin with. ``tasks``: those that it is for."""

    name: str
    setting: str
    config: dict[str, Any]
    writes: bool = False


def _sizes(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 4 * width,
    }  # fmt: skip


PRESETS: Final = (
    Preset("BERT, small", "text_model", {"model_type": "bert", **_sizes(128, 2, 4)}),
    Preset("ModernBERT, small", "text_model", {"model_type": "modernbert", **_sizes(128, 4, 4)}),
    Preset("GPT-2, small", "text_model", {"model_type": "gpt2", "n_embd": 128, "n_layer": 4, "n_head": 4}, writes=True),
    Preset("Llama, small", "text_model", {"model_type": "llama", **_sizes(128, 4, 4)}, writes=True),
    Preset("ViT, small", "image_model", {"model_type": "vit", **_sizes(128, 4, 4), "patch_size": 4}),
    Preset(
        "ConvNeXt, small", "image_model",
        {"model_type": "convnext", "hidden_sizes": [32, 64, 128], "depths": [1, 1, 2], "num_stages": 3, "patch_size": 2},
    ),
    Preset(
        "ResNet, small", "image_model",
        {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1],
         "layer_type": "basic"},
    ),
)  # fmt: skip


def sense_of(config: Mapping[str, Any]) -> str:
    """What a network of a ``config.json`` takes: images, if its architecture has channels and no tokens in order, else texts.

    A BEiT has a vocabulary too, of pieces of images that it was trained to guess.
    """
    kind = config.get("model_type")
    own = own_names(kind) if isinstance(kind, str) else frozenset()
    reads = _SIGN[TEXT] in own and ("image_size" not in own or "max_position_embeddings" in own)
    return IMAGE if _SIGN[IMAGE] in own and not reads else TEXT


def faults(setting: str, raw: Any) -> Iterator[tuple[str, str, str]]:
    """(field, code, message with the fix) for all that is wrong with an architecture in a run's settings."""
    sense = SENSES[setting]
    if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
        yield setting, "wrong_type", f'{setting} must be a JSON object such as {{"model_type": "{_example(setting)}"}}.'
        return
    if len(_json(raw)) > MOST_BYTES:
        yield setting, "out_of_range", f"{setting} must be JSON of at most {MOST_BYTES:,} bytes."
        return
    try:
        safe_config(raw, sense)
    except PackageError as error:
        yield setting, "invalid", f"{setting}: {str(error).replace(CONFIG, 'the configuration')}"
        return
    if (own := own_names(raw["model_type"])) and _SIGN[sense] not in own:
        what = "reads texts" if sense == TEXT else "looks at images"
        yield f"{setting}.model_type", "not_for_model", f"{raw['model_type'][:60]} is no architecture that {what}."
        return
    yield from _decided_faults(setting, raw)
    yield from _name_faults(setting, raw)
    yield from _size_faults(setting, raw)
    for name, value in raw.items():
        if isinstance(value, list) and len(value) > LONGEST_LIST:
            yield (
                f"{setting}.{name}"[:100],
                "out_of_range",
                f"{setting}.{name[:60]} has more than {LONGEST_LIST} entries.",
            )


def _size_faults(setting: str, raw: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Sizes that no network has, which the library would meet in the middle of its work."""
    for name, value in raw.items():
        least = _SIZES.get(name)
        values = value if isinstance(value, list) else [value]
        if least is None:
            continue
        if not values:
            yield f"{setting}.{name}"[:100], "out_of_range", f"{setting}.{name[:60]} must not be empty."
        elif any(isinstance(one, int | float) and not isinstance(one, bool) and one < least for one in values):
            yield f"{setting}.{name}"[:100], "out_of_range", f"{setting}.{name[:60]} must be {least} or more."


def _json(raw: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(raw)
    except (TypeError, ValueError):  # nested too deeply, or a number that JSON does not know
        return bytes(MOST_BYTES + 1)


def _example(setting: str) -> str:
    return next(str(preset.config["model_type"]) for preset in PRESETS if preset.setting == setting)


def _decided_faults(setting: str, raw: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, instead in DECIDED[SENSES[setting]].items():
        if name in raw:
            yield f"{setting}.{name}", "not_for_model", f"Leave {setting}.{name} out: {instead}."


def _name_faults(setting: str, raw: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    known = known_names(str(raw["model_type"]))
    for name in sorted(raw.keys() - known) if known else ():
        own = own_names(str(raw["model_type"])) - DECIDED[SENSES[setting]].keys()
        shown = ", ".join(sorted(one for one in own if not one.startswith("_"))[:SHOWN_NAMES])
        message = f"{setting}.{name[:60]} is no setting of {raw['model_type'][:60]}; it has: {shown}."
        yield f"{setting}.{name[:60]}", "unknown_field", message


@lru_cache(256)
def own_names(kind: str) -> frozenset[str]:
    """The settings that an architecture has of its own."""
    found = _class_of(kind)
    return frozenset(_fields(found)) if found is not None else frozenset()


@lru_cache(256)
def known_names(kind: str) -> frozenset[str]:
    """All names that a configuration may use, older spellings among them; none where the source does not tell."""
    found, base = _class_of(kind), _base_class()
    if found is None or base is None or not _inherits_only(found):
        return frozenset()
    return frozenset({"model_type", *_fields(found), *_words(found), *_fields(base), *_words(base)})


def _class_of(kind: str) -> ast.ClassDef | None:
    """The class whose ``model_type`` it is."""
    folder = folder_of(kind)
    for path in sorted(folder.glob("configuration_*.py")) if folder else ():
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef) and _assigned(node, "model_type") == kind:
                return node
    return None


@lru_cache(1)
def _base_class() -> ast.ClassDef | None:
    folder = folder_of("bert")
    path = folder.parents[1] / "configuration_utils.py" if folder else Path()
    nodes = ast.walk(ast.parse(path.read_bytes())) if path.is_file() else iter(())
    return next((node for node in nodes if isinstance(node, ast.ClassDef) and node.name == _BASE), None)


def _inherits_only(node: ast.ClassDef) -> bool:
    """Whether all fields stand in the class itself or in the base of all."""
    names = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return len(names) == len(node.bases) and all(name == _BASE or name.endswith("Mixin") for name in names)


def _assigned(node: ast.ClassDef, name: str) -> Any:
    """The constant that the class gives to a name."""
    lines = (line for line in node.body if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant))
    named = (line for line in lines if any(isinstance(one, ast.Name) and one.id == name for one in line.targets))
    return next((line.value.value for line in named if isinstance(line.value, ast.Constant)), None)


def _fields(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield line.target.id


def _words(node: ast.ClassDef) -> Iterator[str]:
    """Names that the class speaks of: synonyms, and what it still takes from older files."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.isidentifier():
            yield part.value
