"""Networks of the ``transformers`` library inside ours: built from a config, filled from safetensors, nothing fetched.

The library is imported when the first such network is built, so that processes without one do without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dlplatform.engine import chat_template
from dlplatform.engine.dropout import Dropout
from dlplatform.engine.errors import PackageError
from dlplatform.engine.tokens import LONGEST, Tokenizer
from dlplatform.engine.tokens import MAXIMUM_BYTES as TOKENIZER_BYTES
from dlplatform.engine.transformers_config import (
    CONFIG,
    IMAGE,
    INDEX,
    POOLING,
    TEXT,
    TOKENIZER,
    TWO_PARTS,
    Transformer,
    is_decoder,
    longest_text,
    pooling_of,
    read_json,
    safe_config,
)
from dlplatform.engine.transformers_pixels import ImageProcessor, read_image_processor
from dlplatform.engine.transformers_settings import sense_of
from dlplatform.engine.transformers_tokens import read_transformers_tokenizer

WEIGHTS: Final = "model.safetensors"
MAXIMUM_BYTES: Final = 16 << 30
# Parts that a mean over tokens does not use.
_UNUSED: Final = ("pooler",)


@dataclass(frozen=True)
class TransformersBase:
    """A Hugging Face directory that a run starts from. ``sense``: whether it takes texts or images; one that looks at images
    has no tokenizer, and its ``transformer`` is completed by `transformers_images.pretrained`. ``writes``: it continues texts.
    ``chat``: the text of its chat template, which nobody has looked at yet, and ``named`` the special tokens that it may name.
    """

    directory: Path
    transformer: Transformer
    tokenizer: str = ""
    writes: bool = False
    chat: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    sense: str = TEXT

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer for texts that are read whole."""
        config = self.transformer.config
        return read_transformers_tokenizer(self.tokenizer, vocabulary_of(config), min(LONGEST, longest_text(config)))

    def image_processor(self, letterbox: bool = False) -> ImageProcessor:
        """How images are wanted, see `read_image_processor`. Raises PackageError."""
        return read_image_processor(self.directory, self.transformer.config, letterbox)


def read_base(directory: Path) -> TransformersBase:
    """Check a Hugging Face directory and read all but its weights, and the file of its image processor: runs read that in
    different ways. Raises PackageError."""
    raw = read_json(directory / CONFIG)
    if isinstance(raw, dict) and sense_of(raw) == IMAGE:
        return TransformersBase(directory, Transformer(safe_config(raw, IMAGE)), sense=IMAGE)
    config = safe_config(raw)
    pooling = pooling_of(read_json(directory / POOLING)) if (directory / POOLING).is_file() else "mean"
    path = directory / TOKENIZER
    if not path.is_file():
        raise PackageError(f"The base has no {TOKENIZER}: load its tokenizer with AutoTokenizer and save it again.")
    if path.stat().st_size > TOKENIZER_BYTES:
        raise PackageError(f"{TOKENIZER} is larger than {TOKENIZER_BYTES >> 20} MB.")
    content = path.read_text("utf-8", errors="replace")
    chat, named = _chat(directory)
    return TransformersBase(directory, Transformer(config, pooling), content, is_decoder(raw), chat, named)


def _chat(directory: Path) -> tuple[str | None, dict[str, str]]:
    """Whatever is wrong with the template is told when it is used: adapters over the base may do without."""
    config, file = directory / chat_template.CONFIG, directory / chat_template.FILE
    return chat_template.template_of(
        _small(config, chat_template.CONFIG_BYTES), _small(file, chat_template.CONFIG_BYTES)
    )


def _small(path: Path, most: int) -> bytes | None:
    return path.read_bytes() if path.is_file() and path.stat().st_size <= most else None


def require_filled(base: TransformersBase, make: Callable[[], Any]) -> None:
    """Before any of its network is allocated: a config can describe one that no weights of that size could fill.

    Raises PackageError.
    """
    with torch.device("meta"):
        wanted = sum(parameter.numel() for parameter in make().parameters())
    held = sum(path.stat().st_size for path in _weight_files(base.directory))
    if wanted > held:  # a number takes a byte at least
        raise PackageError(
            f"The weights of the base do not fit {CONFIG}: it describes {wanted:,} numbers, and their files have {held:,} bytes."
        )


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """Codes that a model of this config knows."""
    return int(settings_of(dict(config)).vocab_size)


