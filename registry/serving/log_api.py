"""REST API of the prediction log: what answered a request, and what turned out to be right."""

from uuid import UUID

from django.core.exceptions import ValidationError as InvalidLabels
from django.http import Http404, HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require
from dlplatform.api import PagedView, documented

from . import feedback, prediction_log, shadowing
from .api import TAGS, the_deployment
from .models import PredictionRecord, Variant
from .request_views import logged_image
from .serializers import FeedbackIn, FeedbackOut, PredictionRecordOut, ShadowComparisonOut

MOST_LABELS = 10_000
RECORD = {
    "request_id": "0d3f…", "variant": "51c0…", "version": "9c1d…", "key": "patient 7",
    "instances": [{"mean radius": 14.1, "mean texture": 20.3}],
    "predictions": [{"label": "benign", "probabilities": {"benign": 0.97, "malignant": 0.03}}],
    "labels": {"0": "benign"}, "milliseconds": 3.1, "error": "", "at": "2026-11-20T09:30:00Z", "revision": 4,
    "propensity": 0.9,
    "shadows": [{
        "variant": "77aa…", "version": "3b9f…", "milliseconds": 3.4, "error": "", "at": "2026-11-20T09:30:00Z",
        "predictions": [{"label": "benign", "probabilities": {"benign": 0.91, "malignant": 0.09}}],
    }],
}  # fmt: skip

SHADOW = {
    "variant": "77aa…", "version": "3b9f…", "answered": 5210, "dropped": 3, "failed": 0, "classified": 1000,
    "agreement": 0.984, "measured": 0, "mean_difference": None, "resting": "",
}  # fmt: skip


class RequestsView(PagedView):
    policy = {"GET": "read"}
    ordering = "-id"

    @documented(
        "List the requests that a deployment answered", answer=PredictionRecordOut(many=True), example=(None, RECORD),
        tags=TAGS, description="The newest first, as far as they were sampled and are kept. A record appears within a second.",
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID) -> Response:
        found = the_deployment(request, deployment)
        rows = PredictionRecord.objects.filter(deployment=found, role=Variant.Role.LIVE).select_related("variant")
        return self.paged(request, rows, _WithLabels)


class _WithLabels:
    """`PredictionRecordOut` for a page, with its labels and shadows fetched at once."""

    def __init__(self, rows: list[PredictionRecord], *, many: bool, context: dict[str, object]) -> None:
        self.data = PredictionRecordOut(rows, many=many, context={**context, **_beside(rows)}).data


def _beside(rows: list[PredictionRecord]) -> dict[str, object]:
    """What belongs to live records and is not in their rows, by request."""
    if not rows:
        return {"labels": {}, "shadows": {}}
    deployment, requests = rows[0].deployment_id, [row.request_id for row in rows]
    return {
        "labels": prediction_log.labels_of(deployment, requests),
        "shadows": prediction_log.shadows_of(deployment, requests),
    }


class RequestView(APIView):
    policy = {"GET": "read"}

    @documented("What answered a request", answer=PredictionRecordOut, example=(None, RECORD), tags=TAGS)
    def get(self, request: Request, deployment: UUID, request_id: UUID) -> Response:
        found = the_deployment(request, deployment)
        rows = PredictionRecord.objects.filter(deployment=found, request_id=request_id, role=Variant.Role.LIVE)
        record = rows.select_related("variant").first()
        if record is None:
            raise Http404
        return Response(PredictionRecordOut(record, context=_beside([record])).data)


class RequestImageView(APIView):
    policy = {"GET": "read"}

    @documented(
        "An image that was sent in a request", tags=TAGS,
        description="Its bytes, by the id that stands as `object:…` in the request's `instances`.",
        answer=OpenApiResponse(OpenApiTypes.BINARY, description="The image's bytes"),
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID, request_id: UUID, sha256: str) -> HttpResponse:
        return logged_image(the_deployment(request, deployment), request_id, sha256)


class ShadowsView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Compare the shadows' answers with the live ones", answer=ShadowComparisonOut(many=True), example=(None, [SHADOW]),
        tags=TAGS, description="Of every shadow that the deployment has now, as far as its log goes back.",
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID) -> Response:
        found = shadowing.comparisons_of(the_deployment(request, deployment))
        return Response(ShadowComparisonOut(found, many=True).data)


class FeedbackView(APIView):
    policy = {"POST": "predict"}

    @documented(
        "Say what turned out to be right", request=FeedbackIn, answer=FeedbackOut, status=202, tags=TAGS,
        description="For one row of a request, or a JSON list of these for up to 10,000 rows. It may come any time after the "
                    "prediction, and again: the last one wins. Of a request in the log, `index` names one of its rows.",
        example=({"request_id": "0d3f…", "index": 0, "label": "benign"}, {"accepted": 1}),
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID) -> Response:
        found = the_deployment(request, deployment)
        require(request.user, "predict", found)
        many = isinstance(request.data, list)
        if many and not 0 < len(request.data) <= MOST_LABELS:
            sentence = f"Send from 1 to {MOST_LABELS:,} labels in one request."
            raise ValidationError([ErrorDetail(sentence, code="invalid")])
        given = FeedbackIn(data=request.data, many=many)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data if many else [given.validated_data]
        labels = [feedback.Label(**one) for one in wanted]
        try:
            accepted = feedback.give_feedback(actor=request.user, deployment=found, labels=labels)
        except InvalidLabels as refused:
            raise refused if many else _of_one(refused) from None
        return Response({"accepted": accepted}, status=202)


def _of_one(refused: InvalidLabels) -> InvalidLabels:
    """Whoever sent one label, not a list, sent no position."""
    return InvalidLabels({field.removeprefix("0."): told for field, told in refused.error_dict.items()})
