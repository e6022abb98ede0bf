"""Which trials go on: rungs after which they are judged, and the judgement. Pure.

ASHA (Li et al., 2018, arXiv 1810.05934): a trial stops at each rung; the best of every ``eta`` that reached it goes on,
as soon as it is known to be among them. Median (Golovin et al., 2017, section 3.2.2): a trial ends when it is worse than
the median of the others at the same rung.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

MEDIAN_STARTUP = 4  # so many others must have reached a rung before anybody is judged there
ASHA, MEDIAN, NONE = "asha", "median", "none"

Verdict = Literal["continue", "prune"]


@dataclass(frozen=True)
class Standing:
    """How far a trial has come. ``values``: the metric at each rung that it reached, lower is better; ``waiting`` at the
    last of these."""

    number: int
    values: tuple[float, ...]
    waiting: bool


def rung_epochs(pruner: str, least: int, epochs: int, eta: int) -> list[int]:
    """The epochs after which trials are judged: least × eta^k for ASHA, every ``least`` for the median; below ``epochs``."""
    if pruner == NONE:
        return []
    if pruner == MEDIAN:
        return list(range(least, epochs, least))
    rungs, epoch = [], least
    while epoch < epochs:
        rungs.append(epoch)
        epoch *= eta
    return rungs


def promotable(standings: Sequence[Standing], rungs: int, eta: int) -> Standing | None:
    """The trial that ASHA lets go on next: of the highest rung where one of the best waits; None when nobody may."""
    for rung in reversed(range(rungs)):
        reached = sorted((one for one in standings if len(one.values) > rung), key=lambda one: _rank(one, rung))
        for one in reached[: len(reached) // eta]:
            if _waits_at(one, rung):
                return one
    return None


def last_hope(standings: Sequence[Standing]) -> Standing | None:
    """Of those that wait when nothing else is left to do: the best of those that came farthest."""
    waiting = [one for one in standings if one.waiting and one.values]
    farthest = max((len(one.values) for one in waiting), default=0)
    found = [one for one in waiting if len(one.values) == farthest]
    return min(found, key=lambda one: _rank(one, farthest - 1), default=None)


def median_verdict(one: Standing, standings: Sequence[Standing]) -> Verdict:
    """Of a trial that waits at a rung."""
    rung = len(one.values) - 1
    others = [other.values[rung] for other in standings if other.number != one.number and len(other.values) > rung]
    if len(others) < MEDIAN_STARTUP:
        return "continue"
    return "prune" if one.values[rung] > median(others) else "continue"


def _rank(one: Standing, rung: int) -> tuple[float, int]:
    """By the value, then by age."""
    return one.values[rung], one.number


def _waits_at(one: Standing, rung: int) -> bool:
    return one.waiting and len(one.values) == rung + 1
