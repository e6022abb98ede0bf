"""REST API of datasets. Uploads themselves are received by ``datasets.uploads``, in one pass over the stream."""

from typing import Any
from uuid import UUID

from django.db.models import Prefetch, QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import require, visible_or_404
from dlplatform.accounts.idempotency import idempotent
from dlplatform.accounts.organizations import resolve
from dlplatform.api import ONCE, Conflict, PagedView, boolean_parameter, documented, whole_parameter

from . import additions, deletion, services
from .image_responses import linked_rows
from .ingestion.rows import read_rows
from .models import Dataset, DatasetVersion
from .parsers import NdjsonParser, RowsParser
from .serializers import AddedOut, DatasetChange, DatasetIn, DatasetOut, RowsIn, RowsOut, VersionDetail, VersionSummary

VERSION = {
    "id": "77aa…", "number": 1, "state": "ready", "progress": 1.0, "phase": "", "rows": 569, "bytes": 41872,
    "filename": "breast_cancer.csv", "created_at": "2026-11-20T09:30:00Z",
}  # fmt: skip
DATASET = {
    "id": "1d0c…", "name": "breast cancer", "description": "", "organization": "main",
    "created_at": "2026-11-20T09:30:00Z", "archived_at": None, "deleted_at": None, "latest_version": VERSION,
}  # fmt: skip
MAX_ROWS = 200


def visible_datasets(user: Any) -> QuerySet[Dataset]:
    newest = (
        DatasetVersion.objects.order_by("dataset_id", "-number").distinct("dataset_id").defer("profile", "problems")
    )
    return (
        Dataset.objects.visible_to(user)
        .select_related("organization")
        .prefetch_related(Prefetch("versions", queryset=newest, to_attr="newest"))
    )


class DatasetsView(PagedView):
    policy = {"GET": "read", "POST": "dataset.write"}

    @documented(
        "List datasets", answer=DatasetOut(many=True), example=(None, DATASET), tags=["datasets"],
        parameters=[
            OpenApiParameter("search", str, description="Part of the name"),
            OpenApiParameter("archived", bool, description="Archived datasets instead of the live ones"),
        ],
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        archived = boolean_parameter(request, "archived")
        rows = visible_datasets(request.user).filter(archived_at__isnull=not archived)
        if search := request.query_params.get("search", "").replace("\0", ""):
            rows = rows.filter(name__icontains=search)
        return self.paged(request, rows, DatasetOut)

    @documented(
        "Create a dataset", request=DatasetIn, answer=DatasetOut, status=201, tags=["datasets"],
        example=({"name": "breast cancer"}, {**DATASET, "latest_version": None}),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request) -> Response:
        given = DatasetIn(data=request.data)
        given.is_valid(raise_exception=True)
        organization = resolve(request.user, given.validated_data.pop("organization", None))
        dataset = services.create_dataset(actor=request.user, organization=organization, **given.validated_data)
        return Response(DatasetOut(dataset).data, status=201)


class DatasetView(APIView):
    policy = {"GET": "read", "PATCH": "dataset.write", "DELETE": "dataset.delete"}

    @documented("Get a dataset", answer=DatasetOut, example=(None, DATASET), tags=["datasets"])
    def get(self, request: Request, dataset: UUID) -> Response:
        return Response(DatasetOut(visible_or_404(Dataset.objects, request.user, pk=dataset)).data)

    @documented(
        "Change a dataset's name or description", request=DatasetChange, answer=DatasetOut, tags=["datasets"],
        example=({"description": "Wisconsin, 1995"}, DATASET),
    )  # fmt: skip
    def patch(self, request: Request, dataset: UUID) -> Response:
        found = visible_or_404(Dataset.objects, request.user, pk=dataset)
        require(request.user, "dataset.write", found)
        given = DatasetChange(data=request.data, partial=True)
        given.is_valid(raise_exception=True)
        changed = services.update_dataset(actor=request.user, dataset=found, **given.validated_data)
        return Response(DatasetOut(changed).data)

    @documented(
        "Delete a dataset", answer=DatasetOut, tags=["datasets"], example=(None, {**DATASET, "deleted_at": "2026-11-20T09:30:00Z"}),
        description="Takes it out of the lists and deletes the rows of its versions, which can be undone for some days; what "
                    "is known of the versions stays. `deletion` tells beforehand how many bytes it frees.",
    )  # fmt: skip
    def delete(self, request: Request, dataset: UUID) -> Response:
        found = visible_or_404(Dataset.objects.select_related("organization"), request.user, pk=dataset)
        return Response(DatasetOut(deletion.delete_dataset(actor=request.user, dataset=found)).data)


class VersionsView(PagedView):
    # POST is answered by datasets.uploads before Django sees it; it stands here for the schema and the matrix.
    policy = {"GET": "read", "POST": "dataset.write"}
    ordering = "-number"

    @documented("List a dataset's versions", answer=VersionSummary(many=True), example=(None, VERSION),
                tags=["datasets"])  # fmt: skip
    def get(self, request: Request, dataset: UUID) -> Response:
        found = visible_or_404(Dataset.objects, request.user, pk=dataset)
        return self.paged(request, found.versions.defer("profile", "problems"), VersionSummary)

    @documented(
        "Upload a new version", answer=VersionSummary, status=202, tags=["datasets"],
        request={"multipart/form-data": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}},
                 "application/octet-stream": OpenApiTypes.BINARY},
        description="CSV, NDJSON or Parquet, or images as a zip or tar (also .tar.gz and .tar.zst): as the multipart field "
                    "`file`, or as the raw body with its content type and `?filename=`. The body is streamed. A worker "
                    "ingests it; poll the version, or listen on `/ws/organizations/{slug}`. Images lie in class folders "
                    "(`cat/1.jpg`), also below `train/`, `val/` and `test/`, which become the columns `image`, `label` and "
                    "`split`; or beside one table with a column that names their files, which becomes the column of "
                    "images. Every file that cannot be used stands among `problems`, by its `file`.",
        parameters=[OpenApiParameter("filename", str, description="Label of a raw body, such as data.csv"), ONCE],
        example=(None, {**VERSION, "state": "queued"}),
    )  # fmt: skip
    def post(self, request: Request, dataset: UUID) -> Response:
        require(request.user, "dataset.write", visible_or_404(Dataset.objects, request.user, pk=dataset))
        raise Conflict("Uploads are answered by the platform's own ASGI server; start it with `manage.py web`.")


