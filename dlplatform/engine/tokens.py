"""Tokenizers fitted on texts of the data: byte-level BPE (Sennrich et al., 2016; Radford et al., 2019), or bytes.

The package holds them as ``tokenizer.json``, the format of the ``tokenizers`` library, which cannot run code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dlplatform.engine.errors import PackageError

FILE: Final = "tokenizer.json"
MAXIMUM_BYTES: Final = 64 << 20
PADDING: Final = "<pad>"
END: Final = "<end>"
SPECIAL: Final = (PADDING, END)
FITTED_CHARACTERS: Final = 50_000_000
PIECE: Final = 1024  # texts encoded between two beats
LONGEST: Final = 256  # tokens of a text that are read unless more are asked for

Codes = np.ndarray[Any, np.dtype[np.int32]]


class Tokenizer:
    """Texts to codes and back. Code 0 is padding. ``longest``: tokens that are read of a text by default, at most."""

    longest = LONGEST

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self.inner = inner
        end = inner.token_to_id(END)
        self.end = int(end) if end is not None else 0

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
        """The text of codes; special ones are left out."""
        return str(self.inner.decode(list(codes), skip_special_tokens=True))


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
