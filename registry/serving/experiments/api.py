"""REST API of experiments on deployments."""

from uuid import UUID

from django.db.models import QuerySet
from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import PagedView, documented
from registry.serving.api import the_deployment
from registry.serving.models import Deployment

from . import looks, returns, services
from .design import make_plan
from .design_checks import check_design
from .models import Experiment
from .serializers import (
    BeginIn,
    DeploymentExperimentIn,
    DeploymentExperimentOut,
    DesignIn,
    LookOut,
    PlanOut,
    PromoteIn,
    PutBackIn,
    ReasonIn,
    ReplayOut,
    StartIn,
    wanted_of,
)
from .verbs import VerbView

TAGS = ["experiments on deployments"]
DESIGN = {"metric": "accuracy", "minimum_effect": 0.01}
PLAN = {
    "units_a": 15473, "units_b": 15473, "days": 31, "usual_days": 23, "baseline": 0.9, "units_a_day": 1000.0, "labels_split": None,
    "sentence": "15,473 units of A and 15,473 of B at most: 31 days at 1,000 a day, 23 days on average if B is better by "
                "just that.",
}  # fmt: skip
EXPERIMENT = {
    "id": "7c20…", "deployment": "e0b7…", "number": 3, "state": "running", "mode": "split", "hypothesis": "The new features help",
    "control": "9c1d…", "challenger": "77aa…", "variant_a": "51c0…", "variant_b": "8d2b…", "arms": [
        {"arm": "a", "version": "9c1d…", "variant": "51c0…"}, {"arm": "b", "version": "77aa…", "variant": "8d2b…"},
    ], "share": 0.5, "floor": 0.05,
    "metric": "accuracy", "higher_is_better": True, "minimum_effect": 0.01, "alpha": 0.05, "power": 0.8, "looks": 28,
    "cap": None, "missing_as_zero": False, "covariate": False, "baseline": 0.9, "units_a": 15473, "units_b": 15473,
    "guardrails": [{"kind": "errors", "limit": 0.02}], "promotes": False, "created_by": "maria",
    "created_at": "2026-11-20T09:30:00Z", "started_by": "maria", "started_at": "2026-11-20T10:00:00Z", "ended_at": None,
    "outcome": "", "conclusion": "", "promoted": "",
}  # fmt: skip

LOOK = {
    "number": 4, "kind": "due", "until": "2026-11-24T09:30:00Z", "last_record": 48211,
    "verdict": {
        "outcome": "not_enough", "ended": False, "fraction": 0.143, "gain": 0.021, "low": -0.03, "high": 0.07,
        "observed": 0.021, "z": 2.4, "edge": 5.9, "days": 12,
        "sentence": "Not enough data: 12 days more at most. So far the difference lies between -3.0 and 7.0 points.",
    },
    "balance": {
        "alarm": False, "p_value": None, "tested": [2011],
        "sentence": "The arms hold 50.10 / 49.90 % of 4,420 units where 50.00 / 50.00 % were meant; chance explains that.",
    },
    "guardrails": [{
        "kind": "errors", "limit": 0.02, "alarm": False, "evidence": -3.1, "harm": -0.011, "low": None,
        "sentence": "Failed requests: 0.9 % at B of 2,209 requests, limit 2 %.",
    }],
    "variance_left": None, "bandit": None, "copies": None, "revision": None,
    "sums": {
        "units": {"a": [2211, 2211], "b": [2209, 2209]},
        "outcomes": {"a": [2200, 1760.0, 1760.0], "b": [2198, 1804.0, 1804.0]},
        "guardrails": [{"a": [0, 0.0, 0.0], "b": [2209, 20.0, 20.0]}],
    },
    "arm": "", "reason": "", "taken_by": None, "taken_at": "2026-11-24T09:30:06Z",
}  # fmt: skip


