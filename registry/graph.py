"""The history of a model as a drawing: which lane each version stands in and which lines join them.

Versions are drawn from the newest down, one row each. A lane is held by the version that it waits for; a version
takes the leftmost lane that waits for it and passes it on to its first parent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

ROW = 44  # height in pixels; the style sheet gives table rows the same
LANE = 16
COLOURS = 6


@dataclass
class Line:
    """One stroke of a row, as an SVG path, in the colour of its outer lane."""

    path: str
    outer: int

    @property
    def colour(self) -> int:
        return self.outer % COLOURS


@dataclass
class GraphRow:
    number: int
    lane: int
    lines: list[Line] = field(default_factory=list)

    @property
    def x(self) -> int:
        return centre(self.lane)

    @property
    def y(self) -> int:
        return ROW // 2

    @property
    def colour(self) -> int:
        return self.lane % COLOURS


def centre(lane: int) -> int:
    return lane * LANE + LANE // 2


def graph(numbers: Sequence[int], parents: dict[int, list[int]]) -> list[GraphRow]:
    """Rows for versions given newest first, with {number: parents' numbers}; every parent must come later."""
    lanes: list[int | None] = []
    rows = []
    for number in numbers:
        waiting = [lane for lane, expected in enumerate(lanes) if expected == number]
        lane = waiting[0] if waiting else _free(lanes)
        row = GraphRow(number, lane)
        for other, expected in enumerate(lanes):
            if expected is not None and expected != number:
                row.lines.append(_line(other, 0, other, ROW))
        row.lines += [_line(other, 0, lane, ROW // 2) for other in waiting]
        for other in waiting:
            lanes[other] = None
        for position, parent in enumerate(parents.get(number, [])):
            row.lines.append(_line(lane, ROW // 2, _pass_on(lanes, lane, parent, position), ROW))
        while lanes and lanes[-1] is None:
            lanes.pop()
        rows.append(row)
    return rows


def width_of(rows: Sequence[GraphRow]) -> int:
    """Pixels that the drawing of these rows needs."""
    return LANE * (1 + max((max([row.lane, *(line.outer for line in row.lines)]) for row in rows), default=0))


def _pass_on(lanes: list[int | None], lane: int, parent: int, position: int) -> int:
    """The lane in which a parent is waited for: the child's own for the first; else where it is waited for, or a free one."""
    if position and parent in lanes:
        return lanes.index(parent)
    chosen = lane if position == 0 else _free(lanes)
    while len(lanes) <= chosen:
        lanes.append(None)
    lanes[chosen] = parent
    return chosen


def _free(lanes: list[int | None]) -> int:
    return lanes.index(None) if None in lanes else len(lanes)


def _line(start: int, top: int, end: int, bottom: int) -> Line:
    left, right = centre(start), centre(end)
    if left == right:
        return Line(f"M{left} {top}V{bottom}", start)
    middle = (top + bottom) // 2
    return Line(f"M{left} {top}C{left} {middle} {right} {middle} {right} {bottom}", max(start, end))
