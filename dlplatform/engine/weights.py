"""How far the tensors of two weight files are apart, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

ELEMENTS: Final = 4 << 20  # compared at once: 32 MB in double precision a side


def compare_weights(base: Path, head: Path, beat: Callable[[float], None] = lambda _: None) -> list[dict[str, Any]]:
    """One row for each tensor of either safetensors file, in the order of ``head``, the removed ones last.

    Keys: name, status (same, changed, added, removed, reshaped), shape, elements; where the shapes agree also
    relative_norm ‖head − base‖ / ‖base‖ (None for a base of zeros that changed), cosine (None beside zeros),
    largest (greatest absolute change) and share (of elements that changed). Neither file is held in memory:
    tensors are mapped and read in pieces. ``beat`` gets the fraction that is done.
    """
    with safe_open(base, framework="pt") as before, safe_open(head, framework="pt") as after:
        old, new = set(before.keys()), list(after.keys())
        names = [*new, *sorted(old - set(new))]
        rows = []
        for position, name in enumerate(names):
            if name not in old:
                rows.append(_alone(name, "added", after.get_slice(name).get_shape()))
            elif name not in set(new):
                rows.append(_alone(name, "removed", before.get_slice(name).get_shape()))
            else:
                rows.append(_compare(name, before.get_slice(name), after.get_slice(name)))
            beat((position + 1) / len(names))
        return rows


def _alone(name: str, status: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "status": status, "shape": shape, "elements": math.prod(shape)}


def _compare(name: str, before: Any, after: Any) -> dict[str, Any]:
    shape = after.get_shape()
    if before.get_shape() != shape:
        return {**_alone(name, "reshaped", shape), "base_shape": before.get_shape()}
    squares = dict.fromkeys(("base", "head", "change", "product"), 0.0)
    largest, changed = 0.0, 0
    for old, new in _pieces(before, after, shape):
        difference = new - old
        squares["base"] += float(old @ old)
        squares["head"] += float(new @ new)
        squares["product"] += float(old @ new)
        squares["change"] += float(difference @ difference)
        if difference.numel():
            largest = max(largest, float(difference.abs().max()))
        changed += int(torch.count_nonzero(difference))
    elements = math.prod(shape)
    return {
        **_alone(name, "changed" if changed else "same", shape),
        "relative_norm": _ratio(squares["change"], squares["base"]),
        "cosine": _cosine(squares),
        "largest": largest,
        "share": changed / elements if elements else 0.0,
    }


def _pieces(before: Any, after: Any, shape: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same elements of both, flat and in double precision, some rows at a time."""
    if not shape:
        yield before[...].reshape(-1).double(), after[...].reshape(-1).double()
        return
    step = max(ELEMENTS // max(math.prod(shape[1:]), 1), 1)
    for first in range(0, shape[0], step):
        rows = slice(first, min(first + step, shape[0]))
        yield before[rows].reshape(-1).double(), after[rows].reshape(-1).double()


def _ratio(change: float, base: float) -> float | None:
    if not change:
        return 0.0
    return math.sqrt(change / base) if base else None


def _cosine(squares: dict[str, float]) -> float | None:
    lengths = math.sqrt(squares["base"] * squares["head"])
    return min(max(squares["product"] / lengths, -1.0), 1.0) if lengths else None
