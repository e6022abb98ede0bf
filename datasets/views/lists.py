"""The list of datasets."""

from django.db.models import Count, Prefetch
from django.http import HttpRequest, HttpResponse

from datasets.models import Dataset, DatasetVersion
from dlplatform.accounts.pages import no_organization, organization_of, page_of, search_text
from dlplatform.web import page

SORTS = {"name": "name", "created": "created_at", "versions": "version_count"}


def dataset_list(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    archived, text = request.GET.get("archived") == "on", search_text(request)
    rows = Dataset.objects.filter(organization=organization, archived_at__isnull=not archived)
    if text:
        rows = rows.filter(name__icontains=text)
    sort = request.GET.get("sort", "-created")
    context = {
        "section": "datasets",
        "page": page_of(request, _with_newest(rows).order_by(_order(sort), "pk")),
        "sort": sort,
        "q": text,
        "archived": archived,
    }
    context["live"] = any(version.ended is False for row in context["page"] for version in row.newest)
    return page(request, "datasets/list.html", context, partial="datasets/_table.html")


def _order(sort: str) -> str:
    field = SORTS.get(sort.removeprefix("-"))
    if field is None:
        return "-created_at"
    return f"-{field}" if sort.startswith("-") else field


def _with_newest(rows):  # type: ignore[no-untyped-def]
    """Each dataset with how many versions it has and, as a list of one, the newest."""
    newest = (
        DatasetVersion.objects.order_by("dataset_id", "-number")
        .distinct("dataset_id")
        .only("dataset_id", "number", "state", "rows", "bytes", "progress", "phase", "created_at", "source_bytes")
    )
    return rows.annotate(version_count=Count("versions")).prefetch_related(
        Prefetch("versions", queryset=newest, to_attr="newest")
    )
