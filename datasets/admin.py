"""Django admin of datasets."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from dlplatform.accounts.admin import ReadOnly
from dlplatform.api import Conflict

from . import services
from .models import Dataset, DatasetVersion


@admin.register(Dataset)
class DatasetAdmin(ModelAdmin):
    list_display = ["name", "organization", "created_by", "created_at", "archived_at"]
    list_filter = ["organization", "archived_at"]
    search_fields = ["name", "description", "id"]
    list_select_related = ["organization", "created_by"]
    readonly_fields = ["id", "organization", "created_by", "created_at", "archived_at"]
    actions = ["archive"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

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