def experiments_of(deployment: Deployment) -> QuerySet[Experiment]:
    rows = Experiment.objects.filter(deployment=deployment).select_related("created_by", "started_by")
    return rows.prefetch_related("further")


def the_experiment(request: Request, deployment: UUID, number: int) -> Experiment:
    found = services.experiment_numbered(the_deployment(request, deployment), number)
    if found is None:
        raise Http404
    return found


class ExperimentsView(PagedView):
    policy = {"GET": "read", "POST": "deploy"}
    ordering = "-number"

    @documented(
        "List the experiments on a deployment", answer=DeploymentExperimentOut(many=True), example=(None, EXPERIMENT),
        tags=TAGS,
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID) -> Response:
        return self.paged(request, experiments_of(the_deployment(request, deployment)), DeploymentExperimentOut)

    @documented(
        "Plan an experiment on a deployment", request=DeploymentExperimentIn, answer=DeploymentExperimentOut, status=201,
        tags=TAGS, operation_id="create_deployment_experiment",
        description="Makes a draft with the units that it takes; nothing changes until it is started. What is measured, and "
                    "how, cannot be changed afterwards. A bandit may have `further` versions, C to J; a split and pairs have "
                    "two.",
        example=({"challenger": "77aa…", "guardrails": [{"kind": "errors", "limit": 0.02}], **DESIGN}, EXPERIMENT),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, deployment: UUID) -> Response:
        found = the_deployment(request, deployment)
        require(request.user, "deploy", found)
        given = DeploymentExperimentIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = wanted_of(given.validated_data)
        made = services.create_experiment(actor=request.user, deployment=found, **wanted)
        return Response(DeploymentExperimentOut(made).data, status=201)


class ExperimentPlanView(APIView):
    policy = {"POST": "read"}

    @documented(
        "How many units and days an experiment would take", request=DesignIn, answer=PlanOut, tags=TAGS,
        description="From the traffic and the outcomes of the last 14 days. Makes nothing.",
        example=(DESIGN, PLAN), operation_id="plan_deployment_experiment",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID) -> Response:
        found = the_deployment(request, deployment)
        given = DesignIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        named = {name: wanted.pop(name, None) for name in ("control", "challenger")}
        check_design(**wanted)
        arms = {
            name: one and services.servable_version(request.user, found, name, one)  # type: ignore[arg-type]
            for name, one in named.items()
        }
        return Response(PlanOut(make_plan(deployment=found, **arms, **wanted)).data)


class ExperimentView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Get an experiment on a deployment", answer=DeploymentExperimentOut, example=(None, EXPERIMENT), tags=TAGS
    )
    def get(self, request: Request, deployment: UUID, number: int) -> Response:
        return Response(DeploymentExperimentOut(the_experiment(request, deployment, number)).data)


class CurrentExperimentView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Get the current experiment on a deployment", answer=DeploymentExperimentOut, example=(None, EXPERIMENT), tags=TAGS,
        description="The one that runs or waits for its verdict to be acted upon, else the newest that was started.",
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID) -> Response:
        found = services.current_experiment(the_deployment(request, deployment))
        if found is None:
            raise Http404
        return Response(DeploymentExperimentOut(found).data)


class _ExperimentVerbView(VerbView):
    named, reads, shows = "experiment", StartIn, DeploymentExperimentOut

    def find(self, request: Request, deployment: UUID, number: int) -> Experiment:
        return the_experiment(request, deployment, number)


