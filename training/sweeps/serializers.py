"""JSON in and out of the API of sweeps."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from dlplatform.api import SafeCharField, Strict
from training.models import Run, Sweep, Trial
from training.serializers import SettingsIn, TargetField

from .judging import ALL_METRICS
from .plans import LIMITS
from .progress import summary
from .services import best_trial


def _within(field: str, **options: Any) -> serializers.IntegerField:
    low, high = LIMITS[field]
    return serializers.IntegerField(min_value=low, max_value=high, required=False, **options)


class SweepIn(Strict):
    dataset_version = serializers.UUIDField(help_text="A version that is ready")
    task = serializers.ChoiceField(
        choices=Run.Task.choices, required=False,
        help_text="classification, regression, multilabel or language-model; with a base by default its own",
    )  # fmt: skip
    target = TargetField(
        required=False,
        help_text="Column to predict; several for regression and multilabel; with a base by default its own",
    )
    space = serializers.ListField(
        child=serializers.DictField(), max_length=20,
        help_text="Settings to search: {name, kind: categorical, choices}, or {name, kind: integer or float, low, high, "
                  "log?, points?}; a setting of the architecture is named params.NAME, one of fine-tuning finetune.NAME, such "
                  "as finetune.rank; a value of finetune.blocks is a text of names or patterns with spaces between them, or "
                  "usual",
    )  # fmt: skip
    base_version = serializers.UUIDField(
        required=False, allow_null=True, help_text="Version that every trial fine-tunes, as POST /models/{id}/finetune"
    )
    finetune = SettingsIn(required=False, allow_null=True, help_text="How to fine-tune, as far as it is not searched")
    features = serializers.ListField(
        child=serializers.CharField(max_length=200), required=False, allow_null=True, max_length=2000,
        help_text="Input columns; default: all but the target",
    )  # fmt: skip
    config = serializers.DictField(required=False, help_text="Settings that all trials share")
    sampler = serializers.ChoiceField(choices=Sweep.Sampler.choices, required=False, help_text="Default: tpe")
    pruner = serializers.ChoiceField(
        choices=Sweep.Pruner.choices, required=False, help_text="Default: none; the others need config.epochs"
    )
    metric = SafeCharField(
        max_length=120, required=False,
        help_text=f"Default: validation/loss. One of: {', '.join(ALL_METRICS)}; of a script any that it reports",
    )  # fmt: skip
    direction = serializers.ChoiceField(
        choices=Sweep.Direction.choices, required=False, help_text="Default: as the metric is meant"
    )
    trials = _within("trials", help_text="Trials to draw; default 20, or all points of a grid")
    parallel = _within("parallel", help_text="Trials that train at a time; default 2")
    seeds = _within("seeds", help_text="Runs of every trial, which differ in their seed; default 1")
    seed = _within("seed", help_text="Of the sampler; default 0")
    eta = _within("eta", help_text="ASHA: one trial in so many goes on from a rung; default 3")
    least_epochs = _within("least_epochs", help_text="The first rung, in epochs; default 1")
    experiment = serializers.UUIDField(required=False, allow_null=True, help_text="Default: the experiment Default")
    name = SafeCharField(max_length=120, required=False, allow_blank=True, help_text="Default: one is made")
    register_as = SafeCharField(
        max_length=120,
        required=False,
        allow_blank=True,
        help_text="Model that gets the results, on a branch of its own; default: the base's model, else the dataset's name",
    )
    code = serializers.UUIDField(
        required=False, allow_null=True,
        help_text="Code of your own, which every trial runs in a sandbox; its parameters are searched as params.NAME",
    )  # fmt: skip
    entry = SafeCharField(max_length=1000, required=False, allow_blank=True, help_text="As of a run")


class TrialRunOut(serializers.ModelSerializer):
    output_version = serializers.UUIDField(source="output_version_id", allow_null=True)

    class Meta:
        model = Run
        fields = ["id", "state", "progress", "epoch", "output_version"]


class TrialOut(serializers.ModelSerializer):
    runs = TrialRunOut(many=True, help_text="One for each seed")

    class Meta:
        model = Trial
        fields = ["number", "state", "params", "value", "spread", "rung_values", "pruned_at_epoch", "error", "runs"]


class SweepOut(serializers.ModelSerializer):
    """A sweep as lists show it."""

    experiment = serializers.UUIDField(source="experiment_id")
    dataset_version = serializers.UUIDField(source="dataset_version_id")
    code = serializers.UUIDField(source="code_id", allow_null=True)
    base_version = serializers.UUIDField(
        source="base_version_id", allow_null=True, help_text="Version that every trial fine-tunes"
    )
    created_by = serializers.CharField(source="created_by.username", default=None)
    trials = serializers.IntegerField(source="trial_count", help_text="Trials to draw")
    progress = serializers.SerializerMethodField(help_text="Share of the work, from 0 to 1")
    eta_seconds = serializers.SerializerMethodField(help_text="Seconds until it will probably end")
    counts = serializers.SerializerMethodField(help_text="{state: trials}")

    class Meta:
        model = Sweep
        fields = [
            "id", "name", "state", "reason", "experiment", "dataset_version", "task", "targets", "features", "config", "code",
            "entry", "base_version", "finetune", "space", "sampler", "pruner", "rungs", "eta", "metric", "direction", "trials", "parallel", "seeds", "seed",
            "register_as", "branch", "progress", "eta_seconds", "counts", "created_by", "created_at", "finished_at",
        ]  # fmt: skip

    def _summary(self, sweep: Sweep) -> dict[str, Any]:
        if not hasattr(sweep, "summarised"):
            sweep.summarised = summary(sweep)  # type: ignore[attr-defined]
        return sweep.summarised  # type: ignore[attr-defined]

    def get_progress(self, sweep: Sweep) -> float:
        return self._summary(sweep)["progress"]

    @extend_schema_field(serializers.FloatField(allow_null=True))
    def get_eta_seconds(self, sweep: Sweep) -> float | None:
        return self._summary(sweep)["eta_seconds"]

    @extend_schema_field(serializers.DictField(child=serializers.IntegerField()))
    def get_counts(self, sweep: Sweep) -> dict[str, int]:
        return self._summary(sweep)["counts"]


class SweepDetail(SweepOut):
    trial_list = TrialOut(many=True, source="trials")
    best = serializers.SerializerMethodField(help_text="Number of the best trial that trained to the end")
    importance = serializers.DictField(
        allow_null=True, child=serializers.FloatField(), help_text="{setting: share of the metric's variance}"
    )

    class Meta(SweepOut.Meta):
        fields = [*SweepOut.Meta.fields, "best", "importance", "trial_list"]

    @extend_schema_field(serializers.IntegerField(allow_null=True))
    def get_best(self, sweep: Sweep) -> int | None:
        found = best_trial(sweep)
        return found.number if found else None


class PromotionIn(Strict):
    kind = serializers.ChoiceField(choices=["branch", "alias"], required=False, help_text="Default: branch")
    name = SafeCharField(max_length=80, required=False, help_text="Default: main; aliases need the right to move them")


class PromotionOut(serializers.Serializer):
    model = serializers.UUIDField(source="model_id")
    kind = serializers.CharField()
    name = serializers.CharField()
    version = serializers.UUIDField(source="version_id")
