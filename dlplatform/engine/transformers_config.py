"""What a ``config.json`` of the ``transformers`` library may say here. Torch-free, for pages, forms and the registry.

Only data are taken from it: whatever would fetch or run code (``auto_map``, kernels from a hub, remote backbones) is
refused or left out, and numbers are bounded before anything of their size is built.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from dlplatform.engine.errors import PackageError

CONFIG: Final = "config.json"
POOLING: Final = "1_Pooling/config.json"
PREPROCESSOR: Final = "preprocessor_config.json"
INDEX: Final = "model.safetensors.index.json"
TOKENIZER: Final = "tokenizer.json"
TEXT, IMAGE = "text", "image"  # what a network reads
WIDEST: Final = 1 << 16
POOLINGS: Final = {TEXT: ("mean", "cls", "last"), IMAGE: ("mean", "cls", "own")}
MAXIMUM_BYTES: Final = 1 << 20
DEEPEST: Final = 8
LONGEST_KIND: Final = 100
MOST_REPEATED: Final = 4096  # layers, heads, experts: each is built one by one
TWO_PARTS: Final = "has an encoder and a decoder; take an encoder (BERT-like) or a decoder (GPT-like)."
LARGEST: Final = 1 << 26
# Says how to load or run a model rather than what it is.
_LEFT_OUT: Final = frozenset({
    "_name_or_path", "name_or_path", "architectures", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "_attn_implementation_autoset", "experts_implementation",
    "_experts_implementation", "custom_pipelines", "dtype", "torch_dtype", "gradient_checkpointing", "kernel_config",
    "output_attentions", "output_hidden_states", "return_dict", "torchscript", "transformers_version",
    "trust_remote_code", "use_cache", "use_kernels", "use_return_dict", "chunk_size_feed_forward", "id2label",
    "label2id", "problem_type",
})  # fmt: skip
_OTHER_SENSES: Final = frozenset({
    "vision_config", "audio_config", "image_size", "num_mel_bins", "patch_size", "conv_dim", "backbone",
    "backbone_config", "use_pretrained_backbone", "use_timm_backbone",
})  # fmt: skip
# What a model of images never has: parts of other models, fetched or put together from several.
_COMPOSED: Final = _OTHER_SENSES - {"image_size", "patch_size"} | {"text_config"}
_REPEATED: Final = ("layer", "head", "expert", "block", "depth")
_DECODERS: Final = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Transformer:
    """A transformers architecture as a package describes it: its config, and how tokens, or the places of an image, become
    one vector (encoders): their mean, the first (cls) or last of them, or what the network itself makes of them (own).

    ``width``: numbers that stand for an image (encoders of images). ``fresh``: it began from nothing, not from a base.
    """

    config: dict[str, Any]
    pooling: str = "mean"
    width: int = 0
    fresh: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `checked` reads it back."""
        more = {"width": self.width, "fresh": self.fresh}
        return {"config": self.config, "pooling": self.pooling, **{name: each for name, each in more.items() if each}}


def checked(raw: Any, sense: str = TEXT) -> Transformer:
    """Read what `Transformer.to_dict` wrote, trusting nothing. Raises PackageError."""
    if not isinstance(raw, dict) or raw.get("pooling", "mean") not in POOLINGS[sense]:
        raise PackageError("The package describes no transformers architecture that can be built.")
    width = raw.get("width", 0)
    if isinstance(width, bool) or not isinstance(width, int) or not (sense == IMAGE) <= width <= WIDEST:
        raise PackageError(f"The package gives {str(width)[:40]} as the width of a transformers architecture.")
    return Transformer(
        safe_config(raw.get("config"), sense), raw.get("pooling", "mean"), width, raw.get("fresh") is True
    )


def safe_config(raw: Any, sense: str = TEXT) -> dict[str, Any]:
    """The config without what is not about the architecture. Raises PackageError saying why it cannot be used."""
    if not isinstance(raw, dict):
        raise PackageError(f"{CONFIG} is not a JSON object.")
    if refused := refusal(raw, sense):
        raise PackageError(refused)
    return _plain(raw, 0)


