"""JSON in and out of the registry API."""

from typing import Any

from rest_framework import serializers

from dlplatform.api import SafeCharField, Strict, can_be_encoded
from dlplatform.engine.optimizing.plan import PASSES, parse_plan

from . import releases, trees, uploads
from .merges import METHODS
from .models import (
    Comparison,
    Merge,
    ModelVersion,
    Optimization,
    OptimizedVariant,
    Ref,
    RefMove,
    RegisteredModel,
    Release,
    Upload,
    UploadPart,
)
from .optimizations import DEFAULT_TOLERANCE, MOST_TOLERANCE, MOST_VARIANTS


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
        fields = [
            "id",
            "name",
            "description",
            "organization",
            "created_at",
            "archived_at",
            "deleted_at",
            "versions",
            "refs",
        ]


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
            "dataset_version", "created_at", "deleted_at",
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


HALF_A_CHARACTER = "The row holds half a surrogate pair, which is no character. Remove it."


class PredictIn(Strict):
    instances = serializers.ListField(
        child=serializers.DictField(),
        min_length=1,
        max_length=1000,
        help_text="Rows: {column: value}. An image is the file in base64, or a `data:` URL",
    )

    def validate_instances(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Half a character could not be sent on to the inference process."""
        odd = {row: [HALF_A_CHARACTER] for row, instance in enumerate(rows) if not can_be_encoded(instance)}
        if odd:
            raise serializers.ValidationError(odd, code="invalid_text")
        return rows


class PredictOut(serializers.Serializer):
    predictions = serializers.ListField(
        child=serializers.DictField(), help_text='{"label", "probabilities"} for a class, {"value"} for a number'
    )
    version = serializers.UUIDField(help_text="The version that answered")


class RefAtOut(serializers.ModelSerializer):
    """The move by which a ref came to where it pointed."""

    version = serializers.UUIDField(source="to_version_id")
    number = serializers.IntegerField(source="to_version.number", help_text="Number of the version it pointed to")
    actor = serializers.CharField(source="actor.username", default=None)

    class Meta:
        model = RefMove
        fields = ["kind", "name", "version", "number", "moved_at", "actor", "reason"]


class RollbackIn(Strict):
    kind = serializers.ChoiceField(choices=[Ref.Kind.ALIAS.value, Ref.Kind.BRANCH.value], help_text="Tags never move")
    name = SafeCharField(max_length=80, help_text="Name of the ref")
    to = serializers.UUIDField(required=False, help_text="The version to go back to; default: where it was before")
    reason = SafeCharField(required=False, allow_blank=True, max_length=2000, help_text="Why, for the log")


class ReleaseIn(Strict):
    bump = serializers.ChoiceField(
        choices=list(releases.BUMPS), required=False, help_text="Default: what the signature demands"
    )
    notes = SafeCharField(required=False, allow_blank=True, max_length=10_000, help_text="Markdown")


class ReleaseOut(serializers.ModelSerializer):
    version = serializers.UUIDField(source="version_id")
    version_number = serializers.IntegerField(source="version.number")
    base = serializers.UUIDField(source="base_id", allow_null=True, help_text="The release it is compared with")
    released_by = serializers.CharField(source="released_by.username", default=None)

    class Meta:
        model = Release
        fields = [
            "number",
            "bump",
            "version",
            "version_number",
            "base",
            "changes",
            "notes",
            "released_by",
            "released_at",
        ]


class ProposalOut(serializers.Serializer):
    number = serializers.CharField(help_text="The next semantic number")
    bump = serializers.CharField(help_text="The least bump that the signature allows")
    base = serializers.UUIDField(source="base.pk", default=None, allow_null=True, help_text="The last release")
    base_number = serializers.CharField(help_text="Its number; empty before the first release")
    reasons = serializers.ListField(child=serializers.CharField(), help_text="What demands the bump")


class DiffOut(serializers.Serializer):
    base = serializers.DictField(help_text="{id, number, model}")
    head = serializers.DictField(help_text="{id, number, model}")
    common_ancestor = serializers.DictField(
        allow_null=True, help_text="{id, number, model} of the lowest common ancestor within one model"
    )
    files = serializers.DictField(help_text="{added, removed, changed, same}")
    settings = serializers.ListField(child=serializers.DictField(), help_text="[{name, base, head}]")
    signature = serializers.DictField(help_text="{bump, reasons, inputs, classes_added, classes_removed}")
    metrics = serializers.ListField(child=serializers.DictField(), help_text="[{name, base, head, change}]")
    data = serializers.DictField(help_text="{same, base, head, types, columns: [{name, missing, mean, shift}]}")


class ComparisonIn(Strict):
    base = serializers.UUIDField(help_text="A version of this model, or of another one of the organization")
    head = serializers.UUIDField(help_text="A version of this model")
    dataset_version = serializers.UUIDField(
        required=False, help_text="Rows to answer; without it only the weights are compared"
    )


class ComparisonOut(serializers.ModelSerializer):
    model = serializers.UUIDField(source="model_id")
    base = serializers.UUIDField(source="base_id")
    head = serializers.UUIDField(source="head_id")
    dataset_version = serializers.UUIDField(source="dataset_version_id", allow_null=True)

    class Meta:
        model = Comparison
        fields = [
            "id", "model", "base", "head", "dataset_version", "state", "progress", "phase", "created_at",
            "finished_at", "error", "result",
        ]  # fmt: skip


class MergeIn(Strict):
    theirs = serializers.UUIDField(help_text="The version to merge in")
    branch = SafeCharField(max_length=80, default="main", help_text="The branch that takes it")
    method = serializers.ChoiceField(choices=list(METHODS), default="average", help_text="How weights are combined")
    shares = serializers.ListField(
        child=serializers.FloatField(min_value=-100, max_value=100), min_length=2, max_length=2, required=False,
        help_text="For the branch and for theirs: proportions (average, slerp) or factors (task-arithmetic, ties)",
    )  # fmt: skip
    density = serializers.FloatField(
        min_value=0.001, max_value=1, default=0.2, help_text="Share of each change that ties keeps"
    )
    shrink = serializers.FloatField(min_value=0, max_value=1, default=0.9, help_text="Of RegMean's off-diagonals")
    dataset_version = serializers.UUIDField(
        required=False, help_text="Rows to evaluate on; default: those that the branch's head learned from"
    )


class MergeOut(serializers.ModelSerializer):
    model = serializers.UUIDField(source="model_id")
    ours = serializers.UUIDField(source="ours_id")
    theirs = serializers.UUIDField(source="theirs_id")
    dataset_version = serializers.UUIDField(source="dataset_version_id")
    output_version = serializers.UUIDField(source="output_version_id", allow_null=True)

    class Meta:
        model = Merge
        fields = [
            "id", "model", "ours", "theirs", "branch", "recipe", "dataset_version", "state", "progress", "phase",
            "created_at", "finished_at", "output_version", "result", "error",
        ]  # fmt: skip


class PlanIn(Strict):
    passes = serializers.ListField(
        child=serializers.ChoiceField(choices=list(PASSES)), min_length=1, max_length=2,
        help_text="In their order: one that changes the network, then one that changes how it is kept; or one of both",
    )  # fmt: skip
    keep = serializers.FloatField(required=False, help_text="Share of the units that are left; structured, distil")
    sparsity = serializers.FloatField(required=False, help_text="Share of the weights that become zero; sparse")
    epochs = serializers.IntegerField(
        required=False, help_text="To recover (5 unless given; structured, sparse), or to learn (40; distil)"
    )


class OptimizationIn(Strict):
    variants = PlanIn(many=True, min_length=1, max_length=MOST_VARIANTS, help_text="What to make, each a version")
    dataset_version = serializers.UUIDField(
        required=False, help_text="Rows to learn from and to be judged by; default: those that the version learned from"
    )
    tolerance = serializers.FloatField(
        default=DEFAULT_TOLERANCE, min_value=0, max_value=MOST_TOLERANCE,
        help_text="Points, of a hundred, that the quality may fall by",
    )  # fmt: skip


class OptimizedVariantOut(serializers.ModelSerializer):
    name = serializers.SerializerMethodField(help_text="The plan in words")
    output_version = serializers.UUIDField(source="output_version_id", allow_null=True)
    problems = serializers.SerializerMethodField(help_text="What speaks against deploying it: [{code, sentence}]")

    class Meta:
        model = OptimizedVariant
        fields = ["plan", "name", "output_version", "problems", "report", "error"]

    def get_name(self, variant: OptimizedVariant) -> str:
        return parse_plan(variant.plan).name

    def get_problems(self, variant: OptimizedVariant) -> list[dict[str, str]]:
        return (variant.report or {}).get("problems", [])


class OptimizationOut(serializers.ModelSerializer):
    model = serializers.UUIDField(source="model_id")
    version = serializers.UUIDField(source="version_id")
    dataset_version = serializers.UUIDField(source="dataset_version_id")
    variants = OptimizedVariantOut(many=True)

    class Meta:
        model = Optimization
        fields = [
            "id", "model", "version", "dataset_version", "tolerance", "state", "progress", "phase", "created_at",
            "finished_at", "variants", "error",
        ]  # fmt: skip


class LinkIn(Strict):
    path = SafeCharField(
        required=False, allow_blank=True, default="", max_length=1000, help_text="A file; empty is the whole as a zip"
    )
    seconds = serializers.IntegerField(
        min_value=60, max_value=30 * 86400, default=86400, help_text="How long it works; at most 30 days"
    )


class LinkOut(serializers.Serializer):
    url = serializers.URLField(help_text="Needs no sign-in")
    expires_at = serializers.DateTimeField()


SHA256 = r"^[0-9a-f]{64}\Z"


class UploadFileIn(Strict):
    path = SafeCharField(max_length=1000, trim_whitespace=False, help_text="Path in the version, such as config.json")
    size = serializers.IntegerField(min_value=0, help_text="Bytes")
    sha256 = serializers.RegexField(
        SHA256, required=False, help_text="Of the whole file, in hexadecimal; may also come with `complete`"
    )


class UploadIn(Strict):
    files = UploadFileIn(many=True, max_length=trees.MOST_FILES, help_text="All files of the version")
    message = SafeCharField(required=False, allow_blank=True, max_length=2000, help_text="Of the commit")
    branch = SafeCharField(max_length=80, default=uploads.MAIN, help_text="The branch that gets the version")
    part_size = serializers.IntegerField(
        required=False, min_value=uploads.SMALLEST_PART, max_value=uploads.LARGEST_PART,
        help_text="Bytes of a part; default: 16 MiB, more for files of over 160 GB",
    )  # fmt: skip


class UploadCompleteIn(Strict):
    sha256 = serializers.DictField(
        child=serializers.RegexField(SHA256), required=False, help_text="{path: SHA-256} of whole files"
    )


class HubImportIn(Strict):
    repository = serializers.CharField(max_length=200, help_text="As on the Hub: owner/name")
    revision = serializers.CharField(max_length=200, required=False, help_text="Branch, tag or commit; default: main")
    token = serializers.CharField(
        max_length=500, required=False, allow_blank=True, write_only=True,
        help_text="For a private repository; used for this import and not kept",
    )  # fmt: skip
    name = SafeCharField(max_length=120, required=False, help_text="The model; default: the repository's name")
    branch = SafeCharField(max_length=80, required=False, help_text="Branch that gets the version; default: main")
    organization = serializers.SlugField(required=False, help_text="Slug; default: your default organization")


class UploadOut(serializers.ModelSerializer):
    model = serializers.UUIDField(source="model_id")
    files = serializers.ListField(child=serializers.DictField(), help_text="[{path, size, sha256}]")
    missing = serializers.SerializerMethodField(
        help_text="[{file, path, parts: [[first, last], …]}]; empty once all came"
    )
    output_version = serializers.UUIDField(source="output_version_id", allow_null=True)

    class Meta:
        model = Upload
        fields = [
            "id", "model", "state", "branch", "message", "source", "files", "part_size", "missing", "progress", "phase",
            "created_at", "finished_at", "output_version", "error",
        ]  # fmt: skip

    def get_missing(self, upload: Upload) -> list[dict[str, Any]]:
        return uploads.missing(upload) if upload.state == Upload.RECEIVING else []


class PartOut(serializers.ModelSerializer):
    class Meta:
        model = UploadPart
        fields = ["file", "number", "size", "sha256"]
