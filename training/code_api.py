"""REST API of users' own code: bundles are uploaded once, and named by the runs that are launched with them."""

from typing import IO, Any
from uuid import UUID

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.parsers import BaseParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.accounts.organizations import resolve
from dlplatform.api import ONCE, PagedView, documented

from .code import add_code
from .models import CodeBundle

FILE = {"path": "main.py", "size": 812, "sha256": "5f0c…"}
BUNDLE = {
    "id": "c0de…", "filename": "train.zip", "digest": "9b1d…", "organization": "main", "files": [FILE],
    "created_by": "maria", "created_at": "2026-11-20T09:30:00Z",
}  # fmt: skip


class _Raw(BaseParser):
    """The body itself."""

    def parse(self, stream: IO[bytes], media_type: str | None = None, parser_context: Any = None) -> dict[str, Any]:
        return {"content": stream.read()}


class ZipParser(_Raw):
    media_type = "application/zip"


class PythonParser(_Raw):
    media_type = "text/x-python"


class BinaryParser(_Raw):
    media_type = "application/octet-stream"


class CodeFileOut(serializers.Serializer):
    path = serializers.CharField()
    size = serializers.IntegerField(help_text="Bytes")
    sha256 = serializers.CharField()


class CodeOut(serializers.ModelSerializer):
    organization = serializers.CharField(source="organization.slug")
    created_by = serializers.CharField(source="created_by.username", default=None)
    files = serializers.SerializerMethodField()

    class Meta:
        model = CodeBundle
        fields = ["id", "filename", "digest", "organization", "files", "created_by", "created_at"]

    def get_files(self, bundle: CodeBundle) -> list[dict[str, Any]]:
        """``[{path, size, sha256}]``"""
        return [{"path": path, **entry} for path, entry in sorted(bundle.tree.items())]


class CodesView(PagedView):
    policy = {"GET": "read", "POST": "run.write"}
    parser_classes = [MultiPartParser, ZipParser, PythonParser, BinaryParser]

    @documented("List code", answer=CodeOut(many=True), example=(None, BUNDLE), tags=["code"], operation_id="list_code")
    def get(self, request: Request) -> Response:
        rows = CodeBundle.objects.visible_to(request.user).select_related("organization", "created_by")
        return self.paged(request, rows, CodeOut)

    @documented(
        "Upload code", answer=CodeOut, status=201, tags=["code"], example=(None, BUNDLE),
        request={"multipart/form-data": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}},
                 "application/zip": OpenApiTypes.BINARY, "text/x-python": OpenApiTypes.BINARY},
        description="One .py file, or a zip with `model.py` (an architecture: `build(schema, **params)`) or `main.py` (a "
                    "training script) at its top: as the multipart field `file`, or as the raw body with `?filename=`. "
                    "Nothing is run; launch it with `POST /runs` and `code`. The same files are the same code. Needs the "
                    "permission to run one's own code, which no role implies.",
        parameters=[OpenApiParameter("filename", str, description="Name of a raw body, such as main.py"),
                    OpenApiParameter("organization", str, description="Slug; default: your default organization"), ONCE],
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        name, content = _sent(request)
        organization = resolve(
            request.user, request.query_params.get("organization") or request.data.get("organization")
        )
        bundle = add_code(actor=request.user, organization=organization, filename=name, content=content)
        return Response(CodeOut(bundle).data, status=201)


def _sent(request: Request) -> tuple[str, bytes]:
    """(file name, content) of either way to send a file."""
    if "content" in request.data and isinstance(request.data["content"], bytes):
        return request.query_params.get("filename", "")[:200], request.data["content"]
    file = request.FILES.get("file")
    if file is None:
        raise ValidationError({"file": [ErrorDetail("Send the code as the field `file`.", "required")]})
    return file.name[:200], file.read()


class CodeView(APIView):
    policy = {"GET": "read"}

    @documented("Get code", answer=CodeOut, example=(None, BUNDLE), tags=["code"])
    def get(self, request: Request, code: UUID) -> Response:
        rows = CodeBundle.objects.select_related("organization", "created_by")
        return Response(CodeOut(visible_or_404(rows, request.user, pk=code)).data)
