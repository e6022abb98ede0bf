"""What every reader offers to the pipeline: named columns, batches that can be read twice, row numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

# One record batch; columns are named c0, c1, … so that odd headers never meet a parser.
Batch = Any


class Source(Protocol):
    """A decoded file.

    `typed` sources bring Arrow values of the types in `kinds`; the others bring strings and `kinds` is
    empty. `blank` are the positions of columns without a name of their own.
    """

    names: list[str]
    blank: set[int]
    typed: bool
    kinds: list[str]
    delimiter: str | None

    def batches(self) -> Iterator[Batch]:
        """Record batches from the beginning; may be called again. Raises Rejected."""

    def row_number(self, record: int) -> int:
        """The row shown to a user for the 0-based record."""

    def fraction(self) -> float:
        """How much of the file the running iteration has read, 0 to 1."""


def internal_names(count: int) -> list[str]:
    """c0, c1, …"""
    return [f"c{position}" for position in range(count)]
