"""Rows of a deployment's log in words."""

from collections.abc import Iterable
from typing import Any

from .models import DeploymentChange
from .states import ANSWERING, goes_back_while_held


def in_words(changes: Iterable[DeploymentChange], *, held: dict[str, Any] | None = None) -> list[DeploymentChange]:
    """The same rows, each with ``details``, sentences about its details, ``answers``: whether it tells who answers, and
    ``undoable``: whether it can be taken back.

    ``held``: the state now of a deployment that somebody holds.
    """
    rows = list(changes)
    for row in rows:
        row.details = details_of(row.before, row.after)  # type: ignore[attr-defined]
        row.answers = any(row.before.get(name) != row.after.get(name) for name in ANSWERING)  # type: ignore[attr-defined]
        row.undoable = bool(row.before["variants"]) if held is None else goes_back_while_held(row, held)  # type: ignore[attr-defined]
    return rows


def details_of(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed beside the answers. Rows that say nothing of a detail (the creation, earlier releases) changed none."""
    told = []
    if _changed("description", before, after):
        told.append(_described(before["description"], after["description"]))
    if _changed("sample_rate", before, after):
        told.append(f"the log keeps {kept(after['sample_rate'])} instead of {_short(before['sample_rate'])}")
    return told


def _changed(name: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    return name in before and name in after and bool(before[name] != after[name])


def _described(before: str, after: str) -> str:
    if not before:
        return "description added"
    return "description changed" if after else "description removed"


def kept(rate: float) -> str:
    """What a log keeps at a sample rate, from 0 to 1."""
    return {0.0: "none of the requests", 1.0: "all requests"}.get(rate, f"{_percent(rate)} of the requests")


def _short(rate: float) -> str:
    return {0.0: "none", 1.0: "all"}.get(rate, _percent(rate))


def _percent(rate: float) -> str:
    return f"{100 * rate:.4g} %"
