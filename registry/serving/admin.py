"""Django admin of deployments: what there is and what was changed, read-only; changes go through the pages."""

from django.contrib import admin

from dlplatform.accounts.admin import ReadOnly

from .models import (
    Deployment,
    DeploymentChange,
    Experiment,
    Feedback,
    FurtherArm,
    Look,
    PredictionRecord,
    Rollout,
    Variant,
)


@admin.register(Deployment)
class DeploymentAdmin(ReadOnly):
    list_display = ["name", "organization", "state", "revision", "created_by", "created_at"]
    list_filter = ["organization", "state"]
    search_fields = ["name", "description", "id"]
    list_select_related = ["organization", "created_by"]
    exclude = ["salt"]


@admin.register(Variant)
class VariantAdmin(ReadOnly):
    list_display = ["deployment", "version", "role", "weight", "removed_at"]
    list_filter = ["role", "deployment__organization"]
    search_fields = ["deployment__name", "version__model__name", "id"]
    list_select_related = ["deployment", "version__model"]


@admin.register(DeploymentChange)
class DeploymentChangeAdmin(ReadOnly):
    list_display = ["changed_at", "deployment", "revision", "actor", "reason"]
    list_filter = ["deployment__organization"]
    search_fields = ["deployment__name", "reason"]
    list_select_related = ["deployment", "actor"]
    date_hierarchy = "changed_at"


@admin.register(PredictionRecord)
class PredictionRecordAdmin(ReadOnly):
    list_display = ["at", "deployment", "variant", "role", "milliseconds", "error", "request_id"]
    list_filter = ["role", "deployment__organization"]
    search_fields = ["request_id", "deployment__name", "key"]
    list_select_related = ["deployment", "variant__version__model"]
    show_full_result_count = False


@admin.register(Feedback)
class FeedbackAdmin(ReadOnly):
    list_display = ["at", "deployment", "request_id", "index", "label", "actor"]
    list_filter = ["deployment__organization"]
    search_fields = ["request_id", "deployment__name"]
    list_select_related = ["deployment", "actor"]
    show_full_result_count = False


@admin.register(Experiment)
class DeploymentExperimentAdmin(ReadOnly):
    list_display = ["deployment", "number", "state", "mode", "metric", "outcome", "started_at", "ended_at"]
    list_filter = ["state", "mode", "metric", "deployment__organization"]
    search_fields = ["deployment__name", "hypothesis", "conclusion"]
    list_select_related = ["deployment"]


@admin.register(FurtherArm)
class FurtherArmAdmin(ReadOnly):
    list_display = ["experiment", "position", "version", "variant"]
    search_fields = ["experiment__deployment__name", "version__model__name"]
    list_select_related = ["experiment__deployment", "version__model", "variant__version__model"]


@admin.register(Look)
class LookAdmin(ReadOnly):
    list_display = ["experiment", "number", "kind", "until", "taken_by", "taken_at"]
    list_filter = ["kind"]
    search_fields = ["experiment__deployment__name"]
    list_select_related = ["experiment__deployment", "taken_by"]


@admin.register(Rollout)
class RolloutAdmin(ReadOnly):
    list_display = ["deployment", "number", "state", "candidate", "step", "started_at", "ended_at"]
    list_filter = ["state", "deployment__organization"]
    search_fields = ["deployment__name", "conclusion"]
    list_select_related = ["deployment", "candidate__model"]
