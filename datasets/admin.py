"""Django admin of datasets."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from dlplatform.accounts.admin import ReadOnly, TenantAdmin
from dlplatform.api import Conflict

from . import services
from .models import Dataset, DatasetVersion


@admin.register(Dataset)
class DatasetAdmin(TenantAdmin):
    actions = ["archive"]

    @admin.action(description="Archive the chosen datasets")
    def archive(self, request: HttpRequest, queryset: QuerySet[Dataset]) -> None:
        for dataset in queryset.filter(archived_at=None).select_related("organization"):
            services.set_dataset_archived(actor=request.user, dataset=dataset, archived=True)  # type: ignore[arg-type]


@admin.register(DatasetVersion)
class DatasetVersionAdmin(ReadOnly):
    list_display = ["dataset", "number", "state", "rows", "bytes", "filename", "created_by", "created_at"]
    list_filter = ["state", "dataset__organization"]
    search_fields = ["dataset__name", "filename", "id"]
    list_select_related = ["dataset", "created_by"]
    exclude = ["profile", "parts"]
    actions = ["cancel"]

    @admin.action(description="Cancel the chosen ingestions", permissions=["view"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[DatasetVersion]) -> None:
        for version in queryset.select_related("dataset__organization"):
            try:
                services.cancel_version(actor=request.user, version=version)  # type: ignore[arg-type]
            except Conflict as error:
                messages.warning(request, f"{version}: {error.detail}")