def build(config: dict[str, Any], writes: bool = False) -> Any:
    """The network of a checked config, with weights that are nobody's. Raises PackageError."""
    settings = settings_of(config)
    if not all(isinstance(getattr(settings, name, None), int) for name in ("hidden_size", "vocab_size")):
        raise PackageError("The model does not read texts.")
    if settings.is_encoder_decoder:
        raise PackageError(f"The model ({config['model_type'][:60]}) {TWO_PARTS}")
    network = made(settings, "AutoModelForCausalLM" if writes else "AutoModel")
    if network.main_input_name != "input_ids":
        raise PackageError("The model does not read texts.")
    if not writes:
        leave_out(network, _UNUSED)
    return network


def made(settings: Any, auto: str) -> Any:
    """The network that a class such as `AutoModel` makes of settings, its noise ours. Raises PackageError."""
    maker = getattr(_library(), auto)
    if settings.__class__ not in maker._model_mapping:
        raise PackageError(f"transformers has no such network for the model_type {settings.model_type[:60]!r}.")
    with as_package_error(), _own_randomness(0):
        network = _from_config(maker, settings)
    _share_noise(network)
    return network


def leave_out(network: Any, names: Sequence[str]) -> None:
    """Take parts out of a network, where it has them."""
    for name in names:
        if getattr(network, name, None) is not None:
            setattr(network, name, None)


def _from_config(auto: Any, settings: Any) -> Any:
    """With fused attention where the architecture has it."""
    try:
        return auto.from_config(settings, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False)
    except ValueError:
        return auto.from_config(settings, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False)


def settings_of(config: dict[str, Any]) -> Any:
    """The library's own object of a checked config. Raises PackageError."""
    with as_package_error():
        return _library().AutoConfig.for_model(**config)


def _library() -> Any:
    """``transformers``, told to stay off the network before it is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def initial_weights(network: Any, seed: int) -> dict[str, Tensor]:
    """What the library gives such a network for training from nothing; the same for the same seed."""
    with _own_randomness(seed):
        fresh = type(network)._from_config(network.config).state_dict()
    return {name: fresh[name] for name in network.state_dict()}


@contextmanager
def as_package_error() -> Iterator[None]:
    """The library raises whatever comes to it for a config that somebody made up."""
    try:
        yield
    except (PackageError, MemoryError):
        raise
    except Exception as error:
        raise PackageError(f"transformers cannot build the model that {CONFIG} describes: {error}"[:500]) from error


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Inside, the library's initial weights come from a seed, and the random state outside stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class DropPath(Dropout):
    """Leaves out a residual branch for whole rows (Huang et al., 2016, "Deep Networks with Stochastic Depth")."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * super().forward(inputs.new_ones(len(inputs), *[1] * (inputs.dim() - 1)))


