"""REST API of uploads in parts. The parts themselves are received by ``registry.upload_endpoint``."""

from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import Conflict, PagedView, documented

from . import uploads
from .models import RegisteredModel, Upload
from .serializers import PartOut, UploadCompleteIn, UploadIn, UploadOut

PART = {"file": 0, "number": 3, "size": 16777216, "sha256": "5f3a…"}
UPLOAD = {
    "id": "c0de…", "model": "4f2a…", "state": "receiving", "branch": "main", "message": "Distilled",
    "files": [{"path": "model.safetensors", "size": 5368709120, "sha256": "b94d…"}], "part_size": 16777216,
    "missing": [{"file": 0, "path": "model.safetensors", "parts": [[17, 319]]}], "progress": 0.0, "phase": "",
    "created_at": "2026-11-20T09:30:00Z", "finished_at": None, "output_version": None, "error": None,
}  # fmt: skip
BEGUN = {"files": UPLOAD["files"], "message": "Distilled"}


class UploadsView(PagedView):
    policy = {"GET": "read", "POST": "model.write"}

    @documented("List a model's uploads", answer=UploadOut(many=True), example=(None, UPLOAD), tags=["uploads"])
    def get(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects, request.user, pk=model)
        return self.paged(request, found.uploads.prefetch_related("parts"), UploadOut)

    @documented(
        "Begin an upload in parts", request=UploadIn, answer=UploadOut, status=201, tags=["uploads"],
        description="For files of any size over any connection: name the files, send their parts in any order and as often "
                    "as it takes, then complete the upload. A part that was answered with 200 is kept; `missing` of the "
                    "upload tells what has not come. A package of this platform, a Hugging Face directory "
                    "(config.json and safetensors), a `state_dict` in safetensors, or a zip of one of them; pickles are "
                    "refused. An upload to which no part comes for a week is given up.",
        example=(BEGUN, UPLOAD),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, model: UUID) -> Response:
        found = visible_or_404(RegisteredModel.objects.select_related("organization"), request.user, pk=model)
        require(request.user, "model.write", found)
        given = UploadIn(data=request.data)
        given.is_valid(raise_exception=True)
        upload = uploads.begin(actor=request.user, model=found, **given.validated_data)
        return Response(UploadOut(upload).data, status=201)


class UploadView(APIView):
    policy = {"GET": "read", "DELETE": "model.write"}

    @documented("Get an upload: what is missing, how far its worker is, the version", answer=UploadOut,
                example=(None, UPLOAD), tags=["uploads"])  # fmt: skip
    def get(self, request: Request, upload: UUID) -> Response:
        return Response(UploadOut(_upload(request, upload)).data)

    @documented("Abort an upload", answer=UploadOut, example=(None, {**UPLOAD, "state": "cancelled"}), tags=["uploads"],
                description="Frees what was sent. One that has become a version is a Conflict.")  # fmt: skip
    def delete(self, request: Request, upload: UUID) -> Response:
        return Response(UploadOut(uploads.abort(actor=request.user, upload=_upload(request, upload))).data)


class UploadPartView(APIView):
    policy = {"PUT": "model.write"}

    @documented(
        "Send a part of a file", request={"application/octet-stream": OpenApiTypes.BINARY}, answer=PartOut,
        tags=["uploads"], example=(None, PART),
        description="The raw bytes: `part_size` of them, fewer for a file's last part. Parts are numbered from 0. The same "
                    "part again is answered again; other bytes for it are a Conflict. With `Content-Digest: sha-256=:…:` "
                    "(RFC 9530) bytes that were damaged on the way are refused.",
        parameters=[OpenApiParameter("Content-Digest", str, OpenApiParameter.HEADER,
                                     description="`sha-256=:` hash in base64 `:`")],
    )  # fmt: skip
    def put(self, request: Request, upload: UUID, file: int, number: int) -> Response:
        require(request.user, "model.write", _upload(request, upload))
        raise Conflict("Parts are answered by the platform's own ASGI server; start it with `manage.py web`.")


class UploadCompleteView(APIView):
    policy = {"POST": "model.write"}

    @documented(
        "Complete an upload", request=UploadCompleteIn, answer=UploadOut, status=202, tags=["uploads"],
        description="Every part is there: a worker checks hashes and contents and commits the version; poll the upload. "
                    "Asked again, it is answered again. 409 `incomplete` while parts are missing.",
        example=({"sha256": {"model.safetensors": "b94d…"}}, {**UPLOAD, "state": "queued", "missing": []}),
    )  # fmt: skip
    def post(self, request: Request, upload: UUID) -> Response:
        found = _upload(request, upload)
        require(request.user, "model.write", found)
        given = UploadCompleteIn(data=request.data)
        given.is_valid(raise_exception=True)
        done = uploads.complete(actor=request.user, upload=found, hashes=given.validated_data.get("sha256"))
        return Response(UploadOut(done).data, status=202)


def _upload(request: Request, identifier: UUID) -> Upload:
    found: Upload = visible_or_404(Upload.objects.select_related("model__organization"), request.user, pk=identifier)
    return found
