"""REST API of a model's history: what differed, what stood when, releases, the way back."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils import timezone
from django.utils.dateparse import parse_datetime
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from datasets.models import DatasetVersion
from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.api import PagedView, documented

from . import comparisons, history, merges, releases, services
from .api import REF, visible_version
from .diff import diff
from .models import Comparison, Merge, ModelVersion, RegisteredModel
from .serializers import (
    ComparisonIn,
    ComparisonOut,
    DiffOut,
    MergeIn,
    MergeOut,
    ProposalOut,
    RefAtOut,
    RefOut,
    ReleaseIn,
    ReleaseOut,
    RollbackIn,
)
from .sides import side_named, side_of

RELEASE = {
    "number": "1.3.0", "bump": "minor", "version": "9c1d…", "version_number": 7, "base": "77aa…",
    "changes": "1.3.0: class added: unsure. accuracy 0.97 → 0.98", "notes": "", "released_by": "maria",
    "released_at": "2026-11-20T09:30:00Z",
}  # fmt: skip
PROPOSAL = {
    "number": "1.3.0", "bump": "minor", "base": "77aa…", "base_number": "1.2.4", "reasons": ["class added: unsure"],
}  # fmt: skip
REF_AT = {
    "kind": "alias", "name": "production", "version": "9c1d…", "number": 3, "moved_at": "2026-03-01T08:00:00Z",
    "actor": "maria", "reason": "better recall",
}  # fmt: skip
DIFF = {
    "base": {"id": "77aa…", "number": 6, "model": "4f2a…"}, "head": {"id": "9c1d…", "number": 7, "model": "4f2a…"},
    "common_ancestor": {"id": "77aa…", "number": 6, "model": "4f2a…"},
    "files": {"added": [], "removed": [], "changed": [{"path": "model.safetensors", "base": 51200, "head": 51200}],
              "same": 3},
    "settings": [{"name": "epochs", "base": 20, "head": 40}],
    "signature": {"bump": "patch", "reasons": ["same signature, new weights"], "inputs": [], "classes_added": [],
                  "classes_removed": []},
    "metrics": [{"name": "accuracy", "base": 0.97, "head": 0.98, "change": 0.01}],
    "data": {"same": True, "base": None, "head": None, "columns": []},
}  # fmt: skip
COMPARISON = {
    "id": "51c0…", "model": "4f2a…", "base": "77aa…", "head": "9c1d…", "dataset_version": "02be…",
    "state": "succeeded", "progress": 1.0, "phase": "", "created_at": "2026-11-20T09:30:00Z",
    "finished_at": "2026-11-20T09:30:04Z", "error": None,
    "result": {"weights": [{"name": "head.weight", "status": "changed", "shape": [2, 64], "elements": 128,
                            "relative_norm": 0.12, "cosine": 0.993, "largest": 0.08, "share": 1.0}],
               "behaviour": {"rows": 569, "labelled": 569, "agreement": 0.98}},
}  # fmt: skip
MERGE = {
    "id": "7be2…", "model": "4f2a…", "ours": "77aa…", "theirs": "9c1d…", "branch": "main",
    "recipe": {"method": "ties", "shares": None, "density": 0.2, "shrink": 0.9}, "dataset_version": "02be…",
    "state": "succeeded", "progress": 1.0, "phase": "", "created_at": "2026-11-20T09:30:00Z",
    "finished_at": "2026-11-20T09:30:06Z", "output_version": "c2d9…", "error": None,
    "result": {"tensors": {"merged": 9, "taken": 4, "same": 3},
               "metrics": {"ours": {"accuracy": 0.97}, "theirs": {"accuracy": 0.96}, "merged": {"accuracy": 0.98}}},
}  # fmt: skip
VERSION_HELP = "A version: its id, its number (`7` or `v7`), or the name of a branch, tag or alias"


def _model(request: Request, identifier: UUID) -> RegisteredModel:
    return visible_or_404(RegisteredModel.objects.select_related("organization"), request.user, pk=identifier)


class DiffView(APIView):
    policy = {"GET": "read"}

    @documented(
        "Compare two versions", answer=DiffOut, example=(None, DIFF), tags=["history"],
        description="Files, settings, signature, metrics and data, as the two commits tell them.",
        parameters=[
            OpenApiParameter("base", str, required=True, description=f"{VERSION_HELP}; by its id also of another model"),
            OpenApiParameter("head", str, required=True, description=VERSION_HELP),
        ],
    )  # fmt: skip
    def get(self, request: Request, model: UUID) -> Response:
        found = _model(request, model)
        base, head = (_named_version(request, found, name) for name in ("base", "head"))
        return Response(diff(base, head))


def _named_version(request: Request, model: RegisteredModel, parameter: str) -> ModelVersion:
    text = request.query_params.get(parameter, "")
    if parameter == "base":
        version = side_named(user=request.user, model=model, text=text)
    else:
        version = services.version_named(model=model, text=text)
    if version is None:
        detail = f"“{text[:60]}” is no version of this model. Give its id, its number or a ref."
        raise ValidationError({parameter: [ErrorDetail(detail, "does_not_exist" if text else "required")]})
    return version


class RefsAtView(APIView):
    policy = {"GET": "read"}

    @documented(
        "What all refs pointed to at a time", answer=RefAtOut(many=True), tags=["history"],
        operation_id="list_refs_at", description="“What was in production on 3 March?”, from the log of moves.",
        example=(None, REF_AT),
        parameters=[OpenApiParameter("time", datetime, required=True, description="ISO 8601; without a zone it is UTC")],
    )  # fmt: skip
    def get(self, request: Request, model: UUID) -> Response:
        found = _model(request, model)
        moves = history.refs_at(found, _moment(request.query_params.get("time", "")))
        return Response({"next": None, "previous": None, "results": RefAtOut(moves, many=True).data})


def _moment(text: str) -> datetime:
    try:
        moment = parse_datetime(text)
    except ValueError:
        moment = None
    if moment is None:
        raise ValidationError({"time": [ErrorDetail("Give a time such as 2026-03-03T12:00:00Z.", "invalid")]})
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)


class RollbackView(APIView):
    # A branch needs this right; for an alias the service asks for the right to move it.
    policy = {"POST": "model.write"}

    @documented(
        "Roll a ref back", request=RollbackIn, answer=RefOut, tags=["history"],
        description="By default to where it pointed before. An alias moves back; a branch gets a new version with the "
                    "earlier one's files. Nothing is copied.",
        example=({"kind": "alias", "name": "production", "reason": "recall fell"}, REF),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, model: UUID) -> Response:
        found = _model(request, model)
        require(request.user, "model.write", found)
        given = RollbackIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        to = services.version_of(model=found, identifier=wanted["to"]) if wanted.get("to") else None
        ref = services.roll_back(
            actor=request.user, model=found, kind=wanted["kind"], name=wanted["name"], to=to,
            reason=wanted.get("reason", ""),
        )  # fmt: skip
        return Response(RefOut(ref).data)


class ReleasesView(PagedView):
    policy = {"GET": "read"}
    ordering = "-id"

    @documented("List a model's releases", answer=ReleaseOut(many=True), example=(None, RELEASE), tags=["history"])
    def get(self, request: Request, model: UUID) -> Response:
        found = _model(request, model)
        return self.paged(request, found.releases.select_related("version", "released_by"), ReleaseOut)


class VersionReleaseView(APIView):
    policy = {"GET": "read", "POST": "ref.move"}

    @documented("The semantic number that a version would get", answer=ProposalOut, example=(None, PROPOSAL),
                tags=["history"])  # fmt: skip
    def get(self, request: Request, version: UUID) -> Response:
        return Response(ProposalOut(releases.proposal(visible_version(request, version))).data)

    @documented(
        "Release a version", request=ReleaseIn, answer=ReleaseOut, status=201, tags=["history"],
        description="Gives it the proposed number as a tag. `bump` may be greater than what the signature demands, "
                    "not less.",
        example=({"bump": "minor", "notes": "for the spring campaign"}, RELEASE),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, version: UUID) -> Response:
        found = visible_version(request, version)
        require(request.user, "ref.move", found)
        given = ReleaseIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted: dict[str, Any] = given.validated_data
        release = services.release_version(
            actor=request.user, version=found, bump=wanted.get("bump"), notes=wanted.get("notes", "")
        )
        return Response(ReleaseOut(release).data, status=201)


class ComparisonsView(PagedView):
    policy = {"GET": "read", "POST": "model.write"}

    @documented("List a model's comparisons", answer=ComparisonOut(many=True), example=(None, COMPARISON),
                tags=["history"])  # fmt: skip
    def get(self, request: Request, model: UUID) -> Response:
        return self.paged(request, _model(request, model).comparisons.visible_to(request.user), ComparisonOut)

    @documented(
        "Compare weights and behaviour", request=ComparisonIn, answer=ComparisonOut, status=202, tags=["history"],
        description="Queues a job: every tensor of the two versions side by side and, on the rows of a dataset "
                    "version, where their answers differ. The base may be of another model of the organization, as that of an "
                    "adapter often is. The same question again answers with the same job.",
        example=({"base": "77aa…", "head": "9c1d…", "dataset_version": "02be…"}, COMPARISON),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, model: UUID) -> Response:
        found = _model(request, model)
        require(request.user, "model.write", found)
        given = ComparisonIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        base = side_of(user=request.user, model=found, identifier=wanted["base"])
        head = services.version_of(model=found, identifier=wanted["head"])
        data = dataset_version_of(request, wanted.get("dataset_version"))
        made = comparisons.request_comparison(actor=request.user, base=base, head=head, dataset_version=data)
        return Response(ComparisonOut(made).data, status=202)


def dataset_version_of(request: Request, identifier: UUID | None) -> DatasetVersion | None:
    """The dataset version of that id, if one was given; ValidationError when the caller cannot see it."""
    if identifier is None:
        return None
    rows = DatasetVersion.objects.visible_to(request.user).select_related("dataset")
    found: DatasetVersion | None = rows.filter(pk=identifier).first()
    if found is None:
        detail = ErrorDetail("There is no dataset version with this id.", "does_not_exist")
        raise ValidationError({"dataset_version": [detail]})
    return found


class ComparisonView(APIView):
    policy = {"GET": "read"}

    @documented("Get a comparison", answer=ComparisonOut, example=(None, COMPARISON), tags=["history"])
    def get(self, request: Request, comparison: UUID) -> Response:
        return Response(ComparisonOut(visible_or_404(Comparison.objects, request.user, pk=comparison)).data)


class ComparisonCancelView(APIView):
    policy = {"POST": "model.write"}

    @documented("Cancel a comparison", answer=ComparisonOut, example=(None, COMPARISON), tags=["history"])
    def post(self, request: Request, comparison: UUID) -> Response:
        found = visible_or_404(Comparison.objects.select_related("model__organization"), request.user, pk=comparison)
        stopped = comparisons.cancel_comparison(actor=request.user, comparison=found)
        return Response(ComparisonOut(stopped).data)


class MergesView(PagedView):
    policy = {"GET": "read", "POST": "model.write"}

    @documented("List a model's merges", answer=MergeOut(many=True), example=(None, MERGE), tags=["history"])
    def get(self, request: Request, model: UUID) -> Response:
        return self.paged(request, _model(request, model).merges.all(), MergeOut)

    @documented(
        "Merge a version into a branch", request=MergeIn, answer=MergeOut, status=202, tags=["history"],
        description="Queues a job. A tensor that only one side changed since the common ancestor is taken from it; the "
                    "method decides about the others. The result is evaluated beside both and committed with both as "
                    "parents. What conflicts is named: 400 at once, or the job's error.",
        example=({"theirs": "9c1d…", "branch": "main", "method": "ties"}, MERGE),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, model: UUID) -> Response:
        found = _model(request, model)
        require(request.user, "model.write", found)
        given = MergeIn(data=request.data)
        given.is_valid(raise_exception=True)
        wanted = given.validated_data
        made = merges.request_merge(
            actor=request.user, model=found, theirs=services.version_of(model=found, identifier=wanted["theirs"]),
            branch=wanted["branch"], dataset_version=dataset_version_of(request, wanted.get("dataset_version")),
            recipe={name: wanted[name] for name in ("method", "shares", "density", "shrink") if name in wanted},
        )  # fmt: skip
        return Response(MergeOut(made).data, status=202)


class AdapterMergeView(APIView):
    policy = {"POST": "model.write"}

    @documented(
        "Merge an adapter into a full version", request=None, answer=MergeOut, status=202, tags=["history"],
        description="Queues a job: the adapter is worked into its base's weights, evaluated, and committed to main with "
                    "both as parents. The adapter and its base stay as they are.",
        example=(None, {**MERGE, "recipe": {**MERGE["recipe"], "method": "adapter"}}),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, version: UUID) -> Response:
        found = visible_version(request, version)
        return Response(MergeOut(merges.merge_adapter(actor=request.user, version=found)).data, status=202)


class MergeView(APIView):
    policy = {"GET": "read"}

    @documented("Get a merge", answer=MergeOut, example=(None, MERGE), tags=["history"])
    def get(self, request: Request, merge: UUID) -> Response:
        return Response(MergeOut(visible_or_404(Merge.objects, request.user, pk=merge)).data)


class MergeCancelView(APIView):
    policy = {"POST": "model.write"}

    @documented("Cancel a merge", answer=MergeOut, example=(None, MERGE), tags=["history"])
    def post(self, request: Request, merge: UUID) -> Response:
        found = visible_or_404(Merge.objects.select_related("model__organization"), request.user, pk=merge)
        return Response(MergeOut(merges.cancel_merge(actor=request.user, merge=found)).data)
