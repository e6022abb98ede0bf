"""JSON in and out of the training API."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from dlplatform.api import SafeCharField, Strict

from .finetuning import shown_settings
from .models import Experiment, Run


@extend_schema_field({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
class TargetField(serializers.Field):
    """The name of a column, or a list of names."""

    def to_internal_value(self, data: Any) -> str | list[str]:
        names = data if isinstance(data, list) else [data]
        if not names or len(names) > 1000 or not all(isinstance(name, str) and 0 < len(name) <= 200 for name in names):
            raise serializers.ValidationError("Give the name of a column, or a list of names.", code="invalid")
        return [name.replace("\0", "") for name in names] if isinstance(data, list) else data.replace("\0", "")

    def to_representation(self, value: Any) -> Any:
        return value


class ExperimentIn(Strict):
    name = SafeCharField(max_length=120, help_text="Unique within the organization")
    description = SafeCharField(required=False, allow_blank=True, max_length=10_000, help_text="Markdown")
    organization = serializers.SlugField(required=False, help_text="Slug; default: your default organization")


class ExperimentOut(serializers.ModelSerializer):
    organization = serializers.CharField(source="organization.slug")

    class Meta:
        model = Experiment
        fields = ["id", "name", "description", "organization", "created_at"]


class RunIn(Strict):
    dataset_version = serializers.UUIDField(help_text="A version that is ready")
    task = serializers.ChoiceField(choices=Run.Task.choices, help_text="classification, regression or multilabel")
    target = TargetField(help_text="Column to predict; several for regression and multilabel")
    features = serializers.ListField(
        child=serializers.CharField(max_length=200), required=False, allow_null=True, max_length=2000,
        help_text="Input columns; default: all but the target",
    )  # fmt: skip
    config = serializers.DictField(
        required=False,
        help_text="Settings; every key has a good default. `text_model` and `image_model` take the configuration of a "
                  "transformers architecture that starts from nothing, such as "
                  '{"model_type": "bert", "hidden_size": 128}',
    )  # fmt: skip
    experiment = serializers.UUIDField(required=False, allow_null=True, help_text="Default: the experiment Default")
    name = SafeCharField(max_length=120, required=False, allow_blank=True, help_text="Default: dataset and a number")
    register_as = SafeCharField(
        max_length=120,
        required=False,
        allow_blank=True,
        help_text="Model that gets the result; default: the dataset's name",
    )
    code = serializers.UUIDField(
        required=False, allow_null=True,
        help_text="Code of your own (`POST /code`), which runs in a sandbox; `config.params` go to it",
    )  # fmt: skip
    entry = SafeCharField(
        max_length=1000, required=False, allow_blank=True,
        help_text="File of the code to start with: model.py is an architecture, any other a script; default: main.py or "
        "model.py, whichever there is",
    )  # fmt: skip


class SettingsIn(Strict):
    """How to fine-tune; every key has a good default."""

    mode = serializers.CharField(required=False, max_length=20, help_text="full, head or lora")
    adapter = serializers.CharField(required=False, max_length=20, help_text="In mode lora: lora, dora or ia3")
    rank = serializers.IntegerField(required=False, help_text="Rank of an adapter")
    alpha = serializers.FloatField(required=False, help_text="An adapter's change is scaled by alpha / rank")
    head = serializers.CharField(
        required=False, max_length=20,
        help_text="In mode lora: whole, so that what answers trains whole beside the adapters, or adapted",
    )  # fmt: skip
    unfreeze_every = serializers.IntegerField(
        required=False, help_text="In mode head: epochs until one more block trains"
    )
    layer_decay = serializers.FloatField(
        required=False, help_text="Learning rate of a block as a share of the next one's"
    )
    chat_template = serializers.CharField(
        required=False, max_length=65_536, trim_whitespace=False,
        help_text="Of a language model's chats: base (the base's own), usual (ChatML, or plain words), or one in Jinja",
    )  # fmt: skip
    pixels = serializers.CharField(
        required=False, allow_null=True, max_length=20,
        help_text="Of a base from the Hub that looks at images: base (brought to its size as its preprocessor_config.json says) "
                  "or letterbox (whole, the rest black); null, or left out, for every other base",
    )  # fmt: skip
    blocks = serializers.ListField(
        child=serializers.CharField(max_length=300), required=False, max_length=1000,
        help_text="Names or patterns of the blocks that train, or get an adapter",
    )  # fmt: skip
    format = serializers.CharField(
        required=False, max_length=20,
        help_text="How adapters are stored, as runs show it: peft. Runs from before that (first) are trained again as they were "
                  "by cloning them",
    )  # fmt: skip


class RunChanges(Strict):
    """What a clone changes; the rest is as in the original."""

    dataset_version = serializers.UUIDField(required=False, help_text="Another version of the data")
    target = TargetField(required=False, help_text="Column or columns to predict")
    features = serializers.ListField(
        child=serializers.CharField(max_length=200), required=False, allow_null=True, max_length=2000,
        help_text="Input columns",
    )  # fmt: skip
    config = serializers.DictField(required=False, help_text="Settings to change, key by key")
    finetune = SettingsIn(
        required=False, help_text="Of a run that starts from a base: how it is fine-tuned, key by key"
    )
    name = SafeCharField(max_length=120, required=False, allow_blank=True, help_text="Name of the new run")
    register_as = SafeCharField(max_length=120, required=False, allow_blank=True, help_text="Model for the result")


class RunOut(serializers.ModelSerializer):
    """A run as lists show it."""

    experiment = serializers.UUIDField(source="experiment_id")
    experiment_name = serializers.CharField(source="experiment.name")
    dataset_version = serializers.UUIDField(source="dataset_version_id")
    dataset = serializers.CharField(source="dataset_version.dataset.name")
    output_version = serializers.UUIDField(source="output_version_id", allow_null=True)
    created_by = serializers.CharField(source="created_by.username", default=None)

    class Meta:
        model = Run
        fields = [
            "id", "name", "state", "progress", "phase", "step", "total_steps", "epoch", "eta_seconds",
            "rows_per_second", "metrics", "error", "attempt", "experiment", "experiment_name", "dataset_version",
            "dataset", "task", "target", "output_version", "created_by", "created_at", "started_at", "finished_at",
        ]  # fmt: skip


class RunDetail(RunOut):
    base_version = serializers.UUIDField(source="base_version_id", allow_null=True)
    sweep = serializers.UUIDField(
        source="trial.sweep_id", default=None, allow_null=True, help_text="That it is a trial of"
    )
    replays = serializers.UUIDField(source="replays_id", allow_null=True)
    code = serializers.UUIDField(source="code_id", allow_null=True, help_text="Code of a user's own that it runs")
    finetune = serializers.SerializerMethodField(
        help_text="How the base is fine-tuned, with every setting as it was meant"
    )

    @extend_schema_field(serializers.DictField(allow_null=True))
    def get_finetune(self, run: Run) -> dict[str, Any] | None:
        return shown_settings(run)

    class Meta(RunOut.Meta):
        fields = [
            *RunOut.Meta.fields, "targets", "branch", "base_version", "finetune", "replays", "code", "entry", "features", "config", "register_as", "environment", "evaluation", "warnings",
            "heartbeat_at", "last_sequence", "cloned_from", "archived_at", "reason", "stop_after_epoch", "sweep",
        ]  # fmt: skip


class SeriesOut(serializers.Serializer):
    series = serializers.DictField(help_text="{metric: [[step, value], …]}")


class FindingOut(serializers.Serializer):
    sequence = serializers.IntegerField()
    time = serializers.DateTimeField()
    code = serializers.CharField(help_text="Stable name, such as overfitting")
    severity = serializers.CharField(help_text="info, warning or error")
    sentence = serializers.CharField(help_text="What was noticed")
    next_step = serializers.CharField(help_text="What to do about it")
    change = serializers.DictField(allow_null=True, help_text="Settings for another try, or null")


class FindingsOut(serializers.Serializer):
    results = FindingOut(many=True)


class LogLineOut(serializers.Serializer):
    sequence = serializers.IntegerField()
    time = serializers.DateTimeField()
    level = serializers.CharField(help_text="info, warning or error")
    message = serializers.CharField()


class LogsOut(serializers.Serializer):
    results = LogLineOut(many=True)
    after = serializers.IntegerField(help_text="Give this as `?after=` to go on")
