"""Cells written to a spreadsheet."""

from __future__ import annotations

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def neutralise(cell: str) -> str:
    """A text cell that a spreadsheet shows instead of running: `'` goes before a leading = + - @ tab or CR.

    For text cells only: a number keeps its minus sign by not being passed through here.
    """
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
