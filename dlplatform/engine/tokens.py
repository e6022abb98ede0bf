"""Tokenizers fitted on texts of the data: byte-level BPE (Sennrich et al., 2016; Radford et al., 2019), or bytes.

The package holds them as ``tokenizer.json``, the format of the ``tokenizers`` library, which cannot run code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dlplatform.engine.chat_template import ChatTemplate, ChatTemplateError
from dlplatform.engine.errors import PackageError

FILE: Final = "tokenizer.json"
MAXIMUM_BYTES: Final = 64 << 20
PADDING: Final = "<pad>"
END: Final = "<end>"
SPECIAL: Final = (PADDING, END)
FITTED_CHARACTERS: Final = 50_000_000
PIECE: Final = 1024  # texts encoded between two beats
LONGEST: Final = 256  # tokens of a text that are read unless more are asked for

_PROBE: Final = ({"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"})

Codes = np.ndarray[Any, np.dtype[np.int32]]


class Tokenizer:
    """Texts to codes and back. Code 0 is padding. ``longest``: tokens that are read of a text by default, at most.
    ``chat``: how messages are written, if not message by message between `opening` and `closing`. ``ends``: codes that end
    what a model says."""

    longest = LONGEST
    chat: ChatTemplate | None = None

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self.inner = inner
        end = inner.token_to_id(END)
        self.end = int(end) if end is not None else 0
        self.ends = frozenset({self.end})

    @property
    def size(self) -> int:
        """Codes that exist, the special ones included."""
        return int(self.inner.get_vocab_size(with_added_tokens=True))

    def code(self, token: str) -> int:
        """The code of a special token, or padding's when there is none."""
        found = self.inner.token_to_id(token)
        return int(found) if found is not None else 0

    def opening(self, role: str) -> list[int]:
        """The codes that begin a message of a chat; ``role`` as a special token, such as ``<user>``."""
        return [self.code(role)]

    def closing(self) -> list[int]:
        """The codes that end a message of a chat."""
        return [self.end]

    def with_chat(self, chat: ChatTemplate | None, ends: Iterable[int] = ()) -> Self:
        """The tokenizer with messages written by a template, or without one. ``ends``: further codes that end a text."""
        made = copy.copy(self)
        made.chat, made.ends = chat, frozenset({self.end})
        if chat is not None:
            named = self.inner.token_to_id(chat.tokens.get("eos_token", ""))
            made.ends |= {*ends, *([named] if named is not None else []), *made._closings(chat)}
        return made

    def _closings(self, chat: ChatTemplate) -> list[int]:
        """The special token with which the template ends what the assistant says, if it does so with one."""
        try:
            text, spans = chat.answered(_PROBE)
        except ChatTemplateError:  # of a template that wants other messages
            return []
        said = text.find(_PROBE[1]["content"], spans[0][0]) if spans else -1
        codes = self.encode([text[said + len(_PROBE[1]["content"]) :]])[0] if said >= 0 else []
        special = self.inner.get_added_tokens_decoder()
        return [code for code in codes if code in special][:1]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[bool]]:
        """(codes, whether the assistant says them) of messages by the template; an end follows the last answer where the
        template gives none. Raises ChatTemplateError."""
        assert self.chat is not None
        text, spans = self.chat.answered(messages)
        encoding = self.inner.encode(text, add_special_tokens=False)
        starts = np.array([first for first, _ in encoding.offsets], np.int64)
        said = np.zeros(len(starts), np.bool_)
        for first, last in spans:
            said |= (starts >= first) & (starts < last)
        codes, learnt = list(encoding.ids), said.tolist()
        if (
            spans
            and messages[-1]["role"] == "assistant"
            and not self.ends & set(np.array(codes)[starts >= spans[-1][0]])
        ):
            codes, learnt = [*codes, self.end], [*learnt, True]
        return codes, learnt

    def encode_question(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The codes of messages by the template, up to where the assistant is to answer. Raises ChatTemplateError."""
        assert self.chat is not None
        return self.encode([self.chat.written(messages, answering=True)])[0]

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        return str(self.inner.to_str())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The codes of each text, without special ones."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_within(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """The first ``length`` codes of each text."""
        return [codes[:length] for codes in self.encode(texts)]

    def decode(self, codes: Sequence[int]) -> str:
        """The text of codes; special ones are left out, and so is NUL: no data hold it, and PostgreSQL cannot."""
        return str(self.inner.decode(list(codes), skip_special_tokens=True)).replace("\0", "")


def read_tokenizer(content: str) -> Tokenizer:
    """What `Tokenizer.to_json` wrote. Raises PackageError."""
    if len(content) > MAXIMUM_BYTES:
        raise PackageError(f"{FILE} is larger than {MAXIMUM_BYTES >> 20} MB.")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(content))
    # The library raises bare Exception for whatever it cannot read.
    except Exception as error:
        raise PackageError(f"{FILE} is no readable tokenizer.") from error


def fit_tokenizer(texts: Iterable[str], kind: str, vocabulary: int, more: tuple[str, ...] = ()) -> Tokenizer:
    """A tokenizer of at most ``vocabulary`` codes; ``kind`` byte knows the 256 bytes only. ``more``: special tokens."""
    special = [*SPECIAL, *more]
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bpe")
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = vocabulary if kind == "bpe" else len(special) + len(alphabet)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    inner.train_from_iterator(_limited(texts), trainer)
    return Tokenizer(inner)


def _limited(texts: Iterable[str]) -> Iterator[str]:
    left = FITTED_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)


def encode_rows(tokenizer: Tokenizer, texts: Sequence[str | None], length: int, beat: Any) -> Codes:
    """(n,) texts → (n, length) codes, cut or padded with 0; a missing text is all padding."""
    encoded = np.zeros((len(texts), length), np.int32)
    for first in range(0, len(texts), PIECE):
        piece = [text or "" for text in texts[first : first + PIECE]]
        # What lies far behind the last code that is kept need not be read.
        for row, codes in enumerate(tokenizer.encode_within([text[: length * 32] for text in piece], length), first):
            encoded[row, : len(codes)] = codes
        beat()
    return encoded
