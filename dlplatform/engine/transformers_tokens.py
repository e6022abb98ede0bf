"""Tokenizers that come with pretrained models: ``tokenizer.json``, which is data and cannot run code.

They put their own special tokens around a text. Since some of them give padding another code than 0 (RoBERTa), every
code is kept one higher, and 0 stays padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from dlplatform.engine.errors import PackageError
from dlplatform.engine.tokens import FILE, LONGEST, Tokenizer, read_tokenizer


class TransformersTokenizer(Tokenizer):
    """Texts to codes from 1 on, with special tokens; cut texts keep theirs. ``longest``: what the model can read."""

    def __init__(self, inner: tokenizers.Tokenizer, longest: int = LONGEST) -> None:
        super().__init__(inner)
        inner.no_padding()
        inner.no_truncation()
        self.longest = min(longest, LONGEST)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[code + 1 for code in encoding.ids] for encoding in self.inner.encode_batch_fast(list(texts))]

    def encode_within(self, texts: Sequence[str], length: int) -> list[list[int]]:
        self.inner.enable_truncation(length)
        try:
            return self.encode(texts)
        finally:
            self.inner.no_truncation()

    def decode(self, codes: Sequence[int]) -> str:
        return super().decode([code - 1 for code in codes if code > 0])


def as_transformers_tokenizer(tokenizer: Tokenizer, longest: int) -> TransformersTokenizer:
    """A tokenizer fitted on the data, as networks of the library are given its codes."""
    return TransformersTokenizer(tokenizer.inner, longest)


def read_transformers_tokenizer(content: str, vocabulary: int, longest: int = LONGEST) -> TransformersTokenizer:
    """The tokenizer of a model that knows ``vocabulary`` codes. Raises PackageError when it has more of them."""
    found = TransformersTokenizer(read_tokenizer(content).inner, longest)
    if found.size > vocabulary:
        raise PackageError(f"{FILE} has {found.size:,} tokens, but the model knows {vocabulary:,}.")
    return found
