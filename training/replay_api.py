"""REST API of replays: training a version once more, and the certificates that come of it."""

from uuid import UUID

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import documented
from registry.models import ModelVersion

from .api import RUN
from .models import ReplayCertificate
from .replay import certificates, replay
from .serializers import RunDetail

CERTIFICATE = {
    "id": "0f3a…", "version": "5d21…", "run": "b7e0…", "equal": True, "created_at": "2026-11-20T09:30:00Z",
    "details": {"file": "model.safetensors", "sha256": {"recorded": "ab…", "replayed": "ab…"}, "metrics": [],
                "weights": None, "environment": [], "settings": []},
}  # fmt: skip


class CertificateOut(serializers.ModelSerializer):
    version = serializers.UUIDField(source="version_id")
    run = serializers.UUIDField(source="run_id")

    class Meta:
        model = ReplayCertificate
        fields = ["id", "version", "run", "equal", "details", "created_at"]


class CertificatesOut(serializers.Serializer):
    results = CertificateOut(many=True)


class ReplayView(APIView):
    policy = {"POST": "run.write"}

    @documented(
        "Replay a version", answer=RunDetail, status=201, tags=["models"],
        description="Queues a run with the same data, settings, seed, base and threads as the one that made the version. "
                    "It commits nothing; when it ends, a certificate says whether the same weights came out. 409 "
                    "`no_run` for a version that no run made, `in_progress` while a replay is under way.",
        example=(None, {**RUN, "state": "queued"}),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, version: UUID) -> Response:
        return Response(RunDetail(replay(actor=request.user, version=_version(request, version))).data, status=201)


class CertificatesView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Certificates of a version's replays", answer=CertificatesOut, tags=["models"],
        description="The newest first. `equal`: every byte of the weights is the same. Else `details` holds what differs: "
                    "`weights` (how many tensors, the largest absolute difference), `metrics`, `environment` and `settings`.",
        example=(None, {"results": [CERTIFICATE]}),
    )  # fmt: skip
    def get(self, request: Request, version: UUID) -> Response:
        return Response(CertificatesOut({"results": certificates(_version(request, version))}).data)


def _version(request: Request, identifier: UUID) -> ModelVersion:
    return visible_or_404(ModelVersion.objects.select_related("model__organization"), request.user, pk=identifier)
