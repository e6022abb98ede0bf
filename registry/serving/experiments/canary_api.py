"""REST API of canaries and blue/green."""

from uuid import UUID

from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import PagedView, documented
from registry.serving.api import the_deployment

from . import rollouts
from .models import Rollout
from .serializers import CanaryIn, CanaryOut, ReasonIn
from .verbs import VerbView

TAGS = ["canaries"]
STEPS = [{"share": 0.05, "minutes": 10.0, "requests": 100}, {"share": 1.0, "minutes": 30.0, "requests": 500}]
CANARY = {
    "id": "a1f0…", "deployment": "e0b7…", "number": 2, "state": "running", "stable": "9c1d…", "candidate": "77aa…",
    "share": 0.05, "steps": STEPS, "step": 0, "step_began_at": "2026-11-20T10:00:00Z", "paused_at": None,
    "guardrails": [{"kind": "errors", "limit": 0.02}],
    "watched": {
        "requests": 48,
        "guardrails": [{"kind": "errors", "limit": 0.02, "alarm": False, "evidence": -0.4, "harm": -0.02, "low": None,
                        "sentence": "Failed requests: 0 % at B of 48 requests, limit 2 %."}],
    },
    "watched_at": "2026-11-20T10:04:00Z", "conclusion": "", "created_by": "maria", "started_at": "2026-11-20T10:00:00Z",
    "ended_at": None,
}  # fmt: skip


def the_rollout(request: Request, deployment: UUID, number: int) -> Rollout:
    found = rollouts.rollout_numbered(the_deployment(request, deployment), number)
    if found is None:
        raise Http404
    return found


class CanariesView(PagedView):
    policy = {"GET": "read", "POST": "deploy"}
    ordering = "-number"

    @documented(
        "List the canaries of a deployment", answer=CanaryOut(many=True), example=(None, CANARY), tags=TAGS,
        operation_id="list_canaries",
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID) -> Response:
        rows = Rollout.objects.filter(deployment=the_deployment(request, deployment)).select_related("created_by")
        return self.paged(request, rows, CanaryOut)

    @documented(
        "Have a version take over step by step", request=CanaryIn, answer=CanaryOut, status=201, tags=TAGS,
        operation_id="start_canary",
        description="Starts at once with the first step. A step is over when its minutes have passed and the candidate has "
                    "answered its requests; an alarm of a guardrail has the version before answer alone again, at any step. "
                    "Nobody else can change the deployment meanwhile.",
        example=({"candidate": "77aa…", "steps": STEPS, "guardrails": [{"kind": "errors", "limit": 0.02}]}, CANARY),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, deployment: UUID) -> Response:
        found = the_deployment(request, deployment)
        require(request.user, "deploy", found)
        given = CanaryIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = dict(given.validated_data)
        wanted["guardrails_wanted"] = wanted.pop("guardrails", [])
        made = rollouts.start_rollout(actor=request.user, deployment=found, **wanted)
        return Response(CanaryOut(made).data, status=201)


class CurrentCanaryView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Get the current canary of a deployment", answer=CanaryOut, example=(None, CANARY), tags=TAGS,
        description="The one that runs, else the newest.",
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID) -> Response:
        found = rollouts.current_rollout(the_deployment(request, deployment))
        if found is None:
            raise Http404
        return Response(CanaryOut(found).data)


class CanaryView(APIView):
    policy = {"GET": "read"}

    @documented("Get a canary", answer=CanaryOut, example=(None, CANARY), tags=TAGS)
    def get(self, request: Request, deployment: UUID, number: int) -> Response:
        return Response(CanaryOut(the_rollout(request, deployment, number)).data)


class _CanaryVerbView(VerbView):
    named, shows = "rollout", CanaryOut

    def find(self, request: Request, deployment: UUID, number: int) -> Rollout:
        return the_rollout(request, deployment, number)


class CanaryPauseView(_CanaryVerbView):
    policy = {"POST": "deploy"}

    @documented(
        "Pause a canary", request=None, answer=CanaryOut, example=(None, CANARY), tags=TAGS,
        description="It stays at its step. Its guardrails are watched all the same.",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        return self.act(request, deployment, number, rollouts.pause_rollout)


class CanaryContinueView(_CanaryVerbView):
    policy = {"POST": "deploy"}

    @documented("Continue a paused canary", request=None, answer=CanaryOut, example=(None, CANARY), tags=TAGS)
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        return self.act(request, deployment, number, rollouts.continue_rollout)


class CanaryAbortView(_CanaryVerbView):
    policy = {"POST": "deploy"}
    reads = ReasonIn

    @documented(
        "Abort a canary", request=ReasonIn, answer=CanaryOut, example=({"reason": "the wrong version"}, CANARY), tags=TAGS,
        description="The version that was there before answers alone again.",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        return self.act(request, deployment, number, rollouts.abort_rollout)
