"""Transformer blocks, and the encoder that reads a text in order.

Pre-normalised blocks (Xiong et al., 2020, "On Layer Normalization in the Transformer Architecture") with fused
scaled-dot-product attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dlplatform.engine.dropout import Dropout


class Attention(nn.Module):
    """(B, L, D) → (B, L, D). ``mask`` (B, 1, 1, L): True where a token may be looked at; causal ignores it."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = inputs.shape
        split = self.inward(inputs).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)
        mixed: Tensor = self.outward(seen.transpose(1, 2).reshape(batch, length, width))
        return mixed


class Block(nn.Module):
    """Attention and a feed-forward layer four times as wide, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.feed_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs = inputs + self.dropout(self.attention(self.attention_norm(inputs), mask))
        fed = self.narrow(nn.functional.gelu(self.widen(self.feed_norm(inputs)), approximate="tanh"))
        changed: Tensor = inputs + self.dropout(fed)
        return changed


def initialise_blocks(module: nn.Module, layers: int, generator: torch.Generator) -> None:
    """Normal weights of deviation 0.02, those that end a residual branch smaller by √(2·layers) (GPT-2)."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            ends = name.endswith(("attention.outward", "narrow"))
            child.weight.normal_(0.0, 0.02 / math.sqrt(2 * layers) if ends else 0.02, generator=generator)
            if child.bias is not None:
                child.bias.zero_()
        elif isinstance(child, nn.Embedding):
            child.weight.normal_(0.0, 0.02, generator=generator)
        elif isinstance(child, nn.LayerNorm):
            child.weight.fill_(1.0)
            child.bias.zero_()


class TextEncoder(nn.Module):
    """(B, L) tokens, 0 for padding → (B, D): the mean of what the last block says about the tokens."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def initialise(self, generator: torch.Generator) -> None:
        """Set every weight."""
        initialise_blocks(self, len(self.blocks), generator)

    def forward(self, tokens: Tensor) -> Tensor:
        present = tokens > 0
        places = torch.arange(tokens.shape[1], device=tokens.device)
        state = self.dropout(self.tokens(tokens) + self.positions(places))
        # A text without tokens would look at nothing at all, which is undefined: it looks at its padding.
        mask = (present | ~present.any(1, keepdim=True)).view(tokens.shape[0], 1, 1, -1)
        for block in self.blocks:
            state = block(state, mask)
        weights = present.to(state.dtype).unsqueeze(-1)
        mean: Tensor = (self.norm(state) * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return mean
