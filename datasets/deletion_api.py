"""REST API of deleting datasets: what it would free, archiving, bringing back."""

from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.api import DeletionOut, documented

from . import deletion, services
from .api import DATASET, VERSION, version_or_404
from .models import Dataset
from .serializers import DatasetOut, VersionSummary

PREVIEW = {"bytes": 41943040, "versions": 12, "obstacles": []}


class DatasetDeletionView(APIView):
    policy = {"GET": "dataset.delete"}

    @documented("What deleting a dataset would free", answer=DeletionOut, example=(None, PREVIEW), tags=["datasets"])
    def get(self, request: Request, dataset: UUID) -> Response:
        found = _dataset(request, dataset)
        require(request.user, "dataset.delete", found)
        return Response(DeletionOut(deletion.preview_of_dataset(found)).data)


class DatasetArchiveView(APIView):
    policy = {"POST": "dataset.delete"}

    @documented("Archive a dataset", answer=DatasetOut, tags=["datasets"],
                example=(None, {**DATASET, "archived_at": "2026-11-20T09:30:00Z"}),
                description="Takes it out of the lists; nothing is lost.")  # fmt: skip
    def post(self, request: Request, dataset: UUID) -> Response:
        found = services.set_dataset_archived(actor=request.user, dataset=_dataset(request, dataset), archived=True)
        return Response(DatasetOut(found).data)


class DatasetRestoreView(APIView):
    policy = {"POST": "dataset.delete"}

    @documented("Bring back an archived or deleted dataset", answer=DatasetOut, example=(None, DATASET),
                tags=["datasets"], description="409 `gone` once the rows of a deleted one are freed.")  # fmt: skip
    def post(self, request: Request, dataset: UUID) -> Response:
        found = deletion.restore_dataset(actor=request.user, dataset=_dataset(request, dataset))
        return Response(DatasetOut(found).data)


class VersionDeletionView(APIView):
    policy = {"GET": "dataset.delete"}

    @documented("What deleting a version's rows would free", answer=DeletionOut, tags=["datasets"],
                example=(None, {**PREVIEW, "versions": 1}))  # fmt: skip
    def get(self, request: Request, dataset: UUID, number: int) -> Response:
        found = version_or_404(request, dataset, number)
        require(request.user, "dataset.delete", found)
        return Response(DeletionOut(deletion.preview_of_version(found)).data)


class VersionCancelView(APIView):
    policy = {"POST": "dataset.write"}

    @documented("Cancel the ingestion of a version", answer=VersionSummary, tags=["datasets"],
                example=(None, {**VERSION, "state": "cancelled"}))  # fmt: skip
    def post(self, request: Request, dataset: UUID, number: int) -> Response:
        version = version_or_404(request, dataset, number)
        return Response(VersionSummary(services.cancel_version(actor=request.user, version=version)).data)


class VersionRestoreView(APIView):
    policy = {"POST": "dataset.delete"}

    @documented("Bring back the deleted rows of a version", answer=VersionSummary, example=(None, VERSION),
                tags=["datasets"], description="409 `gone` once they are freed.")  # fmt: skip
    def post(self, request: Request, dataset: UUID, number: int) -> Response:
        version = version_or_404(request, dataset, number)
        return Response(VersionSummary(deletion.restore_version(actor=request.user, version=version)).data)


def _dataset(request: Request, identifier: UUID) -> Dataset:
    found: Dataset = visible_or_404(Dataset.objects.select_related("organization"), request.user, pk=identifier)
    return found