def _share_noise(network: nn.Module) -> None:
    """Put our dropout in place of the library's: its noise is the same however many processes share a batch."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
            elif type(child).__name__.endswith("DropPath"):
                setattr(module, name, DropPath(float(getattr(child, "drop_prob", 0.0) or 0.0)))


def read_weights(base: TransformersBase, network: Any) -> dict[str, Tensor]:
    """The tensors of a base by the names that they have in ``network``, as 32-bit numbers.

    Raises PackageError when they are damaged or are not those of the architecture.
    """
    tensors = _read_files(base.directory)
    with as_package_error(), _own_randomness(0):
        filled, told = type(network).from_pretrained(
            None, config=settings_of(base.transformer.config), state_dict=tensors, output_loading_info=True,
            dtype=torch.float32,
        )  # fmt: skip
    wanted, found = network.state_dict(), filled.state_dict()
    absent = sorted({str(name) for name in told["missing_keys"]} & wanted.keys())
    absent += [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    if absent or told["mismatched_keys"]:
        named = absent[0] if absent else str(next(iter(told["mismatched_keys"])))
        raise PackageError(
            f"The weights of the base do not fit {CONFIG}: {named[:200]!r} is missing or of another shape."
        )
    for name in wanted:
        if found[name].is_floating_point() and not bool(torch.isfinite(found[name]).all()):
            raise PackageError(f"The tensor {name[:200]!r} of the base holds infinite or undefined values.")
    return {name: found[name] for name in wanted}


def _read_files(directory: Path) -> dict[str, Tensor]:
    paths = _weight_files(directory)
    if sum(path.stat().st_size for path in paths) > MAXIMUM_BYTES:
        raise PackageError(f"The weights of the base are larger than {MAXIMUM_BYTES >> 30} GB.")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors |= safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise PackageError(f"{path.name} of the base cannot be read.") from error
    return tensors


def _weight_files(directory: Path) -> list[Path]:
    """``model.safetensors``, or the shards that its index names; only files of the directory itself."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not (directory / INDEX).is_file():
        raise PackageError(
            f"The base has no {WEIGHTS}: weights that are pickles are not read; save it again with safetensors."
        )
    named = read_json(directory / INDEX, 64 << 20)
    shards = sorted(set(map(str, (named.get("weight_map") or {}).values()))) if isinstance(named, dict) else []
    there = {path.name: path for path in directory.glob("*.safetensors")}
    if not shards or not set(shards) <= there.keys():
        raise PackageError(f"{INDEX} names files that are not there.")
    return [there[name] for name in shards]


class TransformersPart(nn.Module):
    """A module of ours around a network of the library, ``model``. ``fresh``: one that began from nothing."""

    model: Any
    fresh: bool = False

    def example(self) -> dict[str, Tensor]:
        """The least that its network can be given."""
        device = next(self.model.parameters()).device
        return {"input_ids": torch.zeros(1, 1, dtype=torch.int64, device=device)}


class TransformersEncoder(TransformersPart):
    """(B, L) codes from 1 on, 0 for padding → (B, D): one vector for each text, by the base's own pooling."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.model = build(transformer.config)
        self.pooling, self.fresh = transformer.pooling, transformer.fresh
        self.width = int(self.model.config.hidden_size)
        padding = self.model.config.get_text_config().pad_token_id
        self.padding = padding if isinstance(padding, int) and 0 <= padding < self.model.config.vocab_size else 0

    def initialise(self, generator: torch.Generator) -> None:
        """Set every weight as the library does for training from nothing."""
        self.model.load_state_dict(initial_weights(self.model, int(torch.randint(2**31, (1,), generator=generator))))

    def forward(self, tokens: Tensor) -> Tensor:
        present = tokens > 0
        codes = (tokens.long() - 1).masked_fill(~present, self.padding)
        # A text without tokens would look at nothing at all, which is undefined: it looks at its padding.
        seen = present | ~present.any(1, keepdim=True)
        state: Tensor = self.model(input_ids=codes, attention_mask=seen.long()).last_hidden_state
        if self.pooling == "mean":
            weights = present.to(state.dtype).unsqueeze(-1)
            return (state * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        if self.pooling == "cls":
            return state[:, 0]
        return state[torch.arange(len(state), device=state.device), (present.sum(1) - 1).clamp(min=0)]


def parts(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, network of the library) of those inside a network of ours."""
    for name, part in holders(network):
        yield f"{name}.model" if name else "model", part.model


def holders(network: nn.Module) -> Iterator[tuple[str, TransformersPart]]:
    """(name, module of ours around it) of each network of the library inside a network of ours."""
    yield from ((name, part) for name, part in network.named_modules() if isinstance(part, TransformersPart))


@torch.no_grad()
def try_out(network: nn.Module) -> None:
    """Pass one token or image through the networks of the library: a config may describe what never works.

    Raises PackageError.
    """
    for _, part in holders(network):
        with as_package_error(), torch.random.fork_rng(devices=[]):
            part.model(**part.example())
