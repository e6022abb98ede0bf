"""REST API of sweeps."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import PagedView, documented
from training.finding import with_rows
from training.models import Sweep

from . import services
from .serializers import PromotionIn, PromotionOut, SweepDetail, SweepIn, SweepOut

NEW = {
    "dataset_version": "77aa…", "task": "classification", "target": "diagnosis", "sampler": "tpe", "pruner": "asha",
    "trials": 30, "config": {"epochs": 27},
    "space": [
        {"name": "learning_rate", "kind": "float", "low": 0.0001, "high": 0.1, "log": True},
        {"name": "params.width", "kind": "integer", "low": 16, "high": 256},
        {"name": "schedule", "kind": "categorical", "choices": ["cosine", "one-cycle"]},
    ],
}  # fmt: skip
SWEEP = {
    "id": "5eeb…", "name": "breast cancer sweep 1", "state": "running", "reason": "", "experiment": "e51b…",
    "dataset_version": "77aa…", "task": "classification", "targets": ["diagnosis"], "features": None,
    "config": {"epochs": 27}, "code": None, "entry": "", "base_version": None, "finetune": None,
    "space": NEW["space"], "sampler": "tpe", "pruner": "asha", "rungs": [1, 3, 9], "eta": 3,
    "metric": "validation/loss", "direction": "minimize", "trials": 30, "parallel": 2, "seeds": 1, "seed": 0,
    "register_as": "breast cancer", "branch": "sweep-5eeb1a2b", "progress": 0.4, "eta_seconds": 62.0,
    "counts": {"running": 2, "paused": 6, "succeeded": 4}, "created_by": "maria",
    "created_at": "2026-11-20T09:30:00Z", "finished_at": None,
}  # fmt: skip
TRIAL = {
    "number": 7, "state": "succeeded", "params": {"learning_rate": 0.004, "params.width": 96, "schedule": "cosine"},
    "value": 0.061, "spread": None, "rung_values": [0.21, 0.1, 0.07], "pruned_at_epoch": None, "error": None,
    "runs": [{"id": "b7e0…", "state": "succeeded", "progress": 1.0, "epoch": 27, "output_version": "c0ff…"}],
}  # fmt: skip
DETAIL = {**SWEEP, "best": 7, "importance": {"learning_rate": 0.81, "params.width": 0.19}, "trial_list": [TRIAL]}


def visible_sweeps(user: Any) -> Any:
    return Sweep.objects.visible_to(user).select_related("experiment__organization", "created_by")


def _sweep(request: Request, identifier: UUID) -> Sweep:
    rows = visible_sweeps(request.user).prefetch_related("trials__runs")
    found: Sweep = visible_or_404(rows, request.user, pk=identifier)
    return found


class SweepsView(PagedView):
    policy = {"GET": "read", "POST": "run.write"}

    @documented(
        "List sweeps", answer=SweepOut(many=True), example=(None, SWEEP), tags=["sweeps"],
        parameters=[OpenApiParameter("state", str, enum=Sweep.State.values, description="Only sweeps in this state")],
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        rows = visible_sweeps(request.user)
        if state := request.query_params.get("state"):
            if state not in Sweep.State.values:
                text = f"Choose one of: {', '.join(Sweep.State.values)}."
                raise ValidationError({"state": [ErrorDetail(text, "invalid_choice")]})
            rows = rows.filter(state=state)
        return self.paged(request, rows, SweepOut)

    @documented(
        "Start a sweep", request=SweepIn, answer=SweepDetail, status=201, example=(NEW, {**DETAIL, "trial_list": []}),
        tags=["sweeps"],
        description="Trials are drawn from the space by the sampler and trained as runs in the ordinary queue. With a "
                    "pruner each stops at the rungs and goes on only if it does well beside the others; a trial that is "
                    "pruned ends as a cancelled run with a reason. Everything that can be checked is checked first; "
                    "errors name the field and the fix, such as space.0.low. With `base_version` every trial fine-tunes that "
                    "version, and `finetune.mode`, `finetune.rank`, … can be searched; what a trial's mode does not know (rank "
                    "in mode full) is left out of it.",
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = SweepIn(data=request.data)
        given.is_valid(raise_exception=True)
        sweep = services.create_sweep(actor=request.user, **with_rows(request.user, given.validated_data))
        return Response(SweepDetail(sweep).data, status=201)


class SweepView(APIView):
    policy = {"GET": "read"}

    @documented("Get a sweep with its trials, the best one and what matters", answer=SweepDetail,
                example=(None, DETAIL), tags=["sweeps"])  # fmt: skip
    def get(self, request: Request, sweep: UUID) -> Response:
        return Response(SweepDetail(_sweep(request, sweep)).data)


class SweepChangeView(APIView):
    """POST that changes a sweep by one service."""

    policy = {"POST": "run.write"}
    change: Callable[..., Sweep]

    def _changed(self, request: Request, sweep: UUID) -> Response:
        type(self).change(actor=request.user, sweep=_sweep(request, sweep))
        return Response(SweepDetail(_sweep(request, sweep)).data)


class SweepCancelView(SweepChangeView):
    change = staticmethod(services.cancel_sweep)

    @documented("Cancel a sweep and all its runs", answer=SweepDetail, example=(None, {**DETAIL, "state": "cancelled"}),
                tags=["sweeps"])  # fmt: skip
    def post(self, request: Request, sweep: UUID) -> Response:
        return self._changed(request, sweep)


class SweepPauseView(SweepChangeView):
    change = staticmethod(services.pause_sweep)

    @documented("Pause a sweep and what it trains", answer=SweepDetail, example=(None, {**DETAIL, "state": "paused"}),
                tags=["sweeps"])  # fmt: skip
    def post(self, request: Request, sweep: UUID) -> Response:
        return self._changed(request, sweep)


class SweepResumeView(SweepChangeView):
    change = staticmethod(services.resume_sweep)

    @documented("Resume a paused sweep", answer=SweepDetail, example=(None, DETAIL), tags=["sweeps"],
                description="Its runs go on from their checkpoints.")  # fmt: skip
    def post(self, request: Request, sweep: UUID) -> Response:
        return self._changed(request, sweep)


class SweepRerunView(SweepChangeView):
    change = staticmethod(services.rerun_failed)

    @documented("Run the failed trials of a sweep again", answer=SweepDetail, example=(None, DETAIL), tags=["sweeps"],
                description="Exactly those: each failed run goes on from its last checkpoint.")  # fmt: skip
    def post(self, request: Request, sweep: UUID) -> Response:
        return self._changed(request, sweep)


class SweepPromoteView(APIView):
    policy = {"POST": "run.write"}

    @documented(
        "Promote the best trial", request=PromotionIn, answer=PromotionOut, tags=["sweeps"],
        description="Points a branch (main by default) or an alias of the model at the version of the best trial.",
        example=({"kind": "alias", "name": "production"},
                 {"model": "4f2a…", "kind": "alias", "name": "production", "version": "c0ff…"}),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, sweep: UUID) -> Response:
        found = _sweep(request, sweep)
        given = PromotionIn(data=request.data)
        given.is_valid(raise_exception=True)
        ref = services.promote_best(actor=request.user, sweep=found, **given.validated_data)
        return Response(PromotionOut(ref).data)