class AddedRowsView(APIView):
    policy = {"POST": "dataset.write"}
    parser_classes = [RowsParser, NdjsonParser]

    @documented(
        "Add rows", answer=AddedOut, status=202, tags=["datasets"], parameters=[ONCE],
        request={"application/json": RowsIn, "application/x-ndjson": OpenApiTypes.BINARY},
        description="Up to 10,000 rows, as `{\"rows\": […]}`, as a JSON list or as NDJSON (one object a line), are added "
                    "behind those of the newest version; that makes a new version, which a worker ingests. Values are "
                    "written as the columns' types are in JSON, dates as ISO 8601. All rows or none: an error names "
                    "the row and the column, as in `rows.2.age`. A dataset of images takes no rows. An integer column becomes a number column when a "
                    "fraction comes; other types never change this way. Additions sent one after the other build on "
                    "one another, also while the earlier ones are still being ingested.",
        example=(
            {"rows": [{"mean radius": 14.1, "diagnosis": "benign"}, {"mean radius": 20.6, "diagnosis": "malignant"}]},
            {"accepted": 2, "rejected": 0, "version": {**VERSION, "number": 2, "state": "queued", "progress": 0.0,
                                                       "rows": None, "bytes": None, "filename": "rows.ndjson"}},
        ),
    )  # fmt: skip
    @idempotent
    def post(self, request: Request, dataset: UUID) -> Response:
        found = visible_or_404(Dataset.objects.select_related("organization"), request.user, pk=dataset)
        require(request.user, "dataset.write", found)
        given = RowsIn(data={"rows": request.data} if isinstance(request.data, list) else request.data)
        given.is_valid(raise_exception=True)
        rows = given.validated_data["rows"]
        version = additions.add_rows(actor=request.user, dataset=found, rows=rows)
        return Response({"accepted": len(rows), "rejected": 0, "version": VersionSummary(version).data}, status=202)


class VersionView(APIView):
    policy = {"GET": "read", "DELETE": "dataset.delete"}

    @documented("Get a version with columns, profile and problems", answer=VersionDetail, example=(None, VERSION),
                tags=["datasets"])  # fmt: skip
    def get(self, request: Request, dataset: UUID, number: int) -> Response:
        return Response(VersionDetail(version_or_404(request, dataset, number)).data)

    @documented(
        "Delete the rows of a version", answer=VersionSummary, tags=["datasets"],
        example=(None, {**VERSION, "state": "deleted"}),
        description="Frees what nothing else needs after some days, until when it can be undone; columns and profile stay. "
                    "409 `in_use` while it is being read.",
    )  # fmt: skip
    def delete(self, request: Request, dataset: UUID, number: int) -> Response:
        version = version_or_404(request, dataset, number)
        return Response(VersionSummary(deletion.delete_version(actor=request.user, version=version)).data)


class RowsView(APIView):
    policy = {"GET": "read"}

    @documented(
        "A page of rows", answer=RowsOut, tags=["datasets"],
        description="Values as the columns' types are in JSON. An image is `{sha256, url, thumbnail_url}`; `ordering` by a "
                    "column of images is by SHA-256.",
        example=(None, {"next": None, "previous": None, "results": [{"mean radius": 14.1, "diagnosis": "benign"}]}),
        parameters=[
            OpenApiParameter("limit", int, description="Rows a page, at most 200"),
            OpenApiParameter("offset", int, description="Rows to skip"),
            OpenApiParameter("ordering", str, description="A column; with a leading minus, descending"),
        ],
    )  # fmt: skip
    def get(self, request: Request, dataset: UUID, number: int) -> Response:
        version = version_or_404(request, dataset, number)
        if version.state != DatasetVersion.State.READY:
            raise Conflict(f"This version is {version.state}; it has no rows to show.", code="not_ready")
        limit = whole_parameter(request, "limit", 50, 1, MAX_ROWS)
        offset = whole_parameter(request, "offset", 0, 0, 2**40)
        ordering = request.query_params.get("ordering", "")
        column = ordering.removeprefix("-")
        if column and column not in {one["name"] for one in version.columns}:
            raise ValidationError({"ordering": [ErrorDetail("The data has no column of this name.", "does_not_exist")]})
        rows = read_rows(
            services.local_parts(version), offset, limit, order_by=column or None, descending=ordering.startswith("-")
        )
        return Response(
            {
                "next": _link(request, offset + limit) if offset + limit < (version.rows or 0) else None,
                "previous": _link(request, max(offset - limit, 0)) if offset else None,
                "results": linked_rows(request._request, version, rows),
            }
        )


def version_or_404(request: Request, dataset: UUID, number: int) -> DatasetVersion:
    rows = DatasetVersion.objects.select_related("dataset__organization", "extends")
    return visible_or_404(rows, request.user, dataset_id=dataset, number=number)


def _link(request: Request, offset: int) -> str:
    parameters = request.query_params.copy()
    parameters["offset"] = str(offset)
    return request.build_absolute_uri(f"{request.path}?{parameters.urlencode()}")
