"""Merging the weights of models that come from one another, tensor by tensor.

The result has the layout of the first parent's file. With a common ancestor a tensor that only one side changed is
taken from that side, bit for bit; the method decides about those that several sides changed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

METHODS: Final = ("average", "slerp", "task-arithmetic", "ties", "regmean")
NEARLY_PARALLEL: Final = 0.9995  # cosine from which on slerp is a straight line
JITTER: Final = 1e-6  # of the mean diagonal, so that RegMean's sum of Gram matrices can be solved


class MergeConflict(Exception):
    """The files cannot be merged; ``problems`` are sentences that name the tensors."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems[:5]))
        self.problems = problems


@dataclass(frozen=True)
class Recipe:
    """How to merge.

    ``shares`` are one number for each parent: proportions for average and slerp (of two), factors of the changes
    since the ancestor for task-arithmetic and ties; None is equal proportions, or 1. ``density`` is the share of
    each change that ties keeps, ``shrink`` the factor of the off-diagonal of RegMean's Gram matrices.
    """

    method: str = "average"
    shares: tuple[float, ...] | None = None
    density: float = 0.2
    shrink: float = 0.9


Grams = Mapping[str, Tensor]


def merge_weights(
    target: Path,
    parents: Sequence[Path],
    ancestor: Path | None,
    recipe: Recipe,
    grams: Sequence[Grams] = (),
    beat: Callable[[float], None] = lambda _: None,
) -> list[dict[str, str]]:
    """Write the merged file; [{"name", "how"}] with how: same, taken, merged.

    ``grams`` are for RegMean, one for each parent: {weight name: (…, in, in)}; weights without one are averaged.
    Raises MergeConflict for tensors that do not fit together and for recipes that do not fit the parents.
    """
    _check(parents, ancestor, recipe, grams)
    files = [path for path in (*parents, ancestor) if path is not None]
    headers = [_header(path) for path in files]
    _check_tensors(headers)
    raw, layout = headers[0]
    names = sorted(layout, key=lambda name: layout[name]["data_offsets"][0])
    report = []
    with target.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        for position, name in enumerate(names):
            tensors = [_tensor(path, name) for path in files]
            sides, base = tensors[: len(parents)], tensors[len(parents)] if ancestor else None
            merged, how = _merge(name, sides, base, recipe, [gram.get(name) for gram in grams])
            out.write(_bytes(merged))
            report.append({"name": name, "how": how})
            beat((position + 1) / len(names))
    return report


def _check(parents: Sequence[Path], ancestor: Path | None, recipe: Recipe, grams: Sequence[Grams]) -> None:
    problems = []
    if recipe.method not in METHODS:
        problems.append(f"the method is one of: {', '.join(METHODS)}")
    if len(parents) < 2:
        problems.append("a merge needs two versions")
    if recipe.shares is not None and len(recipe.shares) != len(parents):
        problems.append(f"{len(recipe.shares)} shares for {len(parents)} versions")
    if recipe.shares is not None and recipe.method in ("average", "slerp") and not sum(recipe.shares) > 0:
        problems.append("the shares must add up to more than zero")
    if recipe.method == "slerp" and len(parents) != 2:
        problems.append("slerp merges exactly two versions")
    if recipe.method in ("task-arithmetic", "ties") and ancestor is None:
        problems.append(f"{recipe.method} needs a common ancestor")
    if recipe.method == "ties" and not 0 < recipe.density <= 1:
        problems.append("the density lies between 0 and 1")
    if recipe.method == "regmean" and len(grams) != len(parents):
        problems.append("regmean needs inputs of every version")
    if problems:
        raise MergeConflict(problems)


