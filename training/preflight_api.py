"""REST API of preflights: two steps of a run before it is queued."""

from uuid import UUID

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import visible_or_404
from dlplatform.api import SafeCharField, Strict, documented

from .api import NEW_RUN
from .finding import with_rows
from .models import Preflight
from .preflights import request_preflight
from .serializers import TargetField

PREFLIGHT = {
    "id": "c01d…", "state": "succeeded", "dataset_version": "77aa…", "task": "classification", "base_version": None,
    "error": None,
    "created_at": "2026-11-20T09:30:00Z",
    "result": {"seconds_per_step": 0.012, "total_steps": 2000, "seconds": 31.0, "peak_bytes": 81264640,
               "parameters": 53818, "trainable": 53818, "batch_size": 64, "epochs": 100, "device": "cpu", "threads": 4,
               "processes": 1, "strategy": "alone"},
}  # fmt: skip


class PreflightIn(Strict):
    dataset_version = serializers.UUIDField(help_text="A version that is ready")
    task = serializers.CharField(max_length=40, help_text="As of a run")
    target = TargetField(help_text="Column or columns to predict")
    features = serializers.ListField(
        child=serializers.CharField(max_length=200), required=False, allow_null=True, max_length=2000,
        help_text="Input columns; default: all but the target",
    )  # fmt: skip
    config = serializers.DictField(required=False, help_text="Settings; every key has a good default")
    code = serializers.UUIDField(
        required=False, allow_null=True,
        help_text="An architecture of your own (`POST /code`), which is tried out in a sandbox; scripts cannot be",
    )  # fmt: skip
    entry = SafeCharField(max_length=1000, required=False, allow_blank=True, help_text="As of a run")


class PreflightOut(serializers.ModelSerializer):
    dataset_version = serializers.UUIDField(source="dataset_version_id")
    base_version = serializers.UUIDField(source="base_version_id", allow_null=True)

    class Meta:
        model = Preflight
        fields = ["id", "state", "dataset_version", "task", "base_version", "result", "error", "created_at"]


class PreflightsView(APIView):
    policy = {"POST": "run.write"}

    @documented(
        "Try a run out", request=PreflightIn, answer=PreflightOut, status=202, tags=["runs"],
        description="Takes two real steps on at most 20,000 rows, on as many devices as the run would use, and tells "
                    "seconds, peak memory of each device and sizes of the whole run; nothing is queued. What a run would fail with at its start stands in `error`.",
        example=(NEW_RUN, {**PREFLIGHT, "state": "queued", "result": None}),
    )  # fmt: skip
    def post(self, request: Request) -> Response:
        given = PreflightIn(data=request.data)
        given.is_valid(raise_exception=True)
        asked = request_preflight(actor=request.user, **with_rows(request.user, given.validated_data))
        return Response(PreflightOut(asked).data, status=202)


class PreflightView(APIView):
    policy = {"GET": "read"}

    @documented("What a trial found", answer=PreflightOut, tags=["runs"], example=(None, PREFLIGHT))
    def get(self, request: Request, preflight: UUID) -> Response:
        return Response(PreflightOut(visible_or_404(Preflight.objects, request.user, pk=preflight)).data)
