"""JSON in and out of the registry API."""

from rest_framework import serializers

from dlplatform.api import SafeCharField, Strict

from .models import ModelVersion, Ref, RefMove, RegisteredModel


class ModelIn(Strict):
    name = SafeCharField(max_length=120, help_text="Unique within the organization")
    description = SafeCharField(required=False, allow_blank=True, max_length=10_000, help_text="Markdown")
    organization = serializers.SlugField(required=False, help_text="Slug; default: your default organization")


class ModelChange(Strict):
    name = SafeCharField(max_length=120, required=False, help_text="New name")
    description = SafeCharField(required=False, allow_blank=True, max_length=10_000, help_text="Markdown")


class RefOut(serializers.ModelSerializer):
    version = serializers.UUIDField(source="version_id")
    number = serializers.IntegerField(source="version.number", help_text="Number of the version it points to")

    class Meta:
        model = Ref
        fields = ["kind", "name", "version", "number", "updated_at"]


class ModelOut(serializers.ModelSerializer):
    organization = serializers.CharField(source="organization.slug")
    versions = serializers.IntegerField(source="version_count", read_only=True, help_text="How many there are")
    refs = RefOut(many=True)

    class Meta:
        model = RegisteredModel
        fields = ["id", "name", "description", "organization", "created_at", "archived_at", "versions", "refs"]


class VersionOut(serializers.ModelSerializer):
    """A version without its tree."""

    model = serializers.UUIDField(source="model_id")
    model_name = serializers.CharField(source="model.name")
    author = serializers.CharField(source="author.username", default=None)
    dataset_version = serializers.UUIDField(source="dataset_version_id", allow_null=True)

    class Meta:
        model = ModelVersion
        fields = [
            "id", "model", "model_name", "number", "digest", "message", "author", "task", "metrics",
            "dataset_version", "created_at",
        ]  # fmt: skip


class ModelVersionDetail(VersionOut):
    parents = serializers.SerializerMethodField(help_text="Ids of the versions it continues")
    files = serializers.JSONField(source="tree", help_text="{path: {sha256, size}}")

    class Meta(VersionOut.Meta):
        fields = [*VersionOut.Meta.fields, "parents", "files", "signature", "lineage"]

    def get_parents(self, version: ModelVersion) -> list[str]:
        return [str(edge.parent_id) for edge in version.parent_edges.all()]


class RefMoveIn(Strict):
    version = serializers.UUIDField(help_text="The version to point to")
    reason = SafeCharField(required=False, allow_blank=True, max_length=2000, help_text="Why, for the log")
    expected = serializers.UUIDField(
        required=False, allow_null=True, help_text="Where the ref must point now (null: must not exist), else 409"
    )


class RefMoveOut(serializers.ModelSerializer):
    actor = serializers.CharField(source="actor.username", default=None)
    from_version = serializers.UUIDField(source="from_version_id", allow_null=True)
    to_version = serializers.UUIDField(source="to_version_id", allow_null=True)

    class Meta:
        model = RefMove
        fields = ["kind", "name", "from_version", "to_version", "actor", "reason", "moved_at"]


class PredictIn(Strict):
    instances = serializers.ListField(
        child=serializers.DictField(), min_length=1, max_length=1000, help_text="Rows: {column: value}"
    )


class PredictOut(serializers.Serializer):
    predictions = serializers.ListField(
        child=serializers.DictField(), help_text='{"label", "probabilities"} for a class, {"value"} for a number'
    )
    version = serializers.UUIDField(help_text="The version that answered")
