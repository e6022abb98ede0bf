"""REST API of training: experiments and runs."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db.models import F, OuterRef, QuerySet, Subquery
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ErrorDetail
from rest_framework.exceptions import ValidationError as InvalidQuery
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.accounts.models import User
from dlplatform.accounts.organizations import resolve
from dlplatform.api import PagedView, boolean_parameter, documented, whole_parameter

from . import doctor, experiments, finetuning, services
from .curves import curves
from .finding import with_rows
from .models import Experiment, MetricSeries, Run
from .records import log_lines
from .serializers import (
    ExperimentIn,
    ExperimentOut,
    FindingsOut,
    LogsOut,
    RunChanges,
    RunDetail,
    RunIn,
    RunOut,
    SeriesOut,
)

EXPERIMENT = {
    "id": "e51b…", "name": "Default", "description": "", "organization": "main", "created_at": "2026-11-20T09:30:00Z",
}  # fmt: skip
RUN = {
    "id": "b7e0…", "name": "breast cancer-3", "state": "running", "progress": 0.42, "phase": "training", "step": 840,
    "total_steps": 2000, "epoch": 42, "eta_seconds": 12.5, "rows_per_second": 91000.0,
    "metrics": {"validation/accuracy": 0.978}, "error": None, "attempt": 1, "experiment": "e51b…",
    "experiment_name": "Default", "dataset_version": "77aa…", "dataset": "breast cancer", "task": "classification",
    "target": "diagnosis", "output_version": None, "created_by": "maria", "created_at": "2026-11-20T09:30:00Z",
    "started_at": "2026-11-20T09:30:00Z", "finished_at": None,
}  # fmt: skip
NEW_RUN = {
    "dataset_version": "77aa…", "task": "classification", "target": "diagnosis", "config": {"epochs": 50, "seed": 7},
}  # fmt: skip
ORDERINGS = {"created_at", "name", "state", "started_at", "finished_at"}
LIST_HEAVY = ("evaluation", "environment", "config", "features", "warnings")


def visible_runs(user: User) -> QuerySet[Run]:
    return Run.objects.visible_to(user).select_related(
        "experiment__organization", "dataset_version__dataset", "created_by"
    )


def with_metric(runs: QuerySet[Run], key: str) -> QuerySet[Run]:
    """Annotate each run with the last value of one metric, as ``metric``."""
    last = MetricSeries.objects.filter(run=OuterRef("pk"), key=key).values("last")[:1]
    return runs.annotate(metric=Subquery(last))


class ExperimentsView(PagedView):
    policy = {"GET": "read", "POST": "run.write"}

    @documented("List experiments", answer=ExperimentOut(many=True), example=(None, EXPERIMENT), tags=["experiments"])
    def get(self, request: Request) -> Response:
        rows = Experiment.objects.visible_to(request.user).select_related("organization")
        return self.paged(request, rows, ExperimentOut)

    @documented(
        "Create an experiment", request=ExperimentIn, answer=ExperimentOut, status=201, tags=["experiments"],
        example=({"name": "screening"}, EXPERIMENT),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = ExperimentIn(data=request.data)
        given.is_valid(raise_exception=True)
        organization = resolve(request.user, given.validated_data.pop("organization", None))
        experiment = experiments.create_experiment(
            actor=request.user, organization=organization, **given.validated_data
        )
        return Response(ExperimentOut(experiment).data, status=201)


class ExperimentView(APIView):
    policy = {"GET": "read"}

    @documented("Get an experiment", answer=ExperimentOut, example=(None, EXPERIMENT), tags=["experiments"])
    def get(self, request: Request, experiment: UUID) -> Response:
        return Response(ExperimentOut(visible_or_404(Experiment.objects, request.user, pk=experiment)).data)


class RunsView(PagedView):
    policy = {"GET": "read", "POST": "run.write"}

    @documented(
        "List runs", answer=RunOut(many=True), example=(None, RUN), tags=["runs"],
        parameters=[
            OpenApiParameter("state", str, enum=Run.State.values, description="Only runs in this state"),
            OpenApiParameter("experiment", str, description="Only runs of this experiment (id)"),
            OpenApiParameter("dataset_version", str, description="Only runs on this dataset version (id)"),
            OpenApiParameter("search", str, description="Part of the name"),
            OpenApiParameter("archived", bool, description="Archived runs instead of the live ones"),
            OpenApiParameter(
                "ordering", str,
                description="created_at, name, state, started_at, finished_at or metric:KEY; a leading minus descends",
            ),
        ],
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        archived = boolean_parameter(request, "archived")
        rows = visible_runs(request.user).defer(*LIST_HEAVY).filter(archived_at__isnull=not archived)
        rows = _filtered(rows, request.query_params)
        rows, self.ordering = _ordered(rows, request.query_params.get("ordering", "-created_at"))
        return self.paged(request, rows, RunOut)

    @documented(
        "Queue a run", request=RunIn, answer=RunDetail, status=201, example=(NEW_RUN, {**RUN, "state": "queued"}),
        tags=["runs"],
        description="Everything that can be checked is checked first; errors name the field and the fix.",
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = RunIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = with_rows(request.user, given.validated_data)
        if "code" not in wanted and wanted.get("entry"):
            raise ValidationError({"code": ValidationError("Name the code that holds the entry.", code="required")})
        run = services.create_run(actor=request.user, **wanted)
        return Response(RunDetail(run).data, status=201)


class RunView(APIView):
    policy = {"GET": "read", "DELETE": "run.write"}

    @documented("Get a run", answer=RunDetail, example=(None, RUN), tags=["runs"])
    def get(self, request: Request, run: UUID) -> Response:
        return Response(RunDetail(_run(request, run)).data)

    @documented("Archive an ended run", answer=None, status=204, tags=["runs"])
    def delete(self, request: Request, run: UUID) -> Response:
        services.set_run_archived(actor=request.user, run=_run(request, run), archived=True)
        return Response(status=204)


class RunCancelView(APIView):
    policy = {"POST": "run.write"}

    @documented("Cancel a run", answer=RunDetail, example=(None, {**RUN, "state": "cancelled"}), tags=["runs"])
    def post(self, request: Request, run: UUID) -> Response:
        return Response(RunDetail(services.cancel_run(actor=request.user, run=_run(request, run))).data)


class RunPauseView(APIView):
    policy = {"POST": "run.write"}

    @documented("Pause a run", answer=RunDetail, example=(None, {**RUN, "state": "paused"}), tags=["runs"],
                description="At once while it is queued; after a checkpoint, within seconds, while it trains. Resume it to go "
                            "on exactly where it stopped.")  # fmt: skip
    def post(self, request: Request, run: UUID) -> Response:
        return Response(RunDetail(services.pause_run(actor=request.user, run=_run(request, run))).data)


class RunResumeView(APIView):
    policy = {"POST": "run.write"}

    @documented("Resume a paused, failed or cancelled run", answer=RunDetail, example=(None, {**RUN, "state": "queued"}),
                tags=["runs"], description="It goes on from its last checkpoint.")  # fmt: skip
    def post(self, request: Request, run: UUID) -> Response:
        return Response(RunDetail(services.resume_run(actor=request.user, run=_run(request, run))).data)


class RunCloneView(APIView):
    policy = {"POST": "run.write"}

    @documented(
        "Queue a copy of a run with changes", request=RunChanges, answer=RunDetail, status=201, tags=["runs"],
        example=({"config": {"learning_rate": 0.001}}, {**RUN, "state": "queued"}),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, run: UUID) -> Response:
        found = _run(request, run)
        given = RunChanges(data=request.data)
        given.is_valid(raise_exception=True)
        changes = with_rows(request.user, given.validated_data)
        if "finetune" in changes:
            changes["finetune"] = finetuning.settings_of_clone(found, changes["finetune"])
        return Response(RunDetail(services.clone_run(actor=request.user, run=found, **changes)).data, status=201)


class RunMetricsView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Metric curves of a run", answer=SeriesOut, tags=["runs"],
        description="Downsampled in the database; the minimum and maximum of every bucket are kept.",
        example=(None, {"series": {"train/loss": [[10, 0.69], [20, 0.41]]}}),
        parameters=[
            OpenApiParameter("keys", str, description="Metrics, separated by commas; default: all"),
            OpenApiParameter("max_points", int, description="Points a metric at most, 10 to 10000; default 1000"),
        ],
    )  # fmt: skip
    def get(self, request: Request, run: UUID) -> Response:
        keys = [key for key in request.query_params.get("keys", "").replace("\0", "").split(",") if key]
        points = whole_parameter(request, "max_points", 1000, 10, 10_000)
        found = visible_or_404(Run.objects.only("pk"), request.user, pk=run)
        return Response({"series": curves(found, keys or None, points)})


class RunLogsView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Log lines of a run", answer=LogsOut, tags=["runs"],
        example=(None, {"results": [{"sequence": 3, "time": "2026-11-20T09:30:00Z", "level": "info",
                                     "message": "455 rows train the model."}], "after": 3}),
        parameters=[
            OpenApiParameter("after", int, description="Only lines after this sequence"),
            OpenApiParameter("limit", int, description="Lines at most, 1 to 5000; default 1000"),
        ],
    )  # fmt: skip
    def get(self, request: Request, run: UUID) -> Response:
        after = whole_parameter(request, "after", 0, 0, 2**62)
        limit = whole_parameter(request, "limit", 1000, 1, 5000)
        found = visible_or_404(Run.objects.only("pk"), request.user, pk=run)
        lines = log_lines(found.pk, after, limit)
        results = [{"sequence": line.sequence, "time": line.time, **line.payload} for line in lines]
        return Response({"results": results, "after": lines[-1].sequence if lines else after})


class RunFindingsView(APIView):
    policy = {"GET": "read"}

    @documented(
        "What the doctor noticed in a run", answer=FindingsOut, tags=["runs"],
        description="Each code at most once, in the order in which it was noticed. `change` are settings for "
                    "`POST /runs/{id}/clone`.",
        example=(None, {"results": [{"sequence": 41, "time": "2026-11-20T09:30:00Z", "code": "overfitting",
                                     "severity": "warning", "sentence": "It overfits: …", "next_step": "Add rows, …",
                                     "change": {"weight_decay": 0.05}}]}),
    )  # fmt: skip
    def get(self, request: Request, run: UUID) -> Response:
        found = visible_or_404(Run.objects.only("pk"), request.user, pk=run)
        return Response(FindingsOut({"results": doctor.findings_of(found)}).data)


def _run(request: Request, identifier: UUID) -> Run:
    return visible_or_404(visible_runs(request.user), request.user, pk=identifier)


def _filtered(rows: QuerySet[Run], given: Any) -> QuerySet[Run]:
    if state := given.get("state"):
        if state not in Run.State.values:
            raise InvalidQuery(
                {"state": [ErrorDetail(f"Choose one of: {', '.join(Run.State.values)}.", "invalid_choice")]}
            )
        rows = rows.filter(state=state)
    for name in ("experiment", "dataset_version"):
        if value := given.get(name):
            rows = rows.filter(**{f"{name}_id": _uuid(name, value)})
    if search := given.get("search", "").replace("\0", ""):
        rows = rows.filter(name__icontains=search)
    return rows


def _uuid(name: str, value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise InvalidQuery({name: [ErrorDetail("Give an id, such as those in the answers.", "invalid")]}) from None


def _ordered(rows: QuerySet[Run], ordering: str) -> tuple[QuerySet[Run], tuple[str, ...]]:
    """The queryset and the cursor's ordering; runs without the metric are left out when ordering by it."""
    descending = ordering.startswith("-")
    field = ordering.removeprefix("-")
    if field.startswith("metric:"):
        rows = with_metric(rows, field.removeprefix("metric:").replace("\0", "")[:120]).filter(metric__isnull=False)
        field = "metric"
    elif field not in ORDERINGS:
        raise InvalidQuery(
            {"ordering": [ErrorDetail(f"Choose one of: {', '.join(sorted(ORDERINGS))}, metric:KEY.", "invalid_choice")]}
        )
    elif field in ("started_at", "finished_at"):
        rows = rows.exclude(**{f"{field}__isnull": True}).annotate(moment=F(field))
        field = "moment"
    return rows, (f"-{field}" if descending else field, "id")