class ExperimentStartView(_ExperimentVerbView):
    policy = {"POST": "deploy"}
    reads = BeginIn

    @documented(
        "Start an experiment", request=BeginIn, answer=DeploymentExperimentOut, example=({}, EXPERIMENT), tags=TAGS,
        description="Splits the traffic, as a change in the deployment's log, and has every request written down. Nobody "
                    "else can change the deployment until it has ended.",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        return self.act(request, deployment, number, services.start_experiment)


class ExperimentStopView(_ExperimentVerbView):
    policy = {"POST": "deploy"}
    reads = ReasonIn

    @documented(
        "Stop an experiment", request=ReasonIn, answer=DeploymentExperimentOut, example=({}, EXPERIMENT), tags=TAGS,
        description="Without a verdict: A answers alone again. A draft is thrown away.",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        return self.act(request, deployment, number, services.stop_experiment)


class ExperimentPromoteView(_ExperimentVerbView):
    policy = {"POST": "deploy"}
    reads = PromoteIn

    @documented(
        "Have a challenger answer alone", request=PromoteIn, answer=DeploymentExperimentOut, example=({}, EXPERIMENT), tags=TAGS,
        description="B, or of a bandit the `arm` named, answers alone from now on. Of an experiment that was decided or stopped, "
                    "or a bandit at any time.",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        return self.act(request, deployment, number, services.promote)


class ExperimentKeepView(_ExperimentVerbView):
    policy = {"POST": "deploy"}

    @documented(
        "Keep A", request=StartIn, answer=DeploymentExperimentOut, example=({}, EXPERIMENT), tags=TAGS,
        description="A answers alone from now on. Of an experiment that was decided or stopped, or a bandit at any time.",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        return self.act(request, deployment, number, services.keep)


class ExperimentPutBackView(APIView):
    policy = {"POST": "deploy"}

    @documented(
        "Put a version back into a bandit", request=PutBackIn, answer=LookOut, status=201, tags=TAGS,
        operation_id="put_back_arm",
        description="That a guardrail has taken out, of a bandit that goes on with the others. Its guardrails begin anew with the "
                    "requests from then on; what it has earned counts as before. Answers with the look that gives it its "
                    "part of the traffic again. 409 where it has ended (`is_…`), where the version is not out (`not_out`), or "
                    "not for a minute yet (`too_soon`).",
        example=(
            {"arm": "c", "reason": "The disk was full; there is room again"},
            LOOK | {"kind": "return", "arm": "c", "reason": "The disk was full; there is room again", "taken_by": "maria"},
        ),
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        found = the_experiment(request, deployment, number)
        require(request.user, "deploy", found)
        given = PutBackIn(data=request.data)
        given.is_valid(raise_exception=True)
        look = returns.put_back(actor=request.user, experiment=found, **given.validated_data)
        return Response(LookOut(look).data, status=201)


class LooksView(PagedView):
    policy = {"GET": "read", "POST": "deploy"}
    ordering = "-number"

    @documented(
        "List the looks at an experiment", answer=LookOut(many=True), example=(None, LOOK), tags=TAGS,
        description="The newest first. A look is never changed.",
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID, number: int) -> Response:
        rows = the_experiment(request, deployment, number).taken.select_related("taken_by")
        return self.paged(request, rows, LookOut)

    @documented(
        "Look at an experiment now", request=None, answer=LookOut, status=201, example=(None, LOOK), tags=TAGS,
        description="Between the looks that are due by themselves. It acts as they do: it may end the experiment.",
        operation_id="take_look",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID, number: int) -> Response:
        found = the_experiment(request, deployment, number)
        return Response(LookOut(looks.look_now(actor=request.user, experiment=found)).data, status=201)


class ReplayView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Compute every look at an experiment again", answer=ReplayOut, tags=TAGS,
        description="From the sums that each look stored (to nine digits: processors round the last ones differently), and those "
                    "from the log, to the digit as long as it is kept; retention takes it `PREDICTION_LOG_DAYS` after the end.",
        example=(None, {"agrees": True, "looks": [{"number": 1, "results_agree": True, "sums_agree": True}]}),
    )  # fmt: skip
    def get(self, request: Request, deployment: UUID, number: int) -> Response:
        found = looks.replay(the_experiment(request, deployment, number))
        agrees = all(one.results_agree and one.sums_agree for one in found)
        return Response(ReplayOut({"agrees": agrees, "looks": found}).data)
