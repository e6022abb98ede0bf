"""JSON in and out of the serving API."""

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail

from dlplatform.api import SafeCharField, Strict, can_be_encoded
from registry.serializers import PredictIn, PredictOut

from .assignment import shares
from .models import BatchPrediction, Deployment, DeploymentChange, PredictionRecord, Variant
from .services import HEAVIEST, MOST_VARIANTS

DESPITE = "Deploy also versions that were measured to be slower, bigger or worse than what they were made from; needs a reason"
REVISION = "The change must find the deployment at this revision, else 409"


class VariantIn(Strict):
    """A version, or an alias of a model, which is followed as it moves."""

    version = serializers.UUIDField(required=False, help_text="Id of a model version of the organization")
    model = serializers.UUIDField(required=False, help_text="Id of a model, beside `alias` and instead of `version`")
    alias = SafeCharField(
        required=False,
        max_length=80,
        help_text="Of the model: the variant is the version that it names, as it moves too",
    )
    weight = serializers.FloatField(
        default=1.0, min_value=0, max_value=HEAVIEST, help_text="In proportion to the other live variants"
    )
    role = serializers.ChoiceField(
        Variant.Role.choices, default=Variant.Role.LIVE, help_text="`live` answers, `shadow` never does"
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("version" in attrs) == ("alias" in attrs) or ("alias" in attrs) != ("model" in attrs):
            sentence = "Give a version, or a model and one of its aliases."
            raise serializers.ValidationError({"version": [ErrorDetail(sentence, code="required")]})
        return attrs


class DeploymentIn(Strict):
    name = SafeCharField(max_length=80, help_text="A part of addresses: letters, digits, dot, dash, underscore")
    description = SafeCharField(required=False, allow_blank=True, max_length=10_000)
    variants = VariantIn(many=True, min_length=1, max_length=MOST_VARIANTS)
    reason = SafeCharField(required=False, allow_blank=True, max_length=2000, help_text="Why, for the log")
    despite_problems = serializers.BooleanField(default=False, help_text=DESPITE)
    organization = serializers.SlugField(required=False, help_text="Slug; default: your default organization")


class DeploymentChangeIn(Strict):
    variants = VariantIn(many=True, min_length=1, max_length=MOST_VARIANTS, required=False, help_text="All of them")
    description = SafeCharField(required=False, allow_blank=True, max_length=10_000)
    sample_rate = serializers.FloatField(
        required=False, min_value=0, max_value=1, help_text="The share of requests that the prediction log keeps"
    )
    archived = serializers.BooleanField(required=False, help_text="true stops it, false has it answer again")
    reason = SafeCharField(required=False, allow_blank=True, max_length=2000, help_text="Why, for the log")
    despite_problems = serializers.BooleanField(default=False, help_text=DESPITE)
    revision = serializers.IntegerField(required=False, min_value=0, help_text=REVISION)


class UndoIn(Strict):
    change = serializers.IntegerField(
        required=False, min_value=1, max_value=2**31 - 1, help_text="Revision of the change; default: the newest"
    )
    reason = SafeCharField(required=False, allow_blank=True, max_length=2000, help_text="Why, for the log")
    revision = serializers.IntegerField(required=False, min_value=0, help_text=REVISION)


class VariantOut(serializers.ModelSerializer):
    version = serializers.UUIDField(source="version_id")
    model = serializers.UUIDField(source="version.model_id")
    model_name = serializers.CharField(source="version.model.name")
    number = serializers.IntegerField(source="version.number", help_text="Number of the version in its model")
    share = serializers.SerializerMethodField(help_text="Its share of the answers, from 0 to 1")

    class Meta:
        model = Variant
        fields = [
            "id", "version", "model", "model_name", "number", "role", "weight", "share", "arm", "alias", "waiting",
        ]  # fmt: skip

    def get_share(self, variant: Variant) -> float:
        return shares(variant.deployment.allocation).get(str(variant.pk), 0.0)


class DeploymentOut(serializers.ModelSerializer):
    organization = serializers.CharField(source="organization.slug")
    created_by = serializers.CharField(source="created_by.username", default=None)
    variants = VariantOut(many=True, source="present")

    class Meta:
        model = Deployment
        fields = [
            "id", "name", "description", "organization", "state", "revision", "variants", "sample_rate", "created_by",
            "created_at",
        ]  # fmt: skip


class StateOut(serializers.Serializer):
    """What a deployment was at a time."""

    state = serializers.ChoiceField(Deployment.State.choices)
    variants = serializers.ListField(
        child=serializers.DictField(), help_text="{id, version, model, number, role, weight, arm, alias}"
    )
    description = serializers.CharField(required=False, help_text="Not in the rows of earlier releases")
    sample_rate = serializers.FloatField(
        required=False, help_text="The deployment's own, also while an experiment or a canary keeps every request"
    )


class DeploymentChangeOut(serializers.ModelSerializer):
    actor = serializers.CharField(source="actor.username", default=None)
    undoes = serializers.IntegerField(source="undoes.revision", default=None, help_text="Revision that it took back")
    before = StateOut()
    after = StateOut()

    class Meta:
        model = DeploymentChange
        fields = ["revision", "before", "after", "undoes", "actor", "reason", "changed_at"]


def key_field() -> SafeCharField:
    return SafeCharField(
        required=False, allow_null=True, max_length=200,
        help_text="Whom the answer is for: one key always gets the same variant. Without it, chance decides",
    )  # fmt: skip


class DeploymentPredictIn(PredictIn):
    key = key_field()


class DeploymentPredictOut(PredictOut):
    variant = serializers.UUIDField(help_text="The variant that answered")
    request_id = serializers.UUIDField(help_text="Names this answer, for feedback and for looking it up")

    def to_representation(self, instance: Any) -> dict[str, Any]:
        """Predictions can be many and are JSON already."""
        return {
            "predictions": instance.predictions,
            "version": str(instance.version),
            "variant": str(instance.variant),
            "request_id": str(instance.request_id),
        }


class BatchIn(Strict):
    version = serializers.UUIDField(help_text="Id of the model version that predicts")
    dataset_version = serializers.UUIDField(help_text="Id of the dataset version whose rows it predicts")
    name = SafeCharField(
        required=False, allow_blank=True, max_length=120,
        help_text="Of the dataset that gets the rows with their predictions as a new version; made if there is none",
    )  # fmt: skip


class BatchOut(serializers.ModelSerializer):
    version = serializers.UUIDField(source="version_id")
    dataset_version = serializers.UUIDField(source="dataset_version_id")
    output_version = serializers.UUIDField(
        source="output_version_id", allow_null=True, help_text="The dataset version with the predictions"
    )

    class Meta:
        model = BatchPrediction
        fields = [
            "id", "version", "dataset_version", "name", "state", "progress", "phase", "created_at", "finished_at",
            "output_version", "error",
        ]  # fmt: skip


class ShadowRecordOut(serializers.ModelSerializer):
    """What a shadow made of its copy of a request."""

    variant = serializers.UUIDField(source="variant_id")
    version = serializers.UUIDField(source="variant.version_id")
    predictions = serializers.ListField(child=serializers.DictField(), allow_null=True, help_text="Null after an error")

    class Meta:
        model = PredictionRecord
        fields = ["variant", "version", "predictions", "milliseconds", "error", "at"]


class PredictionRecordOut(serializers.ModelSerializer):
    """With ``labels`` and ``shadows`` in the context: by request, what feedback said, and what shadows answered."""

    variant = serializers.UUIDField(source="variant_id")
    version = serializers.UUIDField(source="variant.version_id")
    instances = serializers.ListField(
        child=serializers.DictField(),
        help_text="An image as `object:…`, the id of its bytes, or as `sha256:…` of its text where these were not kept",
    )  # fmt: skip
    predictions = serializers.ListField(child=serializers.DictField(), allow_null=True, help_text="Null after an error")
    labels = serializers.SerializerMethodField(help_text="What feedback said, by the position of the row")
    shadows = serializers.SerializerMethodField(help_text="What the shadow variants made of their copies")

    class Meta:
        model = PredictionRecord
        fields = [
            "request_id", "variant", "version", "revision", "propensity", "key", "instances", "predictions", "labels",
            "milliseconds", "error", "at", "shadows",
        ]  # fmt: skip

    def get_labels(self, record: PredictionRecord) -> dict[str, Any]:
        return {str(index): label for index, label in self.context["labels"].get(record.request_id, {}).items()}

    @extend_schema_field(ShadowRecordOut(many=True))
    def get_shadows(self, record: PredictionRecord) -> Any:
        return ShadowRecordOut(self.context["shadows"].get(record.request_id, ()), many=True).data


class ShadowComparisonOut(serializers.Serializer):
    """How the answers of a shadow variant compare with the live ones; a `shadowing.Comparison`."""

    variant = serializers.UUIDField(source="variant.pk")
    version = serializers.UUIDField(source="variant.version_id")
    answered = serializers.IntegerField(help_text="Copies that it answered, of the newest 10,000 in the log")
    dropped = serializers.IntegerField(help_text="Copies that found too many others waiting")
    failed = serializers.IntegerField(help_text="Copies at which it failed")
    classified = serializers.IntegerField(help_text="Rows with a label from both, of its newest 1,000 answers")
    agreement = serializers.FloatField(allow_null=True, help_text="Share of these with the same label, from 0 to 1")
    measured = serializers.IntegerField(help_text="Numbers from both, of its newest 1,000 answers")
    mean_difference = serializers.FloatField(
        allow_null=True, help_text="Mean of their absolute differences, in the target's unit"
    )
    resting = serializers.CharField(
        help_text="When its process is tried again that ended again and again, as a sentence; else empty. Where there are "
        "several inference processes, in how many of them"
    )


@extend_schema_field(OpenApiTypes.ANY)
class LabelField(serializers.Field):
    """A class as text, a number, or yes and no."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, bool) or (isinstance(data, int | float) and abs(data) < 1e300):
            return data
        if isinstance(data, str) and len(data) <= 1000 and "\0" not in data and can_be_encoded(data):
            return data
        raise serializers.ValidationError("Give a text of up to 1000 characters, a number, true or false.")

    def to_representation(self, value: Any) -> Any:
        return value


class FeedbackIn(Strict):
    request_id = serializers.UUIDField(help_text="As the prediction was answered with")
    index = serializers.IntegerField(default=0, min_value=0, max_value=999, help_text="Position of the row")
    label = LabelField(help_text="What is right: a class, a number, true or false")


class FeedbackOut(serializers.Serializer):
    accepted = serializers.IntegerField(help_text="How many rows got a label")