def _header(path: Path) -> tuple[bytes, dict[str, Any]]:
    """(the header as it stands, {tensor: its entry})."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        raw = file.read(length)
    return raw, {name: entry for name, entry in json.loads(raw).items() if name != "__metadata__"}


def _check_tensors(headers: list[tuple[bytes, dict[str, Any]]]) -> None:
    problems = []
    first = headers[0][1]
    for _, other in headers[1:]:
        problems += [f"{name} is not in all versions" for name in sorted(first.keys() ^ other.keys())]
        for name in sorted(first.keys() & other.keys()):
            ours, theirs = ((entry["dtype"], entry["shape"]) for entry in (first[name], other[name]))
            if ours != theirs:
                problems.append(f"{name} is {_described(*ours)} in one version and {_described(*theirs)} in another")
    if problems:
        raise MergeConflict(sorted(set(problems)))


def _described(dtype: str, shape: list[int]) -> str:
    return f"{dtype} {'×'.join(map(str, shape)) or 'scalar'}"


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        found: Tensor = file.get_tensor(name)
        return found


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else b""


def _same(left: Tensor, right: Tensor) -> bool:
    """To the bit: −0.0 and 0.0 differ, equal NaNs do not."""
    return _bytes(left) == _bytes(right)


def _merge(
    name: str, sides: list[Tensor], base: Tensor | None, recipe: Recipe, grams: list[Tensor | None]
) -> tuple[Tensor, str]:
    if all(_same(sides[0], other) for other in sides[1:]) and recipe.method not in ("task-arithmetic", "ties"):
        return sides[0], "same"
    changed = [index for index, side in enumerate(sides) if base is None or not _same(side, base)]
    if base is not None and not changed:
        return base, "same"
    shares = recipe.shares or (1.0,) * len(sides)
    scaled = recipe.method in ("task-arithmetic", "ties")
    if len(changed) == 1 and not (scaled and shares[changed[0]] != 1.0) and recipe.method != "ties":
        return sides[changed[0]], "taken"
    if not sides[0].is_floating_point():
        raise MergeConflict([f"{name} holds whole numbers that several versions changed"])
    doubles = [side.double() for side in sides]
    start = base.double() if base is not None else None
    result = _combine(doubles, start, changed, shares, recipe, grams)
    return result.to(sides[0].dtype), "merged"


def _combine(
    sides: list[Tensor], base: Tensor | None, changed: list[int], shares: tuple[float, ...], recipe: Recipe,
    grams: list[Tensor | None],
) -> Tensor:  # fmt: skip
    if recipe.method == "task-arithmetic":
        assert base is not None
        return _task_arithmetic(base, [(shares[index], sides[index]) for index in changed])
    if recipe.method == "ties":
        assert base is not None
        return _ties(base, [shares[index] * (sides[index] - base) for index in changed], recipe.density)
    if recipe.method == "slerp":
        return _slerp(sides[0], sides[1], shares[1] / sum(shares))
    if recipe.method == "regmean" and all(gram is not None for gram in grams):
        return _regmean(sides, [gram for gram in grams if gram is not None], recipe.shrink)
    return _average(sides, shares)


def _average(sides: list[Tensor], shares: tuple[float, ...]) -> Tensor:
    return torch.stack([side * (share / sum(shares)) for side, share in zip(sides, shares, strict=True)]).sum(0)


def _slerp(left: Tensor, right: Tensor, t: float) -> Tensor:
    """Along the arc between two weight vectors (Shoemake 1985); a straight line where they are nearly parallel."""
    lengths = left.norm() * right.norm()
    cosine = float((left * right).sum() / lengths) if float(lengths) else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return (1 - t) * left + t * right
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * left + math.sin(t * angle) * right) / math.sin(angle)


def _task_arithmetic(base: Tensor, sides: list[tuple[float, Tensor]]) -> Tensor:
    """base + Σ factor·(side − base) (Ilharco et al. 2023), written so that one side with the factor 1 is that side."""
    rest = 1.0 - sum(factor for factor, _ in sides)
    terms = [(factor, side) for factor, side in sides if factor]
    terms += [(rest, base)] if rest else []
    if not terms:
        return base
    factor, result = terms[0][0], terms[0][1]
    result = result if factor == 1.0 else factor * result
    for factor, tensor in terms[1:]:
        result = result + factor * tensor
    return result


def _ties(base: Tensor, changes: list[Tensor], density: float) -> Tensor:
    """Trim, elect a sign, and average those that agree with it (Yadav et al. 2023, "TIES-Merging")."""
    trimmed = torch.stack([_trim(change, density) for change in changes])
    sign = torch.sign(trimmed.sum(0))
    agreeing = (torch.sign(trimmed) == sign) & (trimmed != 0)
    count = agreeing.sum(0).clamp(min=1)
    return base + (trimmed * agreeing).sum(0) / count


def _trim(change: Tensor, density: float) -> Tensor:
    """Only the greatest ``density`` of a change, by magnitude."""
    kept = math.ceil(density * change.numel())
    if kept >= change.numel():
        return change
    least = change.abs().flatten().kthvalue(change.numel() - kept + 1).values
    return torch.where(change.abs() >= least, change, 0.0)


def _regmean(sides: list[Tensor], grams: list[Tensor], shrink: float) -> Tensor:
    """The weights whose outputs are nearest to those of every parent on its own inputs (Jin et al. 2023, "Dataless
    Knowledge Fusion"): (Σ Gᵢ)⁻¹ Σ Gᵢ Wᵢ with the off-diagonal of every Gᵢ shrunk. Weights are (…, in, out)."""
    soft = [shrink * gram.double() + (1 - shrink) * torch.diag_embed(_diagonal(gram.double())) for gram in grams]
    total = torch.stack(soft).sum(0)
    level = _diagonal(total).mean(-1, keepdim=True) * JITTER
    total = total + torch.diag_embed((level + torch.finfo(torch.float64).tiny).expand_as(_diagonal(total)))
    wanted = torch.stack([gram @ side for gram, side in zip(soft, sides, strict=True)]).sum(0)
    solved: Tensor = torch.linalg.solve(total, wanted)
    return solved


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)
