"""Django admin of training. Its actions call the same services as pages and API."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from dlplatform.accounts.admin import ReadOnly, TenantAdmin
from dlplatform.api import Conflict

from . import services
from .models import Experiment, Run


@admin.register(Experiment)
class ExperimentAdmin(TenantAdmin):
    pass


@admin.register(Run)
class RunAdmin(ReadOnly):
    list_display = [
        "name", "experiment", "state", "task", "dataset_version", "progress", "attempt", "lease_owner", "created_by",
        "created_at",
    ]  # fmt: skip
    list_filter = ["state", "task", "experiment__organization", "created_at"]
    search_fields = ["name", "id", "experiment__name"]
    list_select_related = ["experiment", "dataset_version__dataset", "created_by"]
    date_hierarchy = "created_at"
    exclude = ["evaluation"]
    actions = ["cancel", "retry", "archive"]

    @admin.action(description="Cancel the chosen runs", permissions=["view"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        self._each(request, queryset, services.cancel_run)

    @admin.action(description="Retry the chosen runs from their last checkpoints", permissions=["view"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        self._each(request, queryset, services.resume_run)

    @admin.action(description="Archive the chosen runs", permissions=["view"])
    def archive(self, request: HttpRequest, queryset: QuerySet[Run]) -> None:
        self._each(request, queryset, services.set_run_archived, archived=True)

    def _each(self, request: HttpRequest, queryset: QuerySet[Run], verb: Callable[..., Any], **more: Any) -> None:
        for run in queryset.select_related("experiment__organization"):
            try:
                verb(actor=request.user, run=run, **more)
            except Conflict as error:
                messages.warning(request, f"{run}: {error.detail}")
