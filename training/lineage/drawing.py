"""A lineage as a drawing: which column and row each thing stands in, and which lines join them.

What is made of something stands to its right; what continues a line (the next version of a model or of a dataset)
stands below. So the columns follow the depth of the derivation, and a history of a hundred versions stays narrow.
"""

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import datetime

from .relations import DATASET_VERSION, MODEL_VERSION, RUN
from .walk import ANCESTORS, Edge, Lineage, More, Node

WIDTH, HEIGHT = 216, 70  # of a box
GAP, PITCH = 64, 92  # between columns; from row to row
MARGIN = 12
ARROW = 5
TRUNKS, TRUNK, ASIDE = 5, 9, 18  # lanes in a gap, so that lines of neighbouring sources do not fall together
ROUND = 8
PASSING = 8  # how far beside its column a line passes by other boxes
ENTRY = 30  # from the right end of the box that it then enters from above
LONGEST_NAME = 19
MORE = "more"  # the lines to what is left out
LINES_DOWN = {"extended", "continued", "restored"}
PLAIN = "M8 0H208A8 8 0 0 1 216 8V62A8 8 0 0 1 208 70H8A8 8 0 0 1 0 62V8A8 8 0 0 1 8 0Z"
SHAPES = {
    DATASET_VERSION: "M0 6A108 6 0 0 1 216 6V64A108 6 0 0 1 0 64ZM0 6A108 6 0 0 0 216 6",
    RUN: "M35 0H181A35 35 0 0 1 181 70H35A35 35 0 0 1 35 0Z",
    MODEL_VERSION: "M14 0H202L216 35L202 70H14L0 35Z",
}


@dataclass(frozen=True)
class Box:
    """A node, or what is left out beside it, at its place."""

    x: int
    y: int
    node: Node
    more: More | None = None
    central: bool = False

    @property
    def shape(self) -> str:
        return PLAIN if self.more else SHAPES.get(self.node.key.kind, PLAIN)

    @property
    def name(self) -> str:
        text = self.node.name
        return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


@dataclass(frozen=True)
class Line:
    """An SVG path; ``kind`` is the relation that it draws."""

    path: str
    kind: str


@dataclass(frozen=True)
class Drawing:
    width: int
    height: int
    boxes: list[Box]
    lines: list[Line]


@dataclass
class _Plan:
    """Places in whole columns and rows. A line across several columns has a bend, with a row of its own, in each."""

    columns: dict[Hashable, int]
    times: dict[Hashable, tuple[datetime, int]]
    before: dict[Hashable, list[Hashable]] = field(default_factory=dict)
    rows: dict[Hashable, int] = field(default_factory=dict)
    taken: set[tuple[int, int]] = field(default_factory=set)


def draw(lineage: Lineage) -> Drawing:
    """Places for everything in a lineage, from left to right and from top to bottom."""
    columns = _columns(lineage)
    plan = _Plan(dict(columns), {key: (node.created_at, 0) for key, node in lineage.nodes.items()})
    _add_more(plan, lineage)
    routes = [(edge.kind, _route(plan, edge.source, edge.target, edge.kind)) for edge in lineage.edges]
    for more in lineage.more:
        above = more.direction == ANCESTORS
        source, target = (more, more.key) if above else (more.key, more)
        routes.append((MORE, _route(plan, source, target, MORE)))
    _place_rows(plan)
    boxes = [Box(*_corner(plan, key), node, central=key == lineage.center) for key, node in lineage.nodes.items()]
    boxes += [Box(*_corner(plan, more), lineage.nodes[more.key], more) for more in lineage.more]
    boxes.sort(key=lambda box: (box.x, box.y))
    left = min(plan.columns.values())
    return Drawing(
        width=(max(plan.columns.values()) - left) * (WIDTH + GAP) + WIDTH + 2 * MARGIN,
        height=max(plan.rows.values()) * PITCH + HEIGHT + 2 * MARGIN,
        boxes=boxes,
        # Where lines share a trunk, those to what is left out lie below the others.
        lines=sorted((Line(_path(plan, route), kind) for kind, route in routes), key=lambda line: line.kind != MORE),
    )


def _columns(lineage: Lineage) -> dict[Hashable, int]:
    """The longest way from the centre, counting only the steps to the side; ancestors have negative columns."""
    columns: dict[Hashable, int] = dict.fromkeys(lineage.nodes, 0)
    depths = {key: node.depth for key, node in lineage.nodes.items()}
    behind = [edge for edge in lineage.edges if depths[edge.source] < 0 and depths[edge.target] <= 0]
    ahead = [edge for edge in lineage.edges if depths[edge.source] >= 0 and depths[edge.target] > 0]
    for _ in lineage.nodes:  # more rounds than there are nodes can change nothing
        moved = False
        for edge in behind:
            column = columns[edge.target] - _width(edge)
            moved, columns[edge.source] = moved or column < columns[edge.source], min(column, columns[edge.source])
        for edge in ahead:
            column = columns[edge.source] + _width(edge)
            moved, columns[edge.target] = moved or column > columns[edge.target], max(column, columns[edge.target])
        if not moved:
            break
    return columns


