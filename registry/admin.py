"""Django admin of the registry: history is read-only."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from dlplatform.accounts.admin import ReadOnly, TenantAdmin, apply_to_each

from . import services, uploads
from .models import ModelVersion, Optimization, Ref, RefMove, RegisteredModel, Upload


@admin.register(RegisteredModel)
class RegisteredModelAdmin(TenantAdmin):
    actions = ["archive"]

    def change(self, actor: Any, row: RegisteredModel, changes: dict[str, Any]) -> None:
        services.update_model(actor=actor, model=row, **changes)

    @admin.action(description="Archive the chosen models")
    def archive(self, request: HttpRequest, queryset: QuerySet[RegisteredModel]) -> None:
        def verb(model: RegisteredModel) -> None:
            services.set_model_archived(actor=request.user, model=model, archived=True)  # type: ignore[arg-type]

        apply_to_each(request, queryset.filter(archived_at=None).select_related("organization"), verb, "archived")


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnly):
    list_display = ["model", "number", "task", "author", "message", "created_at"]
    list_filter = ["task", "model__organization"]
    search_fields = ["model__name", "message", "id", "digest"]
    list_select_related = ["model", "author"]


@admin.register(Ref)
class RefAdmin(ReadOnly):
    list_display = ["model", "kind", "name", "version", "updated_at"]
    list_filter = ["kind", "model__organization"]
    search_fields = ["model__name", "name"]
    list_select_related = ["model", "version__model"]


@admin.register(RefMove)
class RefMoveAdmin(ReadOnly):
    list_display = ["moved_at", "model", "kind", "name", "from_version", "to_version", "actor", "reason"]
    list_filter = ["kind", "model__organization"]
    search_fields = ["model__name", "name", "reason"]
    list_select_related = ["model", "from_version__model", "to_version__model", "actor"]
    date_hierarchy = "moved_at"


@admin.register(Upload)
class UploadAdmin(ReadOnly):
    list_display = ["model", "state", "branch", "created_by", "created_at", "touched_at", "output_version"]
    list_filter = ["state", "model__organization"]
    search_fields = ["model__name", "message", "id"]
    list_select_related = ["model", "created_by", "output_version__model"]
    actions = ["abort"]

    @admin.action(description="Abort the chosen uploads")
    def abort(self, request: HttpRequest, queryset: QuerySet[Upload]) -> None:
        def verb(upload: Upload) -> None:
            uploads.abort(actor=request.user, upload=upload)  # type: ignore[arg-type]

        apply_to_each(request, queryset.select_related("model__organization"), verb, "aborted")


@admin.register(Optimization)
class OptimizationAdmin(ReadOnly):
    list_display = ["version", "state", "dataset_version", "tolerance", "created_by", "created_at", "finished_at"]
    list_filter = ["state", "model__organization"]
    search_fields = ["model__name", "id"]
    list_select_related = ["version__model", "dataset_version__dataset", "created_by"]
