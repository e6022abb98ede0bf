"""The list of models."""

from typing import Any

from django.db.models import Count, Prefetch
from django.http import HttpRequest, HttpResponse

from dlplatform.accounts.pages import no_organization, organization_of, page_of, search_text
from dlplatform.web import page
from registry.models import ModelVersion, RegisteredModel

SORTS = {"name": "name", "created": "created_at", "versions": "version_count"}
TELLING = ("accuracy", "r2", "f1_macro", "roc_auc")


def model_list(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    archived, text = request.GET.get("archived") == "on", search_text(request)
    rows = RegisteredModel.objects.filter(organization=organization, archived_at__isnull=not archived)
    if text:
        rows = rows.filter(name__icontains=text)
    sort = request.GET.get("sort", "-created")
    shown = page_of(request, _with_newest(rows).order_by(_order(sort), "pk"))
    for model in shown.object_list:
        model.told = telling_metric(model.newest[0].metrics) if model.newest else None
    context = {"section": "models", "page": shown, "sort": sort, "q": text, "archived": archived}
    return page(request, "registry/list.html", context, partial="registry/_table.html")


def telling_metric(metrics: dict[str, Any]) -> tuple[str, Any] | None:
    """The one metric to show where there is room for one."""
    name = next((one for one in (*TELLING, *metrics) if metrics.get(one) is not None), None)
    return (name, metrics[name]) if name else None


def _order(sort: str) -> str:
    field = SORTS.get(sort.removeprefix("-"))
    if field is None:
        return "-created_at"
    return f"-{field}" if sort.startswith("-") else field


def _with_newest(rows: Any) -> Any:
    newest = (
        ModelVersion.objects.order_by("model_id", "-number")
        .distinct("model_id")
        .only("model_id", "number", "metrics", "task", "created_at")
    )
    return rows.annotate(version_count=Count("versions")).prefetch_related(
        "refs__version", Prefetch("versions", queryset=newest, to_attr="newest")
    )