def _width(edge: Edge) -> int:
    return 0 if edge.kind in LINES_DOWN else 1


def _add_more(plan: _Plan, lineage: Lineage) -> None:
    """What is left out stands beside its node, above all else of that column for ancestors and below it otherwise."""
    times = [node.created_at for node in lineage.nodes.values()]
    for more in lineage.more:
        plan.columns[more] = plan.columns[more.key] + more.direction
        plan.times[more] = (min(times), -1) if more.direction == ANCESTORS else (max(times), 1)


def _route(plan: _Plan, source: Hashable, target: Hashable, kind: str) -> list[Hashable]:
    """The places that a line passes: its ends, and a bend in every column between them."""
    route = [source]
    for column in range(plan.columns[source] + 1, plan.columns[target]):
        route.append((source, target, kind, column))
        plan.columns[route[-1]], plan.times[route[-1]] = column, plan.times[target]
    route.append(target)
    for before, place in itertools.pairwise(route):
        plan.before.setdefault(place, []).append(before)
    return route


def _place_rows(plan: _Plan) -> None:
    """Column by column: each thing as near as possible to the row of what it comes from, the older ones above."""
    for column in sorted(set(plan.columns.values())):
        members = sorted((place for place in plan.columns if plan.columns[place] == column), key=plan.times.__getitem__)
        wanted: dict[Hashable, int] = {}
        for place in members:
            before = plan.before.get(place, [])
            beside = [plan.rows[each] for each in before if plan.columns[each] < column]
            above = [wanted[each] for each in before if each in wanted]
            wanted[place] = max(above + ([min(beside)] if beside else []), default=0)
        last = -1
        for place in sorted(members, key=wanted.__getitem__):
            last = max(last + 1, wanted[place])
            plan.rows[place] = last
            plan.taken.add((column, last))


def _corner(plan: _Plan, place: Hashable) -> tuple[int, int]:
    left = min(plan.columns.values())
    return MARGIN + (plan.columns[place] - left) * (WIDTH + GAP), MARGIN + plan.rows[place] * PITCH


def _path(plan: _Plan, route: list[Hashable]) -> str:
    start, end = route[0], route[-1]
    if plan.columns[start] == plan.columns[end]:
        return _path_down(plan, start, end)
    x, y = _corner(plan, start)
    path = f"M{x + WIDTH} {y + HEIGHT // 2}"
    for before, place in itertools.pairwise(route):
        top, (x, y) = _corner(plan, before)[1] + HEIGHT // 2, _corner(plan, place)
        left, right = x - GAP, x - ARROW if place == end else x
        trunk = left + ASIDE + plan.rows[before] % TRUNKS * TRUNK
        path += _sideways(left, trunk, right, top, y + HEIGHT // 2)
        path += "" if place == end else f"H{x + WIDTH}"
    return path


def _sideways(left: int, trunk: int, right: int, top: int, bottom: int) -> str:
    """From row to row along a trunk. It curves to either side of it, so that no two lines share a level stretch."""
    if top == bottom:
        return f"H{right}"
    way = 1 if bottom > top else -1
    leaves, enters = top + way * (trunk - left), bottom - way * (right - trunk)
    return f"Q{trunk} {top} {trunk} {leaves}V{enters}Q{trunk} {bottom} {right} {bottom}"


def _path_down(plan: _Plan, start: Hashable, end: Hashable) -> str:
    """Straight down when nothing stands between, else past the others and in from above."""
    (x, top), (_, bottom) = _corner(plan, start), _corner(plan, end)
    between = range(plan.rows[start] + 1, plan.rows[end])
    if top < bottom and not any((plan.columns[start], row) in plan.taken for row in between):
        return f"M{x + WIDTH // 2} {top + HEIGHT}V{bottom - ARROW}"
    right, out, entry = x + WIDTH, x + WIDTH + PASSING, x + WIDTH - ENTRY
    middle, above = top + HEIGHT // 2, bottom - (PITCH - HEIGHT) // 2
    return (
        f"M{right} {middle}Q{out} {middle} {out} {middle + ROUND}V{above - ROUND}Q{out} {above} {out - ROUND} {above}"
        f"H{entry + ROUND}Q{entry} {above} {entry} {bottom - ARROW}"
    )
