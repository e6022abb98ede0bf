"""Walks over a model's history: common ancestors, the graph, and where its refs pointed at any time."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from heapq import heappop, heappush
from uuid import UUID

from django.db import connection

from .models import ModelVersion, Ref, RefMove, RegisteredModel

LEFT, RIGHT = 1, 2


# Plain SQL: the ORM takes longer to hand over ten thousand edges than the walk takes over them.
EDGES = """
SELECT child.number, parent.number
  FROM registry_versionparent AS edge
  JOIN registry_modelversion AS child ON child.id = edge.child_id
  JOIN registry_modelversion AS parent ON parent.id = edge.parent_id
 WHERE child.model_id = %s
 ORDER BY edge.position
"""


def edges_of(model: UUID) -> dict[int, list[int]]:
    """{number of a version: numbers of its parents, in order}, for the versions that have parents."""
    parents: dict[int, list[int]] = defaultdict(list)
    with connection.cursor() as cursor:
        cursor.execute(EDGES, [model])
        for child, parent in cursor.fetchall():
            parents[child].append(parent)
    return parents


def common_ancestor(left: ModelVersion, right: ModelVersion) -> ModelVersion | None:
    """The lowest common ancestor, which may be one of the two; None for unrelated histories.

    Of several (after criss-cross merges) the newest. Both must be versions of one model.
    """
    number = lowest_common(edges_of(left.model_id), left.number, right.number)
    return ModelVersion.objects.get(model_id=left.model_id, number=number) if number is not None else None


def lowest_common(parents: dict[int, list[int]], left: int, right: int) -> int | None:
    """Both sides are painted backwards, the greatest number first; the first to bear both colours is it.

    Numbers grow along every edge, so a version is taken from the heap only after all its descendants.
    """
    colours: dict[int, int] = defaultdict(int)
    heap: list[int] = []
    for number, colour in ((left, LEFT), (right, RIGHT)):
        colours[number] |= colour
        heappush(heap, -number)
    while heap:
        number = -heappop(heap)
        while heap and -heap[0] == number:
            heappop(heap)
        if colours[number] == LEFT | RIGHT:
            return number
        for parent in parents.get(number, ()):
            colours[parent] |= colours[number]
            heappush(heap, -parent)
    return None


def is_ancestor(older: ModelVersion, newer: ModelVersion) -> bool:
    """Whether ``newer`` continues ``older`` (or is it)."""
    if older.model_id != newer.model_id:
        return False
    return lowest_common(edges_of(newer.model_id), older.number, newer.number) == older.number


def ancestors_of(version: ModelVersion) -> list[int]:
    """The numbers of a version and of all that it continues or merged."""
    parents = edges_of(version.model_id)
    found, waiting = {version.number}, [version.number]
    while waiting:
        new = set(parents.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return sorted(found)


def refs_at(model: RegisteredModel, moment: datetime, kinds: Iterable[str] = Ref.Kind.values) -> list[RefMove]:
    """The move by which each ref came to where it pointed at that time; refs that did not exist are left out."""
    last = (
        RefMove.objects.filter(model=model, kind__in=kinds, moved_at__lte=moment)
        .order_by("kind", "name", "-moved_at", "-id")
        .distinct("kind", "name")
        .select_related("to_version", "actor")
        .defer("to_version__tree", "to_version__lineage", "to_version__signature")
    )
    return [move for move in last if move.to_version_id is not None]


def version_at(model: RegisteredModel, kind: str, name: str, moment: datetime) -> ModelVersion | None:
    """What one ref pointed to at that time: one query."""
    move = (
        RefMove.objects.filter(model=model, kind=kind, name=name, moved_at__lte=moment)
        .order_by("-moved_at", "-id")
        .select_related("to_version")
        .first()
    )
    return move.to_version if move else None


def before(ref: Ref) -> ModelVersion | None:
    """Where a ref pointed before it came to where it is; for a branch the version that its head continues."""
    if ref.kind == Ref.Kind.BRANCH:
        return ModelVersion.objects.filter(child_edges__child=ref.version, child_edges__position=0).first()
    moves = RefMove.objects.filter(model=ref.model_id, kind=ref.kind, name=ref.name, from_version__isnull=False)
    last = moves.exclude(from_version=ref.version_id).order_by("-id").select_related("from_version").first()
    return last.from_version if last else None
