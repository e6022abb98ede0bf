"""The drawing of a lineage: nothing overlaps, ancestors stand left and above, every line leads on."""

import re
import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from training.lineage.drawing import GAP, HEIGHT, PITCH, WIDTH, draw
from training.lineage.relations import KINDS
from training.lineage.walk import ANCESTORS, DESCENDANTS, Edge, Key, Lineage, More, Node

START = datetime(2026, 3, 1, tzinfo=UTC)
STEP = WIDTH + GAP


def key(number, kind="model-version"):
    return Key(kind, uuid.UUID(int=number))


def lineage(depths, edges, more=(), kinds=None):
    """``depths`` by number, in the order in which things were made; edges are (source, target, kind)."""
    keys = {number: key(number, (kinds or {}).get(number, "model-version")) for number in depths}
    nodes = {
        keys[number]: Node(keys[number], f"thing {number}", None, START + timedelta(hours=number), "/", depth)
        for number, depth in depths.items()
    }
    center = next(keys[number] for number, depth in depths.items() if depth == 0)
    joined = [Edge(keys[source], keys[target], kind) for source, target, kind in edges]
    return Lineage(center, nodes, joined, [More(keys[number], way, 3, "/") for number, way in more])


def places(drawing):
    """{number of the node: (column, row)}."""
    return {
        box.node.key.id.int: ((box.x - drawing.boxes[0].x) // STEP, (box.y - 12) // PITCH)
        for box in drawing.boxes
        if not box.more
    }


def test_what_is_made_of_something_stands_right_and_what_continues_it_below():
    data, run, first, second = 1, 2, 3, 4
    drawing = draw(
        lineage(
            {data: 0, run: 1, first: 2, second: 3},
            [(data, run, "input"), (run, first, "output"), (first, second, "continued")],
        )
    )
    assert places(drawing) == {data: (0, 0), run: (1, 0), first: (2, 0), second: (2, 1)}
    assert [line.path for line in drawing.lines][2] == f"M{12 + 2 * STEP + WIDTH // 2} {12 + HEIGHT}V{12 + PITCH - 5}"
    assert drawing.width == 2 * STEP + WIDTH + 24 and drawing.height == PITCH + HEIGHT + 24


def test_a_long_history_stays_as_narrow_as_a_short_one():
    short, long = ({n: n - 1 for n in range(1, count)} for count in (3, 13))
    steps = [(n, n + 1, "continued") for n in range(1, 12)]
    assert draw(lineage(short, steps[:1])).width == draw(lineage(long, steps)).width == WIDTH + 24


def test_a_line_within_a_column_goes_round_what_stands_between():
    drawing = draw(lineage({1: 0, 2: 1, 3: 1}, [(1, 2, "continued"), (1, 3, "continued")]))
    straight, round_ = (line.path for line in drawing.lines)
    assert "Q" not in straight and "Q" in round_ and places(drawing) == {1: (0, 0), 2: (0, 1), 3: (0, 2)}


def test_a_line_across_a_column_has_a_row_of_its_own_there():
    drawing = draw(lineage({1: 0, 2: 1, 3: 1}, [(1, 2, "merged"), (2, 3, "merged"), (1, 3, "data")]))
    assert places(drawing) == {1: (0, 0), 2: (1, 0), 3: (2, 0)}
    assert f"{12 + PITCH + HEIGHT // 2}H{12 + STEP + WIDTH}" in drawing.lines[2].path


def test_what_is_left_out_stands_beside_its_node():
    drawing = draw(lineage({1: -1, 2: 0}, [(1, 2, "output")], more=[(1, ANCESTORS), (2, DESCENDANTS)]))
    left_out = [box for box in drawing.boxes if box.more]
    assert [(box.more.direction, (box.x - 12) // STEP) for box in left_out] == [(-1, 0), (1, 3)]
    assert [line.kind for line in drawing.lines] == ["more", "more", "output"]


def test_long_names_are_cut_and_each_kind_has_its_own_shape():
    drawing = draw(lineage({n: n - 1 for n in (1, 2, 3)}, [], kinds=dict(enumerate(KINDS, 1))))
    assert len({box.shape for box in drawing.boxes}) == 3
    name = "a name that is much too long for a box"
    node = Node(key(1), name, None, START, "/", 0)
    (box,) = draw(Lineage(node.key, {node.key: node}, [], [])).boxes
    assert box.name == "a name that is muc…" and box.central


def test_a_circle_in_the_records_is_drawn_all_the_same():
    circle = [(1, 2, "output"), (2, 3, "merged"), (3, 2, "merged"), (3, 1, "merged")]
    assert len(draw(lineage({1: 0, 2: 1, 3: 2}, circle)).boxes) == 3


@given(st.data())
def test_nothing_overlaps_and_every_line_leads_right_or_down(data):
    count = data.draw(st.integers(1, 12))
    center = data.draw(st.integers(1, count))
    pairs = [(a, b) for a in range(1, count + 1) for b in range(a + 1, count + 1)]
    chosen = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    edges = [(a, b, data.draw(st.sampled_from(["input", "merged", "continued"]))) for a, b in chosen]
    before, after = reached(center, [(b, a) for a, b in chosen]), reached(center, chosen)
    depths = {n: -1 if n in before else n in after for n in range(1, count + 1) if n in before | after | {center}}
    shown = [edge for edge in edges if edge[0] in depths and edge[1] in depths]
    drawing = draw(lineage(depths, shown, more=[(center, DESCENDANTS)]))
    corners = [(box.x, box.y) for box in drawing.boxes]
    assert len(set(corners)) == len(corners) == len(depths) + 1
    assert all(x + WIDTH <= drawing.width and y + HEIGHT <= drawing.height for x, y in corners)
    at = places(drawing)
    assert all(at[n][0] <= at[center][0] for n in before) and all(at[n][0] >= at[center][0] for n in after)
    for (source, target, _), line in zip(shown, drawing.lines[1:], strict=True):
        right, down = (at[target][axis] - at[source][axis] for axis in (0, 1))
        assert right > 0 or (right == 0 and down > 0)
        assert min(map(int, re.findall(r"\d+", line.path))) >= 0


def reached(start, steps):
    found, waiting = set(), [start]
    while waiting:
        at = waiting.pop()
        new = {b for a, b in steps if a == at} - found
        found |= new
        waiting += new
    return found
