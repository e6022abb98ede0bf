"""Django admin of datasets."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from dlplatform.accounts.admin import ReadOnly, TenantAdmin, apply_to_each

from . import services
from .models import Dataset, DatasetVersion


@admin.register(Dataset)
class DatasetAdmin(TenantAdmin):
    actions = ["archive"]

    def change(self, actor: Any, row: Dataset, changes: dict[str, Any]) -> None:
        services.update_dataset(actor=actor, dataset=row, **changes)

    @admin.action(description="Archive the chosen datasets")
    def archive(self, request: HttpRequest, queryset: QuerySet[Dataset]) -> None:
        def verb(dataset: Dataset) -> None:
            services.set_dataset_archived(actor=request.user, dataset=dataset, archived=True)  # type: ignore[arg-type]

        apply_to_each(request, queryset.filter(archived_at=None).select_related("organization"), verb, "archived")


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
        def verb(version: DatasetVersion) -> None:
            services.cancel_version(actor=request.user, version=version)  # type: ignore[arg-type]

        apply_to_each(request, queryset.select_related("dataset__organization"), verb, "cancelled")
