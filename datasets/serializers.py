"""JSON in and out of the datasets API."""

from typing import Any

from rest_framework import serializers

from dlplatform.api import SafeCharField, Strict

from .additions import MAX_ROWS
from .models import Dataset, DatasetVersion


class DatasetIn(Strict):
    name = SafeCharField(max_length=120, help_text="Unique within the organization")
    description = SafeCharField(required=False, allow_blank=True, max_length=10_000, help_text="Markdown")
    organization = serializers.SlugField(required=False, help_text="Slug; default: your default organization")


class DatasetChange(Strict):
    name = SafeCharField(max_length=120, required=False, help_text="New name")
    description = SafeCharField(required=False, allow_blank=True, max_length=10_000, help_text="Markdown")


class VersionSummary(serializers.ModelSerializer):
    class Meta:
        model = DatasetVersion
        fields = ["id", "number", "state", "progress", "phase", "rows", "bytes", "filename", "created_at"]


class DatasetOut(serializers.ModelSerializer):
    organization = serializers.CharField(source="organization.slug")
    latest_version = serializers.SerializerMethodField(help_text="The newest version, or null")

    class Meta:
        model = Dataset
        fields = [
            "id",
            "name",
            "description",
            "organization",
            "created_at",
            "archived_at",
            "deleted_at",
            "latest_version",
        ]

    def get_latest_version(self, dataset: Dataset) -> dict | None:
        versions = getattr(dataset, "newest", None)
        version = versions[0] if versions else (dataset.latest_version() if versions is None else None)
        return VersionSummary(version).data if version else None


class VersionDetail(VersionSummary):
    dataset = serializers.UUIDField(source="dataset_id")
    extends = serializers.IntegerField(
        source="extends.number",
        default=None,
        allow_null=True,
        help_text="Number of the version that rows were added to, or null",
    )
    columns = serializers.JSONField(help_text="[{name, type, nullable}]")
    images = serializers.JSONField(help_text="{count, bytes, …} of the images; empty where there are none")
    profile = serializers.JSONField(help_text="Statistics by column")
    problems = serializers.JSONField(help_text="[{row, column, file, code, severity, detail}]")
    detected = serializers.JSONField(help_text="Format, delimiter, encoding, header, layout")

    class Meta(VersionSummary.Meta):
        fields = [
            *VersionSummary.Meta.fields, "dataset", "extends", "source_sha256", "source_bytes", "columns",
            "images", "profile", "problems", "detected", "finished_at",
        ]  # fmt: skip


class AnyRow(serializers.DictField):
    """Looked at by `additions.add_rows`, which knows the columns and names the row."""

    def run_validation(self, data: Any = serializers.empty) -> Any:
        return data


class RowsIn(Strict):
    rows = serializers.ListField(
        child=AnyRow(),
        allow_empty=False,
        max_length=MAX_ROWS,
        help_text="Rows: {column: value}, with values as the columns' types are written in JSON; null, or nothing, "
        "where a value is missing",
        error_messages={
            "empty": "Send at least one row.",
            "max_length": "Send at most {max_length} rows at a time, or upload them as a file.",
        },
    )


class AddedOut(serializers.Serializer):
    accepted = serializers.IntegerField(help_text="Rows that are going to join")
    rejected = serializers.IntegerField(help_text="Always 0: when one row does not fit, the request is refused")
    version = VersionSummary(help_text="The version that will hold all rows")


class RowsOut(serializers.Serializer):
    next = serializers.CharField(allow_null=True)
    previous = serializers.CharField(allow_null=True)
    results = serializers.ListField(child=serializers.DictField(), help_text="Rows: {column: value}")
