"""REST API of deployments that write texts, streamed while they are written."""

from typing import Any
from uuid import UUID

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.views import APIView

from dlplatform.accounts.access import require
from dlplatform.api import Conflict, documented
from registry.generation_api import LANGUAGE, GenerateIn, streamed

from . import predictions
from .api import the_deployment
from .finding import deployment_named
from .models import Deployment
from .serializers import key_field

WRITING = (
    'Server-sent events while the text is written, by the variant that the `key` belongs to: `data: {"text": "…"}` for each '
    'piece, then `data: {"done": true, "version": …, "variant": …, "request_id": …}`; `data: {"error": "…"}` when it '
    "cannot go on. The request is in the prediction log as predictions are."
)
EXAMPLE = ({"messages": [{"role": "user", "content": "Once"}], "key": "reader 7"}, 'data: {"text": " there was"}')


class DeploymentGenerateIn(GenerateIn):
    key = key_field()


class DeploymentGenerateView(APIView):
    policy = {"POST": "predict"}

    @documented(
        "Write a text with a deployment", request=DeploymentGenerateIn, answer=OpenApiTypes.STR, tags=["predictions"],
        description=WRITING, example=EXAMPLE, operation_id="generate_by_deployment",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID) -> StreamingHttpResponse:
        return _generated(request, the_deployment(request, deployment))


class NamedDeploymentGenerateView(APIView):
    policy = {"POST": "predict"}

    @documented(
        "Write a text with a deployment, by its name", request=DeploymentGenerateIn, answer=OpenApiTypes.STR,
        description=WRITING, example=EXAMPLE, tags=["predictions"], operation_id="generate_by_deployment_name",
        parameters=[OpenApiParameter("organization", str, description="Slug; default: your default organization")],
    )  # fmt: skip
    def post(self, request: Request, name: str) -> StreamingHttpResponse:
        return _generated(request, deployment_named(request.user, name, request.query_params.get("organization")))


def _generated(request: Request, deployment: Deployment) -> StreamingHttpResponse:
    require(request.user, "predict", deployment)
    version = predictions.telling_version(deployment)
    if version is None or version.task != LANGUAGE:
        raise Conflict("This deployment writes no texts; ask it for predictions.", code="not_a_language_model")
    given = DeploymentGenerateIn(data=request.data)
    given.is_valid(raise_exception=True)
    instance: dict[str, Any] = dict(given.validated_data)
    key = instance.pop("key", None)
    asked = {"actor": request.user, "deployment": deployment, "instance": instance, "key": key}
    return streamed(predictions.generate(**asked, bearer=request.auth))
