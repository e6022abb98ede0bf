"""REST API of deployments."""

from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db.models import Prefetch, QuerySet
from django.http import Http404
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.accounts.organizations import resolve
from dlplatform.api import PagedView, boolean_parameter, documented
from registry.models import ModelVersion

from . import predictions, services
from .finding import deployment_named
from .following import version_named
from .models import Deployment, DeploymentChange, Variant
from .serializers import (
    DeploymentChangeIn,
    DeploymentChangeOut,
    DeploymentIn,
    DeploymentOut,
    DeploymentPredictIn,
    DeploymentPredictOut,
    UndoIn,
)
from .states import DETAILS

VARIANT = {
    "id": "51c0…", "version": "9c1d…", "model": "4f2a…", "model_name": "breast cancer", "number": 3, "role": "live",
    "weight": 90.0, "share": 0.9, "arm": "", "alias": "production", "waiting": "",
}  # fmt: skip
DEPLOYMENT = {
    "id": "e0b7…", "name": "screening", "description": "", "organization": "main", "state": "active", "revision": 4,
    "variants": [VARIANT], "sample_rate": 1.0, "created_by": "maria", "created_at": "2026-11-20T09:30:00Z",
}  # fmt: skip
THEN = {
    "state": "active",
    "variants": [{name: VARIANT[name] for name in ("id", "version", "number", "role", "weight", "arm", "alias")}],
    "description": "",
    "sample_rate": 1.0,
}
CHANGE = {
    "revision": 4, "before": THEN, "after": THEN, "undoes": None, "actor": "maria", "reason": "canary to 10 %",
    "changed_at": "2026-11-20T09:30:00Z",
}  # fmt: skip
ASKED = {"instances": [{"mean radius": 14.1, "mean texture": 20.3}], "key": "patient 7"}
ANSWERED = {
    "predictions": [{"label": "benign", "probabilities": {"benign": 0.97, "malignant": 0.03}}], "version": "9c1d…",
    "variant": "51c0…", "request_id": "0d3f…",
}  # fmt: skip
TAGS = ["deployments"]
PREDICTING = (
    "One of the live variants answers, by their weights. With a `key` it is always the same one for that key, whatever "
    "process answers, until the weights move it; without, chance decides."
)


def visible_deployments(user: Any) -> QuerySet[Deployment]:
    """With `present`: the variants that are in it now."""
    present = Variant.objects.filter(removed_at=None).select_related("version__model", "deployment")
    return (
        Deployment.objects.visible_to(user)
        .select_related("organization", "created_by")
        .prefetch_related(Prefetch("variants", queryset=present, to_attr="present"))
    )


def the_deployment(request: Request, identifier: UUID) -> Deployment:
    rows = Deployment.objects.select_related("organization")
    found: Deployment = visible_or_404(rows, request.user, pk=identifier)
    return found


def _shown(request: Request, identifier: UUID, status: int = 200) -> Response:
    found = visible_deployments(request.user).filter(pk=identifier).first()
    if found is None:
        raise Http404
    return Response(DeploymentOut(found).data, status=status)


def _wanted(user: Any, variants: list[dict[str, Any]]) -> list[services.Wanted]:
    """Aliases become the versions that they name now. Raises ValidationError on `variants.<position>.alias`."""
    return [services.Wanted(**_resolved(user, one, position)) for position, one in enumerate(variants)]


def _resolved(user: Any, one: dict[str, Any], position: int) -> dict[str, Any]:
    if "alias" not in one:
        return one | {"alias": ""}
    given = dict(one)
    try:
        version = version_named(ModelVersion.objects.visible_to(user), given.pop("model"), given["alias"])
    except ValidationError as error:
        raise ValidationError({f"variants.{position}.alias": error.error_dict["alias"]}) from None
    return given | {"version": version}


