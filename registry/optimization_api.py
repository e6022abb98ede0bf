"""REST API of optimizations: variants of a version, made and measured by a job."""

from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import PagedView, documented

from . import optimizations
from .api import visible_version
from .history_api import dataset_version_of
from .models import Optimization
from .serializers import OptimizationIn, OptimizationOut

_TURN = {
    "parent": {"p50": 0.00286, "p99": 0.0034, "throughput": 22300.0},
    "variant": {"p50": 0.0006, "p99": 0.0008, "throughput": 104000.0}, "runs": 300, "ratio": [0.2, 0.21, 0.22], "work": [0.2, 0.21, 0.22],
}  # fmt: skip
OPTIMIZATION = {
    "id": "3f60…", "model": "4f2a…", "version": "9c1d…", "dataset_version": "02be…", "tolerance": 0.5,
    "state": "succeeded", "progress": 1.0, "phase": "", "created_at": "2026-11-20T09:30:00Z",
    "finished_at": "2026-11-20T09:31:30Z", "error": None,
    "variants": [{
        "plan": {"passes": ["structured", "onnx-int8-dynamic"], "keep": 0.25, "epochs": 5},
        "name": "structured 25% + onnx-int8-dynamic", "output_version": "77aa…", "problems": [], "error": None,
        "report": {
            "quality": {"name": "accuracy", "parent": [0.911, 0.929, 0.943], "variant": [0.911, 0.929, 0.943],
                        "change": [-0.94, 0.0, 0.94]},
            "agreement": 0.976, "difference": 0.31, "latency": {"64": _TURN}, "load": {"parent": 0.037, "variant": 0.018},
            "size": {"parent": {"bytes": 7735064, "compressed": 6912452},
                     "variant": {"bytes": 583627, "compressed": 238184}},
            "problems": [], "notes": [],
        },
    }],
}  # fmt: skip
TAGS = ["optimizations"]


class OptimizationsView(PagedView):
    policy = {"GET": "read", "POST": "model.write"}

    @documented("List a version's optimizations", answer=OptimizationOut(many=True), example=(None, OPTIMIZATION),
                tags=TAGS)  # fmt: skip
    def get(self, request: Request, version: UUID) -> Response:
        rows = visible_version(request, version).optimizations.prefetch_related("variants")
        return self.paged(request, rows, OptimizationOut)

    @documented(
        "Make a version smaller or faster", request=OptimizationIn, answer=OptimizationOut, status=202, tags=TAGS,
        description="Queues a job that makes each variant, reads it again from its files, checks its answers against "
                    "PyTorch's, and measures it in turns with its parent: latency and throughput at 1, 32 and 64 rows, load "
                    "time, bytes, quality on the held-out rows. Each becomes a version on the branch "
                    "`optimised-v{number}`. One that is slower, bigger or worse beyond the tolerance says so in `problems`, "
                    "and is deployed only by who says so.",
        example=({"variants": [{"passes": ["onnx"]},
                               {"passes": ["structured", "onnx-int8-dynamic"], "keep": 0.25}]}, OPTIMIZATION),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, version: UUID) -> Response:
        found = visible_version(request, version)
        require(request.user, "model.write", found)
        given = OptimizationIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        made = optimizations.request_optimization(
            actor=request.user, version=found, plans=wanted["variants"], tolerance=wanted["tolerance"],
            dataset_version=dataset_version_of(request, wanted.get("dataset_version")),
        )  # fmt: skip
        return Response(OptimizationOut(made).data, status=202)


class OptimizationView(APIView):
    policy = {"GET": "read"}

    @documented("Get an optimization with its reports", answer=OptimizationOut, example=(None, OPTIMIZATION), tags=TAGS)
    def get(self, request: Request, optimization: UUID) -> Response:
        rows = Optimization.objects.prefetch_related("variants")
        return Response(OptimizationOut(visible_or_404(rows, request.user, pk=optimization)).data)


class OptimizationCancelView(APIView):
    policy = {"POST": "model.write"}

    @documented("Cancel an optimization", answer=OptimizationOut, example=(None, OPTIMIZATION), tags=TAGS,
                description="Variants that are there already stay.")  # fmt: skip
    def post(self, request: Request, optimization: UUID) -> Response:
        rows = Optimization.objects.select_related("model__organization")
        found = visible_or_404(rows, request.user, pk=optimization)
        stopped = optimizations.cancel_optimization(actor=request.user, optimization=found)
        return Response(OptimizationOut(stopped).data)
