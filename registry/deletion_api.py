"""REST API of deleting: what it would free, archiving, bringing back."""

from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.api import DeletionOut, documented

from . import deletion, services
from .api import MODEL, VERSION, visible_models, visible_version
from .models import RegisteredModel
from .serializers import ModelOut, ModelVersionDetail

PREVIEW = {"bytes": 41943040, "versions": 12, "obstacles": []}


class ModelDeletionView(APIView):
    policy = {"GET": "model.delete"}

    @documented("What deleting a model would free", answer=DeletionOut, example=(None, PREVIEW), tags=["models"])
    def get(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects, request.user, pk=model)
        require(request.user, "model.delete", found)
        return Response(DeletionOut(deletion.preview_of_model(found)).data)


class ModelArchiveView(APIView):
    policy = {"POST": "model.delete"}

    @documented("Archive a model", answer=ModelOut, example=(None, {**MODEL, "archived_at": "2026-11-20T09:30:00Z"}),
                tags=["models"], description="Takes it out of the lists; nothing is lost.")  # fmt: skip
    def post(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects.select_related("organization"), request.user, pk=model)
        services.set_model_archived(actor=request.user, model=found, archived=True)
        return Response(ModelOut(visible_models(request.user).get(pk=model)).data)


class ModelRestoreView(APIView):
    policy = {"POST": "model.delete"}

    @documented("Bring back an archived or deleted model", answer=ModelOut, example=(None, MODEL), tags=["models"],
                description="409 `gone` once the files of a deleted one are freed.")  # fmt: skip
    def post(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects.select_related("organization"), request.user, pk=model)
        deletion.restore_model(actor=request.user, model=found)
        return Response(ModelOut(visible_models(request.user).get(pk=model)).data)


class VersionDeletionView(APIView):
    policy = {"GET": "model.delete"}

    @documented("What deleting a version's files would free", answer=DeletionOut, tags=["model versions"],
                example=(None, {**PREVIEW, "versions": 1, "obstacles": ["the alias “production” points to it"]}))  # fmt: skip
    def get(self, request: Request, version: UUID) -> Response:
        found = visible_version(request, version)
        require(request.user, "model.delete", found)
        return Response(DeletionOut(deletion.preview_of_version(found)).data)


class VersionRestoreView(APIView):
    policy = {"POST": "model.delete"}

    @documented("Bring back the deleted files of a version", answer=ModelVersionDetail, example=(None, VERSION),
                tags=["model versions"], description="409 `gone` once they are freed.")  # fmt: skip
    def post(self, request: Request, version: UUID) -> Response:
        found = visible_version(request, version)
        deletion.restore_version(actor=request.user, version=found)
        return Response(ModelVersionDetail(visible_version(request, version)).data)