class DeploymentsView(PagedView):
    policy = {"GET": "read", "POST": "deploy"}

    @documented(
        "List deployments", answer=DeploymentOut(many=True), example=(None, DEPLOYMENT), tags=TAGS,
        parameters=[
            OpenApiParameter("search", str, description="Part of the name"),
            OpenApiParameter("archived", bool, description="Archived deployments instead of the active ones"),
        ],
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        archived = boolean_parameter(request, "archived")
        state = Deployment.State.ARCHIVED if archived else Deployment.State.ACTIVE
        rows = visible_deployments(request.user).filter(state=state)
        if search := request.query_params.get("search", "").replace("\0", ""):
            rows = rows.filter(name__icontains=search)
        return self.paged(request, rows, DeploymentOut)

    @documented(
        "Deploy model versions under a name", request=DeploymentIn, answer=DeploymentOut, status=201, tags=TAGS,
        description="The one call that makes a version answer where nothing serves its model yet: `{name, variants: "
                    "[{version}]}`. It answers at once. Where a deployment serves the model, a version goes live by a change "
                    "of it (`PATCH`).",
        example=({"name": "screening", "variants": [{"version": "9c1d…", "weight": 1}]}, DEPLOYMENT),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = DeploymentIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        organization = resolve(request.user, wanted.pop("organization", None))
        variants = _wanted(request.user, wanted.pop("variants"))
        made = services.create_deployment(actor=request.user, organization=organization, variants=variants, **wanted)
        return _shown(request, made.pk, 201)


class DeploymentView(APIView):
    policy = {"GET": "read", "PATCH": "deploy"}

    @documented("Get a deployment with its variants", answer=DeploymentOut, example=(None, DEPLOYMENT), tags=TAGS)
    def get(self, request: Request, deployment: UUID) -> Response:
        return _shown(request, deployment)

    @documented(
        "Change a deployment", request=DeploymentChangeIn, answer=DeploymentOut, tags=TAGS,
        description="One call takes a version live: `{variants: [{version}]}` gives it all the traffic, and `undo` takes that "
                    "back. `variants` replaces all of them, shadows too, in one step: no request in between meets half of the change. With "
                    "`revision` it happens only if nobody changed the deployment since (409 `moved`). What one call asks for is one row "
                    "of its log, also of `description` and `sample_rate`, which change no answer. A variant of `{model, alias}` follows the alias: about a second after it has moved, the "
                    "deployment is changed to its version, by the platform; an undo of that stays at the version before.",
        example=({"variants": [{"version": "9c1d…", "weight": 90}, {"version": "77aa…", "weight": 10}],
                  "reason": "canary to 10 %", "revision": 3}, DEPLOYMENT),
    )  # fmt: skip
    def patch(self, request: Request, deployment: UUID) -> Response:
        found = the_deployment(request, deployment)
        require(request.user, "deploy", found)
        given = DeploymentChangeIn(data=request.data)
        given.is_valid(raise_exception=True)
        _change(request, found, given.validated_data)
        return _shown(request, deployment)


def _change(request: Request, found: Deployment, wanted: dict[str, Any]) -> None:
    variants = _wanted(request.user, wanted["variants"]) if "variants" in wanted else None
    services.change_deployment(
        actor=request.user, deployment=found, archived=wanted.get("archived"), variants=variants,
        details={name: wanted[name] for name in DETAILS if name in wanted},
        reason=wanted.get("reason", ""), revision=wanted.get("revision"), despite_problems=wanted["despite_problems"],
    )  # fmt: skip


class DeploymentChangesView(PagedView):
    policy = {"GET": "read"}
    ordering = "-id"

    @documented(
        "Log of all changes of a deployment", answer=DeploymentChangeOut(many=True), example=(None, CHANGE), tags=TAGS
    )
    def get(self, request: Request, deployment: UUID) -> Response:
        rows = DeploymentChange.objects.filter(deployment=the_deployment(request, deployment))
        return self.paged(request, rows.select_related("actor", "undoes"), DeploymentChangeOut)


class DeploymentUndoView(APIView):
    policy = {"POST": "deploy"}

    @documented(
        "Take a change back", request=UndoIn, answer=DeploymentOut, tags=TAGS,
        description="Goes back to what was before the newest change, or before the `change` named by its revision: variants, "
                    "weights, which key gets which variant, description and sample rate. It is a change itself, and can be taken back.",
        example=({"reason": "errors went up"}, DEPLOYMENT),
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID) -> Response:
        found = the_deployment(request, deployment)
        require(request.user, "deploy", found)
        given = UndoIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        change = _change_numbered(found, wanted.pop("change", None))
        services.undo_change(actor=request.user, deployment=found, change=change, **wanted)
        return _shown(request, deployment)


def _change_numbered(deployment: Deployment, revision: int | None) -> DeploymentChange | None:
    if revision is None:
        return None
    return services.change_of(deployment=deployment, revision=revision)


class DeploymentPredictView(APIView):
    policy = {"POST": "predict"}

    @documented(
        "Predict with a deployment", request=DeploymentPredictIn, answer=DeploymentPredictOut, description=PREDICTING,
        example=(ASKED, ANSWERED), tags=["predictions"],
        operation_id="predict_by_deployment",
    )  # fmt: skip
    def post(self, request: Request, deployment: UUID) -> Response:
        return _predict(request, the_deployment(request, deployment))


class NamedDeploymentPredictView(APIView):
    policy = {"POST": "predict"}

    @documented(
        "Predict with a deployment, by its name", request=DeploymentPredictIn, answer=DeploymentPredictOut,
        description=PREDICTING, example=(ASKED, ANSWERED), tags=["predictions"], operation_id="predict_by_deployment_name",
        parameters=[OpenApiParameter("organization", str, description="Slug; default: your default organization")],
    )  # fmt: skip
    def post(self, request: Request, name: str) -> Response:
        return _predict(request, deployment_named(request.user, name, request.query_params.get("organization")))


def _predict(request: Request, deployment: Deployment) -> Response:
    require(request.user, "predict", deployment)
    given = DeploymentPredictIn(data=request.data)
    given.is_valid(raise_exception=True)
    wanted = given.validated_data
    answer = predictions.predict(
        actor=request.user,
        deployment=deployment,
        instances=wanted["instances"],
        key=wanted.get("key"),
        bearer=request.auth,
    )
    return Response(DeploymentPredictOut(answer).data)
