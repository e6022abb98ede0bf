"""Django admin of training. Its actions call the same services as pages and API."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat

from dlplatform.accounts.admin import ReadOnly, TenantAdmin, apply_to_each

from . import experiments, services
from .models import Accelerator, CodeBundle, Experiment, Node, Run, Sweep
from .sweeps import services as sweeps


@admin.register(Experiment)
class ExperimentAdmin(TenantAdmin):
    def change(self, actor: Any, row: Experiment, changes: dict[str, Any]) -> None:
        experiments.update_experiment(actor=actor, experiment=row, **changes)


@admin.register(CodeBundle)
class CodeBundleAdmin(ReadOnly):
    list_display = ["filename", "digest", "organization", "created_by", "created_at"]
    list_filter = ["organization"]
    search_fields = ["filename", "digest", "id"]
    list_select_related = ["organization", "created_by"]


@admin.register(Sweep)
class SweepAdmin(ReadOnly):
    list_display = [
        "name",
        "experiment",
        "state",
        "sampler",
        "pruner",
        "metric",
        "trial_count",
        "created_by",
        "created_at",
    ]
    list_filter = ["state", "sampler", "pruner", "experiment__organization"]
    search_fields = ["name", "id", "experiment__name"]
    list_select_related = ["experiment", "created_by"]
    actions = ["cancel"]

    @admin.action(description="Cancel the chosen sweeps", permissions=["view"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Sweep]) -> None:
        rows = queryset.select_related("experiment__organization")
        apply_to_each(request, rows, lambda sweep: sweeps.cancel_sweep(actor=request.user, sweep=sweep), "cancelled")


@admin.register(Run)
class RunAdmin(ReadOnly):
    list_display = [
        "name", "experiment", "state", "done", "task", "dataset_version", "created_by", "created_at",
    ]  # fmt: skip
    list_filter = ["state", "task", "experiment__organization", "created_at"]
    search_fields = ["name", "id", "experiment__name"]
    list_select_related = ["experiment", "dataset_version__dataset", "created_by"]
    date_hierarchy = "created_at"
    exclude = ["evaluation"]
    actions = ["cancel", "pause", "retry", "archive"]

    @admin.display(description="Progress", ordering="progress")
    def done(self, run: Run) -> str:
        return f"{run.progress:.0%}"

    @admin.action(description="Cancel the chosen runs", permissions=["view"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        self._each(request, queryset, services.cancel_run, "cancelled")

    @admin.action(description="Pause the chosen runs", permissions=["view"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        self._each(request, queryset, services.pause_run, "to be paused")

    @admin.action(description="Retry the chosen runs from their last checkpoints", permissions=["view"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        self._each(request, queryset, services.resume_run, "queued again")

    @admin.action(description="Archive the chosen runs", permissions=["view"])
    def archive(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        self._each(request, queryset.filter(archived_at=None), services.set_run_archived, "archived", archived=True)

    def _each(
        self, request: HttpRequest, queryset: QuerySet[Run], service: Callable[..., Any], done: str, **more: Any
    ) -> None:
        runs = queryset.select_related("experiment__organization")
        apply_to_each(request, runs, lambda run: service(actor=request.user, run=run, **more), done)


@admin.register(Accelerator)
class AcceleratorAdmin(ReadOnly):
    list_display = ["name", "host", "memory", "run", "preflight", "seen_at"]
    list_filter = ["host", "name"]
    search_fields = ["host", "name", "uuid"]
    list_select_related = ["run", "preflight"]

    @admin.display(description="Memory", ordering="memory_bytes")
    def memory(self, accelerator: Accelerator) -> str:
        return filesizeformat(accelerator.memory_bytes)


@admin.register(Node)
class NodeAdmin(ReadOnly):
    list_display = ["run", "rank", "host", "state", "queued_at", "finished_at"]
    list_filter = ["state", "host"]
    search_fields = ["host", "run__name"]
    list_select_related = ["run"]
