"""The list of runs: filtered, sorted by any metric, live, at the cost of a few queries whatever its length."""

from typing import Any

from django.db.models import F, FilteredRelation, Q, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict

from dlplatform.accounts.models import Organization
from dlplatform.accounts.pages import no_organization, organization_of, page_of
from dlplatform.web import page
from training.forms import RunFilter
from training.models import MetricSeries, Run

from .home import ACTIVE

LISTED = (
    "name", "state", "progress", "phase", "eta_seconds", "created_at", "started_at", "finished_at", "task", "target",
    "archived_at", "cancel_requested_at", "heartbeat_at",
)  # fmt: skip
# Names only: fifty rows would otherwise carry two hundred instances.
NAMES = {
    "experiment_name": F("experiment__name"),
    "dataset_name": F("dataset_version__dataset__name"),
    "dataset_number": F("dataset_version__number"),
    "creator": F("created_by__username"),
}
SORTS = {"created": "created_at", "name": "name", "duration": "duration", "state": "state"}
DEFAULT_METRICS = ("accuracy", "r2", "validation/loss")
MOST_METRICS = 6


def run_list(request: HttpRequest) -> HttpResponse:
    organization = organization_of(request)
    if organization is None:
        return no_organization(request)
    form = RunFilter(request.GET, organization=organization)
    metrics = _chosen_metrics(request.GET)
    sort = request.GET.get("sort", "-created")
    rows = sorted_runs(filtered_runs(organization, form), sort)
    shown = page_of(request, rows)
    known_metrics = add_metrics(shown.object_list, metrics)
    context = {
        "section": "runs",
        "form": form,
        "page": shown,
        "metrics": metrics,
        "known_metrics": known_metrics,
        "sort": sort,
        "live": any(run.state in ACTIVE for run in shown.object_list),
        "filtered": any(value for name, value in request.GET.items() if name not in ("sort", "page", "metric")),
    }
    return page(request, "training/runs.html", context, partial="training/_runs_table.html")


def filtered_runs(organization: Organization, form: RunFilter) -> QuerySet[Run]:
    """The organization's runs that the form asks for; a wrong filter value is left out of account."""
    form.is_valid()
    given = form.cleaned_data
    rows = Run.objects.filter(experiment__organization=organization, archived_at__isnull=not given.get("archived"))
    if states := given.get("state"):
        rows = rows.filter(state__in=ACTIVE if states == "active" else [states])
    for name, lookup in (("experiment", "experiment"), ("dataset", "dataset_version__dataset"), ("task", "task")):
        if given.get(name):
            rows = rows.filter(**{lookup: given[name]})
    if text := given.get("q"):
        rows = rows.filter(Q(name__icontains=text) | Q(target__icontains=text))
    return rows.annotate(**NAMES).only(*LISTED)


def sorted_runs(rows: QuerySet[Run], sort: str) -> QuerySet[Run]:
    """Sorted by a column of the table or by `metric:KEY`; anything else sorts newest first."""
    key = sort.removeprefix("-")
    known = key in SORTS or key.startswith("metric:")
    if sort == "-created" or not known:
        return rows.order_by("-created_at", "pk")  # as the index run_newest_of_all has them
    if key.startswith("metric:"):
        name = key.removeprefix("metric:").replace("\0", "")
        rows = rows.annotate(wanted=FilteredRelation("series", condition=Q(series__key=name)))
        field = F("wanted__last")
    else:
        field = F(SORTS[key])
        if key == "duration":
            rows = rows.annotate(duration=F("finished_at") - F("started_at"))
    order = field.desc(nulls_last=True) if sort.startswith("-") else field.asc(nulls_last=True)
    return rows.order_by(order, "-created_at", "pk")


def add_metrics(runs: Any, keys: list[str]) -> list[str]:
    """Give each run ``values``, its metrics in the order of the columns; all metrics that there are to choose from."""
    series = MetricSeries.objects.filter(run__in=[run.pk for run in runs]).values_list("run_id", "key", "last")
    found = {(run, key): last for run, key, last in series}
    for run in runs:
        run.values = [found.get((run.pk, key)) for key in keys]
    return sorted({*keys, *(key for _, key in found)})


def _chosen_metrics(query: QueryDict) -> list[str]:
    chosen = [key.replace("\0", "")[:120] for key in query.getlist("metric") if key]
    return list(dict.fromkeys(chosen))[:MOST_METRICS] or list(DEFAULT_METRICS)
