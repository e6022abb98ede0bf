"""REST API of the images of a version."""

from uuid import UUID

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.request import Request
from rest_framework.views import APIView

from dlplatform.accounts.access import visible_or_404
from dlplatform.api import boolean_parameter, documented

from .image_responses import image_response
from .models import DatasetVersion


class ImageView(APIView):
    policy = {"GET": "read"}

    @documented(
        "An image of a version", tags=["datasets"],
        description="The file as it was uploaded, by the SHA-256 that stands in the rows; with `?thumbnail=1` a picture of "
                    "at most 96 pixels a side, made when the upload was read. Supports `If-None-Match`. 404 for an image "
                    "that the version does not have, 409 `not_ready` for a version without rows.",
        answer=OpenApiResponse(OpenApiTypes.BINARY, description="The image's bytes"),
        parameters=[OpenApiParameter("thumbnail", bool, description="The small picture instead of the file")],
    )  # fmt: skip
    def get(self, request: Request, dataset: UUID, number: int, sha256: str) -> HttpResponse:
        rows = DatasetVersion.objects.select_related("dataset").defer("profile", "problems", "parts", "columns")
        version = visible_or_404(rows, request.user, dataset_id=dataset, number=number)
        small = boolean_parameter(request, "thumbnail")
        return image_response(request._request, version, sha256, small=small)
