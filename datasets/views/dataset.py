"""The page of one dataset: a version's columns, rows and problems, and who uses it."""

from datetime import datetime, time
from typing import Any
from uuid import UUID

from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.dateformat import format as format_date

from datasets import services
from datasets.ingestion.rows import read_rows
from datasets.models import Dataset, DatasetVersion
from dlplatform.accounts.access import may, visible_or_404
from dlplatform.accounts.templatetags.platform import number
from dlplatform.objects.grace import undoable_until
from dlplatform.objects.store import CorruptObject, MissingObject
from dlplatform.web import page

from .images import grid_context, picture

PAGE_ROWS = 50
MOST_COLUMNS = 200
SHOWN_COLUMNS = 60
CELL_SHOWN = 2_000  # characters: a document of a mebibyte is not sent to show its first line
TOP_SHOWN = 3
USERS_SHOWN = 50


def dataset_or_404(request: HttpRequest, identifier: UUID) -> Dataset:
    return visible_or_404(Dataset.objects.select_related("organization", "created_by"), request.user, pk=identifier)


def version_or_404(dataset: Dataset, number: int) -> DatasetVersion:
    version = dataset.versions.filter(number=number).first()
    if version is None:
        raise Http404
    return version


def dataset_page(request: HttpRequest, dataset: UUID) -> HttpResponse:
    found = dataset_or_404(request, dataset)
    versions = list(found.versions.defer("profile", "problems", "columns", "parts", "detected"))
    version = _shown_version(request, found, versions)
    tab = request.GET.get("tab", "")
    context: dict[str, Any] = {
        "section": "datasets",
        "dataset": found,
        "versions": versions,
        "version": version,
        "tab": tab if tab in _tabs(version) else _first_tab(version),
        "can_write": may(request.user, "dataset.write", found),
        "can_archive": may(request.user, "dataset.delete", found),
    }
    if version is not None:
        context["undoable_until"] = version.deleted_at and undoable_until(version.deleted_at)
        context |= PANELS[context["tab"]](request, version)
    return page(request, "datasets/dataset.html", context, partial="datasets/_dataset.html")


def _shown_version(request: HttpRequest, dataset: Dataset, versions: list[DatasetVersion]) -> DatasetVersion | None:
    wanted = request.GET.get("version", "")
    if wanted.isdecimal() and len(wanted) < 10:
        return version_or_404(dataset, int(wanted))
    return dataset.versions.first() if versions else None


def _tabs(version: DatasetVersion | None) -> list[str]:
    """The images have a tab only where there are some, and only while they can be read."""
    shows_images = version is not None and version.images and version.state == DatasetVersion.State.READY
    return [tab for tab in PANELS if tab != "images" or shows_images]


def _first_tab(version: DatasetVersion | None) -> str:
    return "problems" if version and version.state == DatasetVersion.State.REJECTED else "columns"


def _columns(request: HttpRequest, version: DatasetVersion) -> dict[str, Any]:
    described = [
        {**column, "profile": version.profile.get(column["name"], {})} for column in version.columns[:MOST_COLUMNS]
    ]
    for column in described:
        count = column["profile"].get("count") or 1
        top = column["profile"].get("top", [])[:TOP_SHOWN]
        column["top"] = [{"value": _cell(one["value"])["text"], "share": one["count"] / count} for one in top]
        column["spread"] = SPREADS.get(column["type"], _spread)(column["profile"])
    return {"columns": described, "columns_left_out": max(len(version.columns) - MOST_COLUMNS, 0)}


def _spread(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Smallest, middle and greatest value, each with the quantiles beside it."""
    at = {share: number(value) for share, value in profile.get("quantiles", {}).items()}
    return [
        {"value": profile.get("min"), "note": at.get("0.05")},
        {"value": profile.get("quantiles", {}).get("0.5"), "note": at and f"{at['0.25']} – {at['0.75']}"},
        {"value": profile.get("max"), "note": at.get("0.95")},
    ]


def _moments(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """The first and the last moment as dates, with the time of day where they have one."""
    first, last = (_moment(profile.get(end)) for end in ("min", "max"))
    return [first, {"value": None, "note": ""}, last]


def _extents(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Smallest, middle and largest width × height of images."""
    if "width" not in profile:
        return _spread({})
    ends = [(profile["width"][end], profile["height"][end]) for end in ("min", "median", "max")]
    return [{"value": f"{number(width)} × {number(height)}", "note": ""} for width, height in ends]


SPREADS = {"datetime": _moments, "image": _extents}


def _moment(text: str | None) -> dict[str, Any]:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:  # none, or of a year that Python cannot hold
        return {"value": text, "note": ""}
    time_of_day = moment.time().isoformat("seconds") if moment.time() != time() else ""
    return {"value": format_date(moment, "j M Y"), "note": time_of_day}


def _rows(request: HttpRequest, version: DatasetVersion) -> dict[str, Any]:
    """One page of the stored rows. The paginator counts; the rows themselves come from the Parquet parts."""
    names = [column["name"] for column in version.columns]
    sort = request.GET.get("sort", "")
    column = sort.removeprefix("-")
    sort = sort if column in names else ""
    shown = Paginator(range(version.rows or 0), PAGE_ROWS).get_page(request.GET.get("page"))
    columns = names[:SHOWN_COLUMNS]
    context = {"page": shown, "sort": sort, "columns": version.columns[:SHOWN_COLUMNS],
               "columns_left_out": max(len(names) - SHOWN_COLUMNS, 0)}  # fmt: skip
    if version.state != DatasetVersion.State.READY:
        return {**context, "rows": []}
    try:
        found = read_rows(
            services.local_parts(version), max(shown.start_index() - 1, 0), PAGE_ROWS,
            order_by=column if sort else None, descending=sort.startswith("-"), columns=columns,
        )  # fmt: skip
    except (OSError, MissingObject, CorruptObject):
        return {**context, "rows": [], "unreadable": True}
    images = set(version.image_columns)
    return {**context, "rows": [[_shown(version, row[name], name in images) for name in columns] for row in found]}


def _shown(version: DatasetVersion, value: Any, is_image: bool) -> dict[str, Any]:
    return {"text": value, "picture": picture(version, value)} if is_image and value else _cell(value)


def _cell(value: Any) -> dict[str, Any]:
    """A number in full, without the `.0` that a whole one carries; of a long text the beginning; anything else as it is."""
    if isinstance(value, bool):
        return {"numeric": False, "text": str(value).lower()}
    if not isinstance(value, int | float):
        return {"numeric": False, "text": _beginning(value) if isinstance(value, str) else value}
    return {"numeric": True, "text": f"{value:.15g}" if isinstance(value, float) else str(value)}


def _beginning(text: str) -> str:
    return text if len(text) <= CELL_SHOWN else text[:CELL_SHOWN] + "…"


def _problems(request: HttpRequest, version: DatasetVersion) -> dict[str, Any]:
    return {}


def _usage(request: HttpRequest, version: DatasetVersion) -> dict[str, Any]:
    runs = version.runs.defer("evaluation", "environment", "config", "features", "warnings")
    models = version.model_versions.select_related("model").defer("tree", "signature", "lineage")
    return {
        "runs": runs.select_related("experiment").order_by("-created_at")[:USERS_SHOWN],
        "model_versions": models.order_by("-created_at")[:USERS_SHOWN],
    }


PANELS = {"columns": _columns, "images": grid_context, "rows": _rows, "problems": _problems, "usage": _usage}
