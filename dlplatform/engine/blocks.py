"""The blocks of a network: the parts that fine-tuning freezes, trains or adapts, by name. Torch-free."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence


def block_of(name: str) -> str:
    """The block that holds a tensor: up to a number in its name (``hidden.0``), else the module that owns it."""
    path = name.split(".")[:-1]
    numbered = next((place for place, part in enumerate(path) if part.isdigit()), None)
    return ".".join(path if numbered is None else path[: numbered + 1]) or "inputs"


def blocks_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """{block: parameters} in the order of the names."""
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        block = block_of(name)
        counts[block] = counts.get(block, 0) + math.prod(shape)
    return counts


# The blocks of our own networks for rows from which the answer comes, and what others call theirs.
ANSWERING = ("linear", "head")
HEADS = (*ANSWERING, "lm_head", "score", "classifier")


def usual_heads(blocks: Iterable[str]) -> list[str]:
    """The blocks that answer: heads by their name, else the last numbered one and what follows it."""
    names = list(blocks)
    if heads := chosen(names, HEADS):
        return heads
    numbered = sorted((int(name.rpartition(".")[2]), name) for name in names if name.rpartition(".")[2].isdigit())
    return [*(name for _, name in numbered[-1:]), *chosen(names, ("norm",))] or names[-1:]


def chosen(blocks: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The blocks that a pattern names: itself, everything below it, or with ``*`` and ``?``."""
    wanted = list(patterns)
    return [block for block in blocks if any(_matches(block, pattern) for pattern in wanted)]


def _matches(block: str, pattern: str) -> bool:
    return block == pattern or block.startswith(f"{pattern}.") or fnmatch.fnmatchcase(block, pattern)
