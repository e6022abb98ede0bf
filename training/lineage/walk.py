"""The walk over a lineage: from one thing to its ancestors and to its descendants, step by step.

Every step asks once for each relation, whatever the number of things that it starts from. What the person may not
see is neither met nor counted: every query asks the scoping gate about the far end.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from django.db.models import Count, F, Q, QuerySet, Value, Window
from django.db.models.functions import RowNumber
from django.urls import reverse

from dlplatform.accounts.models import User
from registry.models import Ref

from .relations import KINDS, MODEL_VERSION, RELATIONS, Visible, visible_to

MOST_NODES = 200  # each way
MOST_STEPS = 10  # each way
MOST_NEIGHBOURS = 40  # of one thing by one relation, the newest first
ANCESTORS, DESCENDANTS = -1, 1
DIRECTIONS = {ANCESTORS: "ancestors", DESCENDANTS: "descendants"}


@dataclass(frozen=True)
class Key:
    """What names a thing in a lineage: its kind and its id."""

    kind: str
    id: UUID

    @property
    def address(self) -> str:
        """Of its own lineage."""
        return reverse(f"{self.kind}-lineage", args=[self.id])


@dataclass(frozen=True)
class Node:
    """A thing as a lineage shows it; ``depth`` is the number of steps from the centre, negative for ancestors."""

    key: Key
    name: str
    state: str | None
    created_at: datetime
    page: str
    depth: int
    aliases: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return KINDS[self.key.kind].label


@dataclass(frozen=True)
class Edge:
    source: Key
    target: Key
    kind: str


@dataclass(frozen=True)
class More:
    """How many neighbours of a node, in one direction, the lineage leaves out; ``address`` shows them."""

    key: Key
    direction: int
    count: int
    address: str

    @property
    def side(self) -> str:
        return DIRECTIONS[self.direction]


@dataclass(frozen=True)
class Lineage:
    center: Key
    nodes: dict[Key, Node]
    edges: list[Edge]
    more: list[More]

    @cached_property
    def sources(self) -> dict[Key, list[Edge]]:
        """The edges that lead to each node."""
        found: dict[Key, list[Edge]] = {key: [] for key in self.nodes}
        for edge in self.edges:
            found[edge.target].append(edge)
        return found


def lineage_of(user: User, center: Key, skip: int = 0) -> Lineage:
    """The lineage of a thing that the person may see.

    Where one has more descendants of a kind at the first step than are shown, ``skip`` leaves out as many of the newest.
    """
    visible = visible_to(user)
    depths = {center: 0}
    totals: Counter[tuple[Key, int]] = Counter()
    for direction in DIRECTIONS:
        _walk(visible, center, direction, skip, depths, totals)
    nodes = _described(depths)
    edges = _edges_among(visible, nodes)
    return Lineage(center, nodes, edges, list(_more(center, totals, edges, nodes, skip)))


def _walk(
    visible: Visible, center: Key, direction: int, skip: int, depths: dict[Key, int], totals: Counter[tuple[Key, int]]
) -> None:
    """Add what lies in a direction to ``depths``, and to ``totals`` how many neighbours each has there.

    The last step only counts: it tells what is left out beyond those that are shown.
    """
    frontier, room = [center], MOST_NODES
    for step in range(1, MOST_STEPS + 2):
        skipped = skip if step == 1 and direction == DESCENDANTS else 0
        met: dict[Key, None] = {}
        for near, far, total in _neighbours(visible, frontier, direction, skipped):
            totals[near, direction] += total
            if far is not None and far not in depths:
                met[far] = None
        frontier = list(met)[: room if step <= MOST_STEPS else 0]
        if not frontier:
            return
        room -= len(frontier)
        depths.update(dict.fromkeys(frontier, step * direction))


def _neighbours(
    visible: Visible, frontier: list[Key], direction: int, skip: int
) -> Iterator[tuple[Key, Key | None, int]]:
    """(near, far, how many of its relation are counted with this one), one query for each relation."""
    ids = _ids_by_kind(frontier)
    for relation in RELATIONS:
        source, target = (relation.source, relation.source_column), (relation.target, relation.target_column)
        (near_kind, near), (far_kind, far) = (source, target) if direction == DESCENDANTS else (target, source)
        if near_kind not in ids:
            continue
        rows = relation.rows(visible, ids[near_kind]).filter(
            **{f"{near}__in": ids[near_kind], f"{far}__in": visible[far_kind]}
        )
        for near_id, far_id, rank, total in _ranked(rows, near, far, relation.newest, skip):
            shown = Key(far_kind, far_id) if rank > skip else None
            yield Key(near_kind, near_id), shown, total if rank == 1 else 0


def _ranked(rows: QuerySet[Any], near: str, far: str, newest: str, skip: int) -> QuerySet[Any]:
    """(near, far, rank, total): the first for every near one, which carries the total, and those after ``skip``."""
    wanted = Q(rank__gt=skip, rank__lte=skip + MOST_NEIGHBOURS)
    ranked = rows.annotate(
        rank=Window(RowNumber(), partition_by=F(near), order_by=[newest, far]),
        total=Window(Count("*"), partition_by=F(near)),
    )
    return ranked.filter(wanted | Q(rank=1)).order_by("rank", near).values_list(near, far, "rank", "total")


def _ids_by_kind(keys: Iterable[Key]) -> dict[str, list[UUID]]:
    found: dict[str, list[UUID]] = {}
    for key in keys:
        found.setdefault(key.kind, []).append(key.id)
    return found


def _described(depths: dict[Key, int]) -> dict[Key, Node]:
    """The nodes by name and state, one query a kind; what was removed meanwhile is left out."""
    ids = _ids_by_kind(depths)
    aliases = _aliases(ids.get(MODEL_VERSION, []))
    found = {}
    for name, wanted in ids.items():
        kind = KINDS[name]
        for row in kind.rows().filter(pk__in=wanted):
            key = Key(name, row.pk)
            found[key] = Node(
                key, str(row), getattr(row, "state", None), row.created_at, kind.page(row), depths[key],
                tuple(aliases.get(row.pk, ())),
            )  # fmt: skip
    return {key: found[key] for key in depths if key in found}


def _aliases(versions: list[UUID]) -> dict[UUID, list[str]]:
    found: dict[UUID, list[str]] = {}
    refs = Ref.objects.filter(version__in=versions, kind=Ref.Kind.ALIAS) if versions else Ref.objects.none()
    for version, name in refs.order_by("name").values_list("version_id", "name"):
        found.setdefault(version, []).append(name)
    return found


def _edges_among(visible: Visible, nodes: Iterable[Key]) -> list[Edge]:
    ids = _ids_by_kind(nodes)
    edges = []
    for relation in RELATIONS:
        if relation.source not in ids or relation.target not in ids:
            continue
        sources, targets = relation.source_column, relation.target_column
        naming = relation.naming or Value(relation.names[0])
        rows = relation.rows(visible, ids[relation.target]).filter(
            **{f"{sources}__in": ids[relation.source], f"{targets}__in": ids[relation.target]}
        )
        edges += [
            Edge(Key(relation.source, source), Key(relation.target, target), name)
            for source, target, name in rows.order_by(sources, targets).values_list(sources, targets, naming)
        ]
    return edges


def _more(
    center: Key, totals: Counter[tuple[Key, int]], edges: list[Edge], nodes: dict[Key, Node], skip: int
) -> Iterator[More]:
    shown = Counter((edge.source, DESCENDANTS) for edge in edges)
    shown.update((edge.target, ANCESTORS) for edge in edges)
    for (key, direction), total in totals.items():
        count = total - shown[key, direction]
        if key not in nodes or count <= 0:
            continue
        onward = key == center and direction == DESCENDANTS
        yield More(key, direction, count, _onward(key, skip, total) if onward else key.address)


def _onward(center: Key, skip: int, total: int) -> str:
    """The next descendants of the centre; after the last ones the first again."""
    following = skip + MOST_NEIGHBOURS
    return f"{center.address}?skip={following}" if following < total else center.address
