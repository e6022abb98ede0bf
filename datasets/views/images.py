"""The pictures of a version on its page: a grid by class, and thumbnails among the rows."""

from typing import Any

from django.core.paginator import Paginator
from django.http import HttpRequest

from datasets import services
from datasets.image_responses import image_path
from datasets.ingestion.rows import matching_records, read_records, read_rows
from datasets.models import DatasetVersion
from dlplatform.objects.store import CorruptObject, MissingObject

PAGE_IMAGES = 60
MOST_CLASSES = 50
COARSE = 48
LABEL_NAMES = ("label", "target", "class")


def grid_context(request: HttpRequest, version: DatasetVersion) -> dict[str, Any]:
    """One page of images, of one class when the query names it."""
    image = _chosen_column(request, version)
    label = label_column(version)
    classes = _classes(version, label)
    wanted = request.GET.get("class", "") if label else ""
    context: dict[str, Any] = {"label": label, "classes": classes, "chosen_class": wanted, "image_column": image,
                               "pictures": []}  # fmt: skip
    columns = list(dict.fromkeys([image, *([label] if label else []), *_captions(version)]))
    try:
        page, rows = _rows(request, version, label, wanted, columns)
    except (OSError, MissingObject, CorruptObject):
        return {**context, "unreadable": True, "page": Paginator([], PAGE_IMAGES).get_page(1)}
    context["pictures"] = [picture(version, row[image], _caption(version, row, label)) for row in rows]
    return {**context, "page": page}


def _rows(
    request: HttpRequest, version: DatasetVersion, label: str | None, wanted: str, columns: list[str]
) -> tuple[Any, list[dict[str, Any]]]:
    parts = services.local_parts(version)
    if label and wanted:
        records = matching_records(parts, label, wanted)
        page = Paginator(records, PAGE_IMAGES).get_page(request.GET.get("page"))
        return page, read_records(parts, page.object_list, columns)
    page = Paginator(range(version.rows or 0), PAGE_IMAGES).get_page(request.GET.get("page"))
    return page, read_rows(parts, max(page.start_index() - 1, 0), PAGE_IMAGES, columns=columns)


def _chosen_column(request: HttpRequest, version: DatasetVersion) -> str:
    wanted = request.GET.get("column", "")
    return wanted if wanted in version.image_columns else version.image_columns[0]


def label_column(version: DatasetVersion) -> str | None:
    """The column that says what a picture shows: named so, else the last category."""
    labels = [column["name"] for column in version.columns if column["type"] in ("category", "boolean")]
    named = [name for name in labels if name.lower() in LABEL_NAMES]
    return (named or labels or [None])[-1]


def _classes(version: DatasetVersion, label: str | None) -> list[dict[str, Any]]:
    """The most frequent values with their counts."""
    top = version.profile.get(label, {}).get("top", []) if label else []
    return [{"value": _text(one["value"]), "count": one["count"]} for one in top[:MOST_CLASSES]]


def _captions(version: DatasetVersion) -> list[str]:
    return [name for name, profile in version.profile.items() if profile.get("names")]


def _caption(version: DatasetVersion, row: dict[str, Any], label: str | None) -> dict[str, str]:
    """What stands below a picture: its class, and the name of its file."""
    paths = [row[name] for name in _captions(version) if row.get(name)]
    shown = "" if label is None or row[label] is None else _text(row[label])
    return {"label": shown, "file": paths[0] if paths else ""}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def picture(version: DatasetVersion, sha256: str | None, caption: dict[str, str] | None = None) -> dict[str, Any]:
    """Addresses of an image and its thumbnail; None as digest is a missing image."""
    path = image_path(version, sha256) if sha256 else None
    file = (caption or {}).get("file", "")
    words = " – ".join(word for word in (caption or {}).values() if word)
    return {"path": path, "words": words or "Image", "coarse": _is_coarse(version), "name": file.rpartition("/")[2],
            **(caption or {})}  # fmt: skip


def _is_coarse(version: DatasetVersion) -> bool:
    """Whether pictures have so few pixels that they are better shown as squares than blurred."""
    widths = [version.profile.get(name, {}).get("width", {}).get("max", COARSE + 1) for name in version.image_columns]
    return max(widths, default=0) <= COARSE
