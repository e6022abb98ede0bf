"""Architectures of the ``transformers`` library that start from nothing: a run's configuration, completed by the data.

The package holds the complete configuration, so that other defaults of another release change nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psutil
import torch

from dlplatform.engine import transformers_images
from dlplatform.engine.config import TrainingConfig
from dlplatform.engine.errors import EngineError, PackageError
from dlplatform.engine.language import LanguageShape
from dlplatform.engine.preprocessing import InputSizes
from dlplatform.engine.tokens import Tokenizer
from dlplatform.engine.transformers_config import CONFIG, IMAGE, TEXT, Transformer, longest_text, safe_config
from dlplatform.engine.transformers_language import shape_of
from dlplatform.engine.transformers_models import build, settings_of

MAXIMUM_BYTES: Final = 16 << 30
COPIES: Final = 2  # of all weights that every training holds at least: those that train, and their average
_KEPT: Final = (torch.float32, torch.int64)  # types of numbers that a package holds

Maker = Callable[[dict[str, Any]], Any]


def reads_texts(config: TrainingConfig, sizes: InputSizes) -> dict[str, Any] | None:
    """The transformer of ``text_model`` in its JSON form, None without one. Raises EngineError ``bad_config``."""
    if config.text_model is None:
        return None
    if not sizes.sequences:
        raise _unread("text_model", "a text")
    raw = {**config.text_model, **_codes(sizes.sequence_vocabulary, padding=0, end=1)}
    complete = _completed("text_model", raw, TEXT, build)
    _check_length(complete, sizes.sequence_length)
    return Transformer(complete, fresh=True).to_dict()


def looks_at_images(config: TrainingConfig, sizes: InputSizes) -> dict[str, Any] | None:
    """The transformer of ``image_model`` in its JSON form, None without one. Raises EngineError ``bad_config``."""
    if config.image_model is None:
        return None
    if not sizes.images:
        raise _unread("image_model", "an image")
    raw = {**config.image_model, "image_size": sizes.image_size, "num_channels": sizes.image_channels}
    complete = _completed("image_model", raw, IMAGE, transformers_images.build)
    return Transformer(complete, width=_width(complete, sizes), fresh=True).to_dict()


def writes_texts(config: TrainingConfig, tokenizer: Tokenizer) -> LanguageShape | None:
    """The shape of the language model that ``text_model`` describes, None without one. Raises EngineError."""
    if config.text_model is None:
        return None
    raw = {**config.text_model, **_codes(tokenizer.size, padding=0, end=tokenizer.end)}
    complete = _completed("text_model", raw, TEXT, lambda settings: build(settings, writes=True))
    assert isinstance(config.text_length, int)
    _check_length(complete, config.text_length)
    with naming("text_model"):
        return shape_of(Transformer(complete, fresh=True), config.text_length)


@contextmanager
def naming(setting: str | None) -> Iterator[None]:
    """Inside, a network that cannot be built is the fault of the setting that describes it, if there is one."""
    try:
        yield
    except PackageError as error:
        if setting is None:
            raise
        raise EngineError(
            "bad_config", f"{setting}: {str(error).replace(CONFIG, 'it')}"[:600], f"Correct {setting} and start again."
        ) from error


def _unread(setting: str, what: str) -> EngineError:
    return EngineError(
        "bad_config", f"{setting} is there, and none of the features is {what}.", f"Add one, or remove {setting}."
    )


def _codes(vocabulary: int, padding: int, end: int) -> dict[str, int]:
    """What a configuration says of the tokenizer."""
    return {"vocab_size": vocabulary, "pad_token_id": padding, "bos_token_id": end, "eos_token_id": end}


def _check_length(config: dict[str, Any], length: int) -> None:
    if length > (most := longest_text(config)):
        fix = f"Set text_length to {most} or less, or max_position_embeddings to {length + 2} or more."
        raise EngineError("bad_config", f"text_model reads {most} tokens at most, and texts have {length}.", fix)


def _completed(setting: str, raw: dict[str, Any], sense: str, maker: Maker) -> dict[str, Any]:
    """The configuration with all its defaults, whose network is known to fit before any of it is allocated."""
    with naming(setting):
        complete = safe_config(settings_of(raw).to_dict(), sense)
        with torch.device("meta"):
            tensors = maker(complete).state_dict().values()
    if odd := next((tensor.dtype for tensor in tensors if tensor.dtype not in _KEPT), None):
        raise EngineError("bad_config", f"{setting}: its network holds tensors of {odd}.", "Take another architecture.")
    _check_size(setting, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    return complete


def _check_size(setting: str, size: int) -> None:
    most = min(MAXIMUM_BYTES, _memory() // COPIES)
    if size > most:
        raise EngineError(
            "bad_config", f"{setting} describes a network of {size / 1e9:,.1f} GB; {most / 1e9:,.1f} are possible here.",
            f"Make {setting} narrower (hidden_size) or take fewer layers.",
        )  # fmt: skip


def _memory() -> int:
    """Bytes of the device that trains."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)


@torch.no_grad()
def _width(config: dict[str, Any], sizes: InputSizes) -> int:
    """Numbers that stand for an image. Raises EngineError for a network that answers by chance, or not at all."""
    with naming("image_model"):
        network = transformers_images.build(config).eval()
        return transformers_images.width_of(network, sizes.image_channels, sizes.image_size)
