"""REST API of lineage."""

from typing import Any
from uuid import UUID

from django.http import Http404
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import visible_or_404
from dlplatform.api import documented, whole_parameter

from .lineage.relations import KINDS, RELATIONS
from .lineage.walk import DIRECTIONS, MOST_NEIGHBOURS, MOST_NODES, MOST_STEPS, Key, Lineage, Node, lineage_of

MOST_SKIPPED = 100_000
LINEAGE = {
    "center": {"kind": "run", "id": "b7e0…"},
    "nodes": [
        {"kind": "run", "id": "b7e0…", "name": "breast cancer-3", "state": "succeeded",
         "created_at": "2026-11-20T09:30:00Z", "depth": 0, "aliases": [],
         "url": "https://platform.example/runs/b7e0…/"},
        {"kind": "dataset-version", "id": "77aa…", "name": "breast cancer v1", "state": "ready",
         "created_at": "2026-11-20T09:12:00Z", "depth": -1, "aliases": [],
         "url": "https://platform.example/datasets/02be…/?version=1"},
        {"kind": "model-version", "id": "9c1d…", "name": "breast cancer v3", "state": None,
         "created_at": "2026-11-20T09:31:00Z", "depth": 1, "aliases": ["production"],
         "url": "https://platform.example/model-versions/9c1d…/"},
    ],
    "edges": [{"from": "77aa…", "to": "b7e0…", "kind": "input"}, {"from": "b7e0…", "to": "9c1d…", "kind": "output"}],
    "truncated": True,
    "more": [{"kind": "model-version", "id": "9c1d…", "direction": "descendants", "count": 37}],
}  # fmt: skip


class LineageCenterOut(serializers.Serializer):
    kind = serializers.ChoiceField(choices=list(KINDS))
    id = serializers.UUIDField()


class LineageNodeOut(LineageCenterOut):
    name = serializers.CharField()
    state = serializers.CharField(allow_null=True, help_text="Null for what has none: a model version never changes")
    created_at = serializers.DateTimeField()
    depth = serializers.IntegerField(help_text="Steps from the centre; negative for ancestors")
    aliases = serializers.ListField(child=serializers.CharField(), help_text="Those that point to a model version")
    url = serializers.URLField(help_text="Its page")


class LineageEdgeOut(serializers.Serializer):
    to = serializers.UUIDField(help_text="What came of it")
    kind = serializers.ChoiceField(choices=[name for relation in RELATIONS for name in relation.names])

    def get_fields(self) -> dict[str, Any]:
        return {"from": serializers.UUIDField(help_text="What it came from"), **super().get_fields()}


class LineageMoreOut(LineageCenterOut):
    direction = serializers.ChoiceField(choices=list(DIRECTIONS.values()))
    count = serializers.IntegerField(help_text="Direct neighbours of this node that are left out")


class LineageOut(serializers.Serializer):
    center = LineageCenterOut()
    nodes = LineageNodeOut(many=True)
    edges = LineageEdgeOut(many=True)
    truncated = serializers.BooleanField(help_text="Whether anything is left out; `more` tells where")
    more = LineageMoreOut(many=True)


class LineageView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Where something came from and what came of it", answer=LineageOut, example=(None, LINEAGE), tags=["lineage"],
        operation_id="get_lineage",
        description=f"Ancestors and descendants of a dataset version, a run or a model version: at most {MOST_NODES} "
                    f"and {MOST_STEPS} steps each way, and {MOST_NEIGHBOURS} neighbours of one node, the newest first. "
                    "To go on, ask for the lineage of a node named in `more`. What the caller may not see is left "
                    "out and not counted.",
        parameters=[
            OpenApiParameter("kind", str, OpenApiParameter.PATH, enum=list(KINDS), description="What `id` names"),
            OpenApiParameter("id", UUID, OpenApiParameter.PATH),
            OpenApiParameter(
                "skip", int, description="Leave out as many of the centre's newest descendants; for one that has many"
            ),
        ],
    )  # fmt: skip
    def get(self, request: Request, kind: str, id: UUID) -> Response:
        if kind not in KINDS:
            raise Http404
        skip = whole_parameter(request, "skip", 0, 0, MOST_SKIPPED)
        found = visible_or_404(KINDS[kind].model._default_manager.only("pk"), request.user, pk=id)
        lineage = lineage_of(request.user, Key(kind, found.pk), skip)
        return Response(LineageOut(_answer(request, lineage)).data)


def _answer(request: Request, lineage: Lineage) -> dict[str, Any]:
    return {
        "center": {"kind": lineage.center.kind, "id": lineage.center.id},
        "nodes": [_node(request, node) for node in lineage.nodes.values()],
        "edges": [{"from": edge.source.id, "to": edge.target.id, "kind": edge.kind} for edge in lineage.edges],
        "truncated": bool(lineage.more),
        "more": [
            {"kind": more.key.kind, "id": more.key.id, "direction": more.side, "count": more.count}
            for more in lineage.more
        ],
    }


def _node(request: Request, node: Node) -> dict[str, Any]:
    return {
        "kind": node.key.kind, "id": node.key.id, "name": node.name, "state": node.state,
        "created_at": node.created_at, "depth": node.depth, "aliases": node.aliases,
        "url": request.build_absolute_uri(node.page),
    }  # fmt: skip
