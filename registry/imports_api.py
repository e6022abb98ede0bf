"""REST API of imports: a repository of the Hugging Face Hub becomes a version."""

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require
from dlplatform.accounts.idempotency import idempotent
from dlplatform.accounts.organizations import resolve
from dlplatform.api import documented

from . import hub_imports
from .serializers import HubImportIn, UploadOut
from .uploads_api import UPLOAD

SOURCE = {"repository": "sentence-transformers/all-MiniLM-L6-v2", "revision": "main"}
IMPORT = {**UPLOAD, "state": "queued", "source": SOURCE, "files": [], "missing": []}


class HubImportView(APIView):
    policy = {"POST": "model.write"}

    @documented(
        "Import a model from the Hugging Face Hub", request=HubImportIn, answer=UploadOut, status=202, tags=["uploads"],
        description="A worker fetches the repository's safetensors, JSON and texts, checks them and commits a version; "
                    "poll the upload, and abort it to cancel. Code, pickles and weights of other programs are left out.",
        example=({"repository": SOURCE["repository"], "name": "minilm"}, IMPORT),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = HubImportIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = dict(given.validated_data)
        organization = resolve(request.user, wanted.pop("organization", None))
        require(request.user, "model.write", organization)
        upload = hub_imports.begin_in(actor=request.user, organization=organization, **wanted)
        return Response(UploadOut(upload).data, status=202)
