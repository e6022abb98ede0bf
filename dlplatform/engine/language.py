"""A language model: a decoder of transformer blocks that predicts the next token, and how it writes.

The architecture of GPT-2 (Radford et al., 2019) with pre-normalised blocks and input and output embeddings in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlplatform.engine.attention import Block, initialise_blocks
from dlplatform.engine.dropout import Dropout
from dlplatform.engine.errors import PackageError
from dlplatform.engine.transformers_config import checked

ARCHITECTURE = "decoder"
LIMITS = {
    "vocabulary": (2, 1 << 20),
    "length": (4, 1 << 16),
    "width": (1, 1 << 14),
    "layers": (1, 128),
    "heads": (1, 1 << 10),
}


@dataclass(frozen=True)
class LanguageShape:
    """Everything that fixes the tensors of a language model. ``length``: tokens that it looks back at, at most.
    ``transformer``: a `transformers_config.Transformer` in its JSON form, which alone fixes the rest if it is given."""

    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int
    dropout: float = 0.0
    architecture: str = ARCHITECTURE
    transformer: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; packages without a transformers architecture do not mention one."""
        described = asdict(self)
        return (
            described
            if self.transformer
            else {name: value for name, value in described.items() if name != "transformer"}
        )

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> LanguageShape:
        """Read what `to_dict` wrote. Raises PackageError for numbers out of range."""
        try:
            shape = LanguageShape(**raw)
        except TypeError as error:
            raise PackageError("The architecture is not that of a language model of this platform.") from error
        for name, (low, high) in LIMITS.items():
            value = getattr(shape, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise PackageError(
                    f"The language model has {str(value)[:40]} for {name}; {low} to {high} are possible."
                )
        if shape.transformer is not None:
            checked(shape.transformer)
            return shape
        if shape.width % shape.heads or not isinstance(shape.dropout, int | float) or not 0 <= shape.dropout < 1:
            raise PackageError("The heads of the language model do not divide its width.")
        if shape.architecture != ARCHITECTURE:
            raise PackageError(f"The architecture {str(shape.architecture)[:40]!r} is unknown.")
        return shape


class LanguageNetwork(nn.Module):
    """(B, L) tokens → (B, L, vocabulary) logits of the token that follows each one."""

    def __init__(self, shape: LanguageShape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.dropout, causal=True) for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(shape.width)
        self.dropout = Dropout(shape.dropout)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Set every weight from the seed."""
        initialise_blocks(self, self.shape.layers, torch.Generator().manual_seed(seed))

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.tokens.weight.device

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        state = self.dropout(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            state = block(state)
        logits: Tensor = self.norm(state) @ self.tokens.weight.T
        return logits


COLDEST = 1e-6  # a lower temperature chooses the same token, and logits divided by it may be infinite


@dataclass(frozen=True)
class Writing:
    """How a text goes on. ``temperature`` 0 takes the likeliest token; ``top`` keeps so many of them; 0 keeps all."""

    most_tokens: int = 128
    temperature: float = 0.8
    top: int = 50
    seed: int = 0


def write(
    network: LanguageNetwork, prompt: list[int], ends: Set[int], how: Writing, agree: Callable[[int], int] = int
) -> Iterator[int]:
    """The tokens that follow a prompt, one after the other, until one of ``ends`` or ``how.most_tokens`` of them.

    ``agree``: makes of the token that one process chose that of all which hold a part of the network.
    """
    generator = torch.Generator().manual_seed(how.seed)
    device, padded = network.device, network.shape.transformer is None
    known = prompt[-network.shape.length :] or [min(ends)]
    # Weights that are put together from many processes for a pass must stay ordinary tensors.
    with torch.inference_mode() if agree is int else torch.no_grad():
        for _ in range(how.most_tokens):
            window = torch.tensor([known[-network.shape.length :]], device=device)
            logits = network(window)[0, -1].float().cpu()
            if padded:
                logits[0] = float("-inf")  # padding is nothing to say
            chosen = agree(_choose(logits, how, generator))
            if chosen in ends:
                return
            known.append(chosen)
            yield chosen


def _choose(logits: Tensor, how: Writing, generator: torch.Generator) -> int:
    if how.temperature <= 0:
        return int(logits.argmax())
    if 0 < how.top < len(logits):
        least = logits.topk(how.top).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    warmth = max(how.temperature, COLDEST)
    return int(torch.multinomial((logits / warmth).softmax(0), 1, generator=generator))
