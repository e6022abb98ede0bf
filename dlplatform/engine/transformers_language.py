"""Language models of the ``transformers`` library: GPT-like decoders with their own tokenizers.

Chats are written by the template that comes with a model (`chat_template`), or without one in ChatML where the tokenizer knows
its marks, else in plain words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import tokenizers
import torch
from torch import Tensor, nn

from dlplatform.engine.chat_template import ChatTemplate
from dlplatform.engine.errors import PackageError
from dlplatform.engine.language import LanguageNetwork, LanguageShape
from dlplatform.engine.tokens import FILE, Tokenizer, read_tokenizer
from dlplatform.engine.transformers_config import Transformer, checked, longest_text
from dlplatform.engine.transformers_models import (
    TransformersBase,
    TransformersPart,
    build,
    initial_weights,
    settings_of,
)

ARCHITECTURE: Final = "transformers"
USUAL_LENGTH: Final = 256
START, STOP = "<|im_start|>", "<|im_end|>"


class TransformersLanguage(TransformersPart, LanguageNetwork):
    """(B, L) tokens → (B, L, vocabulary) logits, by a causal model of the library."""

    def __init__(self, shape: LanguageShape) -> None:
        nn.Module.__init__(self)
        self.shape = shape
        transformer = checked(shape.transformer)
        self.model, self.fresh = build(transformer.config, writes=True), transformer.fresh
        self.register_state_dict_post_hook(_without_tied)
        self.register_load_state_dict_pre_hook(_with_tied)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def initialise(self, seed: int) -> None:
        """Set every weight as the library does for training from nothing."""
        self.model.load_state_dict(initial_weights(self.model, seed))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens.long(), use_cache=False).logits
        return logits


def _tied(network: Any) -> dict[str, str]:
    """{name: the name of the tensor that it shares} of the library's network."""
    found = getattr(network.model, "all_tied_weights_keys", None) or {}
    return {f"model.{name}": f"model.{source}" for name, source in dict(found).items()}


def _without_tied(network: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """A file holds a shared tensor once."""
    for name in _tied(network):
        state.pop(prefix + name, None)


def _with_tied(network: Any, state: dict[str, Any], prefix: str, *_more: Any) -> None:
    for name, source in _tied(network).items():
        if prefix + source in state:
            state.setdefault(prefix + name, state[prefix + source])


def language_network(shape: LanguageShape) -> LanguageNetwork:
    """An uninitialised network of the given shape, ours or the library's."""
    return TransformersLanguage(shape) if shape.transformer is not None else LanguageNetwork(shape)


def shape_over(base: TransformersBase, length: int | None) -> LanguageShape:
    """The shape of a language model that starts from a base. Raises PackageError for a length that it cannot read."""
    most = longest_text(base.transformer.config)
    if length is not None and length > most:
        raise PackageError(f"It reads {most} tokens at most: set text_length to {most} or less.")
    return shape_of(base.transformer, length or min(USUAL_LENGTH, most))


def shape_of(transformer: Transformer, length: int) -> LanguageShape:
    """The shape of a language model of the library that looks back at ``length`` tokens."""
    settings = settings_of(transformer.config)
    heads = getattr(settings, "num_attention_heads", None)  # state-space models have none
    sizes = (settings.hidden_size, settings.num_hidden_layers, heads if isinstance(heads, int) and heads > 0 else 1)
    return LanguageShape(
        settings.vocab_size, length, *sizes, architecture=ARCHITECTURE, transformer=transformer.to_dict()
    )


class LanguageTokenizer(Tokenizer):
    """The tokenizer of a language model, whose end and marks of chats have names of their own."""

    def __init__(self, inner: tokenizers.Tokenizer, end: int) -> None:
        super().__init__(inner)
        inner.no_padding()
        inner.no_truncation()
        self.end, self.ends = end, frozenset({end})
        self.marked = inner.token_to_id(START) is not None and inner.token_to_id(STOP) is not None

    def opening(self, role: str) -> list[int]:
        name = role.strip("<>")
        return self.encode([f"{START}{name}\n" if self.marked else f"{name.capitalize()}: "])[0]

    def closing(self) -> list[int]:
        return [*self.encode([STOP])[0], *self.encode(["\n"])[0]] if self.marked else [self.end]


def as_language_tokenizer(tokenizer: Tokenizer) -> LanguageTokenizer:
    """A tokenizer that was fitted with the marks of ChatML among its special tokens."""
    return LanguageTokenizer(tokenizer.inner, tokenizer.end)


def named_tokens(named: Mapping[str, str], tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a template may name; those that the tokenizer's own files leave out as the model's config has
    them."""
    bos = settings_of(dict(config)).get_text_config().bos_token_id
    known = {"eos_token": tokenizer.end, **({"bos_token": bos} if isinstance(bos, int) else {})}
    found = {name: tokenizer.inner.id_to_token(code) for name, code in known.items()}
    return {**{name: token for name, token in found.items() if token}, **named}


def read_language_tokenizer(
    content: str, config: Mapping[str, Any], chat: ChatTemplate | None = None
) -> LanguageTokenizer:
    """The tokenizer of a model of this config, and the template of its chats. Raises PackageError when they do not fit."""
    settings = settings_of(dict(config))
    found = settings.get_text_config().eos_token_id
    ends = found if isinstance(found, list) and found else [found]
    end = ends[0]
    inner = read_tokenizer(content).inner
    if inner.get_vocab_size(with_added_tokens=True) > settings.vocab_size:
        raise PackageError(f"{FILE} has more tokens than the {settings.vocab_size:,} that the model knows.")
    if not isinstance(end, int) or not 0 <= end < settings.vocab_size:
        raise PackageError("The config names no eos_token_id, so the model could never end a text.")
    tokenizer = LanguageTokenizer(inner, end)
    return tokenizer.with_chat(chat, [one for one in ends if isinstance(one, int)]) if chat is not None else tokenizer
