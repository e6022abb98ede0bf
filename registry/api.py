"""REST API of the registry: models, versions, files, refs, predictions."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import Count, QuerySet
from django.http import Http404, HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.accounts.organizations import resolve
from dlplatform.api import ONCE, Conflict, PagedView, boolean_parameter, documented

from . import availability, deletion, links, services
from .archive import archive_response
from .files import file_response
from .models import ModelVersion, Ref, RefMove, RegisteredModel
from .serializers import (
    LinkIn,
    LinkOut,
    ModelChange,
    ModelIn,
    ModelOut,
    ModelVersionDetail,
    PredictIn,
    PredictOut,
    RefMoveIn,
    RefMoveOut,
    RefOut,
    UploadOut,
    VersionOut,
)
from .serving import client
from .uploads_api import UPLOAD

REF = {"kind": "alias", "name": "production", "version": "9c1d…", "number": 3, "updated_at": "2026-11-20T09:30:00Z"}
MODEL = {
    "id": "4f2a…", "name": "breast cancer", "description": "", "organization": "main",
    "created_at": "2026-11-20T09:30:00Z", "archived_at": None, "deleted_at": None, "versions": 3, "refs": [REF],
}  # fmt: skip
VERSION = {
    "id": "9c1d…", "model": "4f2a…", "model_name": "breast cancer", "number": 3, "digest": "9c1d22…",
    "message": "Run breast cancer-3", "author": "maria", "task": "classification",
    "metrics": {"accuracy": 0.982}, "dataset_version": "77aa…", "created_at": "2026-11-20T09:30:00Z", "deleted_at": None,
}  # fmt: skip
MOVE = {
    "kind": "alias", "name": "production", "from_version": None, "to_version": "9c1d…", "actor": "maria",
    "reason": "better recall", "moved_at": "2026-11-20T09:30:00Z",
}  # fmt: skip
INSTANCES = {"instances": [{"mean radius": 14.1, "mean texture": 20.3}]}
PREDICTIONS = {
    "predictions": [{"label": "benign", "probabilities": {"benign": 0.97, "malignant": 0.03}}], "version": "9c1d…",
}  # fmt: skip


def visible_models(user: Any) -> QuerySet[RegisteredModel]:
    return (
        RegisteredModel.objects.visible_to(user)
        .select_related("organization")
        .prefetch_related("refs__version")
        .annotate(version_count=Count("versions"))
    )


class ModelsView(PagedView):
    policy = {"GET": "read", "POST": "model.write"}

    @documented(
        "List models", answer=ModelOut(many=True), example=(None, MODEL), tags=["models"],
        parameters=[
            OpenApiParameter("search", str, description="Part of the name"),
            OpenApiParameter("archived", bool, description="Archived models instead of the live ones"),
        ],
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        archived = boolean_parameter(request, "archived")
        rows = visible_models(request.user).filter(archived_at__isnull=not archived)
        if search := request.query_params.get("search", "").replace("\0", ""):
            rows = rows.filter(name__icontains=search)
        return self.paged(request, rows, ModelOut)

    @documented(
        "Create a model", request=ModelIn, answer=ModelOut, status=201, example=({"name": "breast cancer"}, MODEL),
        tags=["models"],
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = ModelIn(data=request.data)
        given.is_valid(raise_exception=True)
        organization = resolve(request.user, given.validated_data.pop("organization", None))
        model = services.create_model(actor=request.user, organization=organization, **given.validated_data)
        return Response(ModelOut(visible_models(request.user).get(pk=model.pk)).data, status=201)


class ModelView(APIView):
    policy = {"GET": "read", "PATCH": "model.write", "DELETE": "model.delete"}

    @documented("Get a model", answer=ModelOut, example=(None, MODEL), tags=["models"])
    def get(self, request: Request, model: UUID) -> Response:
        found = visible_models(request.user).filter(pk=model).first()
        if found is None:
            raise Http404
        return Response(ModelOut(found).data)

    @documented(
        "Change a model's name or description", request=ModelChange, answer=ModelOut,
        example=({"description": "Screening model."}, MODEL), tags=["models"],
    )  # fmt: skip
    def patch(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects, request.user, pk=model)
        require(request.user, "model.write", found)
        given = ModelChange(data=request.data, partial=True)
        given.is_valid(raise_exception=True)
        services.update_model(actor=request.user, model=found, **given.validated_data)
        return self.get(request, model)

    @documented(
        "Delete a model", answer=ModelOut, tags=["models"], example=(None, {**MODEL, "deleted_at": "2026-11-20T09:30:00Z"}),
        description="Takes it out of the lists and deletes the files of its versions, which can be undone for some days; what "
                    "is known of the versions stays. `deletion` tells beforehand how many bytes it frees.",
    )  # fmt: skip
    def delete(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects.select_related("organization"), request.user, pk=model)
        deletion.delete_model(actor=request.user, model=found)
        return self.get(request, model)


class ModelVersionsView(PagedView):
    # POST is answered by registry.upload_endpoint before Django sees it; it stands here for the schema and the matrix.
    policy = {"GET": "read", "POST": "model.write"}
    ordering = "-number"

    @documented("List a model's versions", answer=VersionOut(many=True), example=(None, VERSION), tags=["models"])
    def get(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects, request.user, pk=model)
        return self.paged(request, found.versions.select_related("model", "author"), VersionOut)

    @documented(
        "Upload a version in one request", answer=UploadOut, status=202, tags=["models"],
        request={"multipart/form-data": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}},
                 "application/octet-stream": OpenApiTypes.BINARY},
        description="A zip of a package or of a Hugging Face directory, or one safetensors file: as the multipart field "
                    "`file`, or as the raw body with `?filename=`. A worker checks and commits it; poll the upload. Files "
                    "over 5 GB, or over a bad connection, come in parts: see *uploads*.",
        parameters=[OpenApiParameter("filename", str, description="Label of a raw body, such as model.safetensors"),
                    OpenApiParameter("branch", str, description="The branch that gets the version; default `main`"),
                    OpenApiParameter("message", str, description="Of the commit"), ONCE],
        example=(None, {**UPLOAD, "state": "queued", "missing": []}),
    )  # fmt: skip
    def post(self, request: Request, model: UUID) -> Response:
        require(request.user, "model.write", visible_or_404(RegisteredModel.objects, request.user, pk=model))
        raise Conflict("Uploads are answered by the platform's own ASGI server; start it with `manage.py web`.")


class RefsView(PagedView):
    policy = {"GET": "read"}
    ordering = ("kind", "name", "id")

    @documented("List a model's refs", answer=RefOut(many=True), example=(None, REF), tags=["refs"])
    def get(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects, request.user, pk=model)
        return self.paged(request, found.refs.select_related("version"), RefOut)


class RefLogView(PagedView):
    policy = {"GET": "read"}
    ordering = "-id"

    @documented("Log of all moves of a model's refs", answer=RefMoveOut(many=True), example=(None, MOVE), tags=["refs"])
    def get(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects, request.user, pk=model)
        return self.paged(request, RefMove.objects.filter(model=found).select_related("actor"), RefMoveOut)


class RefView(APIView):
    # A branch needs less than an alias, which the service decides; here the caller needs at least this.
    policy = {"GET": "read", "PUT": "read", "DELETE": "read"}

    @documented("Where a ref points", answer=RefOut, example=(None, REF), tags=["refs"])
    def get(self, request: Request, model: UUID, kind: str, name: str) -> Response:
        return Response(RefOut(_ref(request, model, kind, name)).data)

    @documented(
        "Point a ref at a version", request=RefMoveIn, answer=RefOut, tags=["refs"],
        description="Makes the ref when it is new. With `expected`, moves it only from there (409 otherwise). "
                    "Tags never move.",
        example=({"version": "9c1d…", "reason": "better recall"}, REF),
    )  # fmt: skip
    def put(self, request: Request, model: UUID, kind: str, name: str) -> Response:
        found = visible_or_404(RegisteredModel.objects, request.user, pk=model)
        require(request.user, services.RIGHT_TO_MOVE[Ref.Kind(_kind(kind))], found)
        given = RefMoveIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        version = services.version_of(model=found, identifier=wanted["version"])
        ref = services.move_ref(
            actor=request.user, model=found, kind=kind, name=name, version=version,
            reason=wanted.get("reason", ""), expected=wanted.get("expected"), check_expected="expected" in wanted,
        )  # fmt: skip
        return Response(RefOut(ref).data)

    @documented("Remove a branch or an alias", answer=None, status=204, tags=["refs"])
    def delete(self, request: Request, model: UUID, kind: str, name: str) -> Response:
        ref = _ref(request, model, kind, name)
        services.delete_ref(actor=request.user, model=ref.model, kind=kind, name=name)
        return Response(status=204)


class VersionView(APIView):
    policy = {"GET": "read", "DELETE": "model.delete"}

    @documented("Get a model version with its tree, signature and lineage", answer=ModelVersionDetail,
                example=(None, VERSION), tags=["model versions"])  # fmt: skip
    def get(self, request: Request, version: UUID) -> Response:
        return Response(ModelVersionDetail(visible_version(request, version)).data)

    @documented(
        "Delete the files of a version", answer=ModelVersionDetail, tags=["model versions"],
        description="Frees what nothing else needs after some days, until when it can be undone; the version itself, its "
                    "metrics and its lineage stay. 409 `in_use` while a ref points to it or it is released.",
        example=(None, {**VERSION, "deleted_at": "2026-11-20T09:30:00Z"}),
    )  # fmt: skip
    def delete(self, request: Request, version: UUID) -> Response:
        deletion.delete_version(actor=request.user, version=visible_version(request, version))
        return self.get(request, version)


class VersionFileView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Download a file of a version", tags=["model versions"],
        description="Streamed and verified; supports `Range` and `If-None-Match`.",
        answer=OpenApiResponse(OpenApiTypes.BINARY, description="The file's bytes"),
    )  # fmt: skip
    def get(self, request: Request, version: UUID, path: str) -> HttpResponseBase:
        return _file(request, visible_version(request, version), path)


def _file(request: Request, version: ModelVersion, path: str) -> HttpResponseBase:
    availability.require_files(version)
    entry = version.tree.get(path)
    if entry is None:
        raise Http404
    store = services.object_store(version.model.organization_id)
    label = path.rsplit("/", 1)[-1]
    return file_response(request._request, store, sha256=entry["sha256"], size=entry["size"], label=label)


class VersionArchiveView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Download a whole version", tags=["model versions"], description="A zip, streamed; supports `If-None-Match`.",
        answer=OpenApiResponse(OpenApiTypes.BINARY, description="The zip's bytes"),
    )  # fmt: skip
    def get(self, request: Request, version: UUID) -> HttpResponseBase:
        return _archive(request, visible_version(request, version))


def _archive(request: Request, version: ModelVersion) -> HttpResponseBase:
    availability.require_files(version)
    return archive_response(request._request, version)


class VersionLinkView(APIView):
    policy = {"POST": "read"}

    @documented(
        "Make a link that expires", request=LinkIn, answer=LinkOut, status=201, tags=["model versions"],
        description="For somebody without an account: one file, or the whole version as a zip. It stops working when it "
                    "expires, and when its maker loses access.",
        example=({"path": "model.safetensors", "seconds": 3600},
                 {"url": "https://platform.example/api/v1/downloads/eyJ2…", "expires_at": "2026-11-20T10:30:00Z"}),
    )  # fmt: skip
    def post(self, request: Request, version: UUID) -> Response:
        found = visible_version(request, version)
        given = LinkIn(data=request.data)
        given.is_valid(raise_exception=True)
        availability.require_files(found)
        path = given.validated_data["path"]
        if path and path not in found.tree:
            raise ValidationError({"path": [ErrorDetail("This version has no such file.", "does_not_exist")]})
        lasts = timedelta(seconds=given.validated_data["seconds"])
        token, expires = links.sign_link(actor=request.user, version=found, path=path, lasts=lasts)
        url = request.build_absolute_uri(f"/api/v1/downloads/{token}")
        return Response(LinkOut({"url": url, "expires_at": expires}).data, status=201)


class DownloadView(APIView):
    policy = {"GET": "public"}

    @documented(
        "Follow a link", tags=["model versions"], auth=[],
        answer=OpenApiResponse(OpenApiTypes.BINARY, description="The file's or the zip's bytes"),
    )  # fmt: skip
    def get(self, request: Request, token: str) -> HttpResponseBase:
        meant = links.read_link(token)
        if meant is None:
            detail = "This link is broken or has expired; ask for a new one."
            raise ValidationError({"token": [ErrorDetail(detail, "expired")]})
        version, path = meant
        return _file(request, version, path) if path else _archive(request, version)


class VersionPredictView(APIView):
    policy = {"POST": "predict"}

    @documented("Predict with a model version", request=PredictIn, answer=PredictOut, example=(INSTANCES, PREDICTIONS),
                tags=["predictions"])  # fmt: skip
    def post(self, request: Request, version: UUID) -> Response:
        return _predict(request, visible_version(request, version))


class RefPredictView(APIView):
    policy = {"POST": "predict"}

    @documented(
        "Predict with the version that a ref points to", request=PredictIn, answer=PredictOut,
        example=(INSTANCES, PREDICTIONS), tags=["predictions"],
    )  # fmt: skip
    def post(self, request: Request, model: UUID, kind: str, name: str) -> Response:
        return _predict(request, _ref(request, model, kind, name).version)


def _predict(request: Request, version: ModelVersion) -> Response:
    require(request.user, "predict", version)
    availability.require_files(version)
    given = PredictIn(data=request.data)
    given.is_valid(raise_exception=True)
    predictions = client.predict(version.pk, given.validated_data["instances"], bearer=request.auth)
    return Response({"predictions": predictions, "version": str(version.pk)})


def visible_version(request: Request, identifier: UUID) -> ModelVersion:
    rows = ModelVersion.objects.select_related("model__organization", "author").prefetch_related("parent_edges")
    return visible_or_404(rows, request.user, pk=identifier)


def _kind(kind: str) -> str:
    if kind not in Ref.Kind.values:
        raise Http404
    return kind


def _ref(request: Request, model: UUID, kind: str, name: str) -> Ref:
    rows = Ref.objects.select_related("version", "model__organization")
    return visible_or_404(rows, request.user, model_id=model, kind=_kind(kind), name=name)
