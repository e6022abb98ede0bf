"""The page of a lineage: where one thing came from and what came of it, as a drawing and as a table."""

from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from dlplatform.accounts.access import visible_or_404
from dlplatform.web import page
from training.lineage.drawing import draw
from training.lineage.relations import KINDS
from training.lineage.walk import Key, Lineage, lineage_of

MOST_SKIPPED = 100_000


@require_safe
def lineage_page(request: HttpRequest, kind: str, identifier: UUID) -> HttpResponse:
    found = visible_or_404(KINDS[kind].model._default_manager.only("pk"), request.user, pk=identifier)
    lineage = lineage_of(request.user, Key(kind, found.pk), _skipped(request))
    context = {
        "section": KINDS[kind].section,
        "center": lineage.nodes[lineage.center],
        "ancestors": sum(node.depth < 0 for node in lineage.nodes.values()),
        "descendants": sum(node.depth > 0 for node in lineage.nodes.values()),
        "more": lineage.more,
        "drawing": draw(lineage),
        "rows": _rows(lineage),
    }
    return page(request, "training/lineage.html", context)


def _skipped(request: HttpRequest) -> int:
    text = request.GET.get("skip", "")
    return min(int(text), MOST_SKIPPED) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _rows(lineage: Lineage) -> list[dict[str, Any]]:
    """Every node with what it came from, in the order of the derivation."""
    nodes = sorted(lineage.nodes.values(), key=lambda node: (node.depth, node.created_at))
    return [
        {"node": node, "sources": [(edge.kind, lineage.nodes[edge.source]) for edge in lineage.sources[node.key]]}
        for node in nodes
    ]