def refusal(config: Mapping[str, Any], sense: str = TEXT) -> str | None:
    """Why the network of a config cannot be had here; None if it can. ``sense``: what it is to read."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        return f"{CONFIG} names no model_type, so nobody knows which architecture it is."
    shown = kind[:60]
    if _mentions(config, {"auto_map"}, 0):
        return f"The model ({shown}) needs code of its own from the Hub, which is never run here."
    if not is_known(kind):
        return f"The architecture {shown!r} is unknown to the installed transformers library."
    if config.get("quantization_config"):
        return f"The weights of the model ({shown}) are quantised; take the version in full precision."
    if sense == TEXT and _OTHER_SENSES & config.keys():
        return f"The model ({shown}) is one of sound or of several senses; bases read texts or look at images alone."
    if sense == IMAGE and _COMPOSED & config.keys():
        return f"The model ({shown}) is put together from several; take one that looks at images alone."
    if config.get("is_encoder_decoder"):
        return f"The model ({shown}) {TWO_PARTS}"
    return None


def is_known(kind: str) -> bool:
    """Whether the installed library has the architecture; the library itself is not imported."""
    return folder_of(kind) is not None


def folder_of(kind: str) -> Path | None:
    """Where the installed library keeps an architecture; None for one that it does not have."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        return None
    models = Path(found.submodule_search_locations[0]) / "models"
    folder = kind.replace("-", "_")
    folders = (folder, folder.removesuffix("_text"))  # the text part of a model of several senses
    if not folder.isidentifier() or len(folder) > LONGEST_KIND:
        return None
    return next((models / name for name in folders if (models / name).is_dir()), None)


def is_decoder(config: Mapping[str, Any]) -> bool:
    """Whether the config is that of a model that writes."""
    named = config.get("architectures")
    names = named if isinstance(named, list) else []
    return any(isinstance(name, str) and name.endswith(_DECODERS) for name in names)


def longest_text(config: Mapping[str, Any]) -> int:
    """Tokens that the model can read at most: two fewer than positions, which RoBERTa-like models keep for padding."""
    known = (config.get(name) for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"))
    positions = next((value for value in known if isinstance(value, int) and value > 2), 8194)
    return positions - 2


def pooling_of(raw: Any) -> str:
    """The pooling that ``1_Pooling/config.json`` of sentence-transformers asks for; the mean by default."""
    said = raw if isinstance(raw, dict) else {}
    modes = (("pooling_mode_cls_token", "cls"), ("pooling_mode_lasttoken", "last"))
    return next((mode for name, mode in modes if said.get(name) is True), "mean")


def read_json(path: Path, most: int = MAXIMUM_BYTES) -> Any:
    """A JSON file of bounded size. Raises PackageError."""
    try:
        if path.stat().st_size > most:
            raise PackageError(f"{path.name} is larger than {most >> 20} MB.")
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise PackageError(f"The base has no readable {path.name}.") from error
    except orjson.JSONDecodeError as error:
        raise PackageError(f"{path.name} is not valid JSON.") from error


def _mentions(value: Any, names: set[str], depth: int) -> bool:
    if depth > DEEPEST:
        return False
    if isinstance(value, Mapping):
        return bool(names & value.keys()) or any(_mentions(one, names, depth + 1) for one in value.values())
    return isinstance(value, list) and any(_mentions(one, names, depth + 1) for one in value)


def _plain(raw: dict[str, Any], depth: int) -> dict[str, Any]:
    kept = {str(name): value for name, value in raw.items() if name not in _LEFT_OUT}
    return {name: _bounded(name, value, depth) for name, value in kept.items()}


def _bounded(name: str, value: Any, depth: int) -> Any:
    if depth > DEEPEST:
        raise PackageError(f"{CONFIG} is nested too deeply.")
    if isinstance(value, dict):
        return _plain(value, depth + 1)
    if isinstance(value, list):
        return [_bounded(name, one, depth + 1) for one in value]
    most = MOST_REPEATED if any(word in name for word in _REPEATED) and not name.endswith(("size", "dim")) else LARGEST
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > most and "theta" not in name:
        raise PackageError(f"{CONFIG} gives {value} for {name[:60]}; at most {most} is possible.")
    return value
