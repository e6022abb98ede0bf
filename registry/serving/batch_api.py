"""REST API of batch predictions."""

from typing import Any
from uuid import UUID

from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from datasets.models import DatasetVersion
from dlplatform.accounts.access import visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import PagedView, documented
from registry.models import ModelVersion

from . import batches
from .models import BatchPrediction
from .serializers import BatchIn, BatchOut

BATCH = {
    "id": "7be1…", "version": "9c1d…", "dataset_version": "31f0…", "name": "screening 2026, predicted",
    "state": "running", "progress": 0.4, "phase": "predicting", "created_at": "2026-11-20T09:30:00Z",
    "finished_at": None, "output_version": None, "error": None,
}  # fmt: skip
TAGS = ["predictions"]


def _batch(request: Request, identifier: UUID) -> BatchPrediction:
    rows = BatchPrediction.objects.select_related("version__model__organization")
    found: BatchPrediction = visible_or_404(rows, request.user, pk=identifier)
    return found


class BatchesView(PagedView):
    policy = {"GET": "read", "POST": "predict"}

    @documented("List batch predictions", answer=BatchOut(many=True), example=(None, BATCH), tags=TAGS,
                operation_id="list_batch_predictions")  # fmt: skip
    def get(self, request: Request) -> Response:
        return self.paged(request, BatchPrediction.objects.visible_to(request.user), BatchOut)

    @documented(
        "Predict all rows of a dataset version", request=BatchIn, answer=BatchOut, status=202, tags=TAGS,
        description="Queues a job. Its result is a dataset version: the rows with columns for the predictions. What answers "
                    "is what answers online; a worker that dies is followed by one that goes on where it was.",
        example=({"version": "9c1d…", "dataset_version": "31f0…", "name": "screening 2026, predicted"}, BATCH),
        operation_id="create_batch_prediction",
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = BatchIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        versions = ModelVersion.objects.visible_to(request.user).select_related("model__organization")
        data = DatasetVersion.objects.visible_to(request.user).select_related("dataset")
        made = batches.request_batch(
            actor=request.user, version=_named(versions, "version", wanted["version"]),
            dataset_version=_named(data, "dataset_version", wanted["dataset_version"]), name=wanted.get("name", ""),
        )  # fmt: skip
        return Response(BatchOut(made).data, status=202)


def _named(rows: Any, field: str, identifier: UUID) -> Any:
    found = rows.filter(pk=identifier).first()
    if found is None:
        raise ValidationError({field: [ErrorDetail("There is none with this id.", "does_not_exist")]})
    return found


class BatchView(APIView):
    policy = {"GET": "read"}

    @documented("Get a batch prediction", answer=BatchOut, example=(None, BATCH), tags=TAGS)
    def get(self, request: Request, batch: UUID) -> Response:
        return Response(BatchOut(_batch(request, batch)).data)


class BatchCancelView(APIView):
    policy = {"POST": "dataset.write"}

    @documented("Cancel a batch prediction", answer=BatchOut, example=(None, BATCH), tags=TAGS)
    def post(self, request: Request, batch: UUID) -> Response:
        stopped = batches.cancel_batch(actor=request.user, batch=_batch(request, batch))
        return Response(BatchOut(stopped).data)
