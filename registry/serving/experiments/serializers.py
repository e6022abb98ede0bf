"""JSON in and out of experiments."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from dlplatform.api import SafeCharField, Strict
from registry.serving.serializers import DESPITE

from . import guardrails, rollouts
from .arms import LEAST_FLOOR, arms_of
from .models import MOST_ARMS, Experiment, Look, Rollout

REASON = "Why, for the log of the deployment"
REVISION = "The deployment must be at this revision, else 409"


class GuardrailIn(Strict):
    kind = serializers.ChoiceField(guardrails.KINDS, help_text="What is watched; `slow` is a share of requests")
    tolerance = serializers.FloatField(
        required=False, min_value=0, max_value=1e12, help_text="A challenger may be worse than A by this much"
    )
    limit = serializers.FloatField(
        required=False,
        min_value=0,
        max_value=1,
        help_text="Of `errors` and `slow`: the share that a challenger may have at most",
    )
    milliseconds = serializers.FloatField(
        required=False, min_value=0, max_value=guardrails.LONGEST, help_text="Of `slow`: from when on a request is slow"
    )
    higher_is_better = serializers.BooleanField(required=False, help_text="Of `number` alone")


class DesignIn(Strict):
    """What a plan depends on."""

    control = serializers.UUIDField(required=False, help_text="Version A; default: the one that answers most")
    challenger = serializers.UUIDField(required=False, help_text="Version B: a plan of pairs looks for its copies")
    mode = serializers.ChoiceField(
        Experiment.Mode.choices, default=Experiment.Mode.SPLIT,
        help_text="`split` until there is a verdict; `bandit`: the traffic follows what the versions earn; `paired`: B "
        "is A's shadow and labels judge both",
    )  # fmt: skip
    metric = serializers.ChoiceField(Experiment.Metric.choices, help_text="The one that decides")
    minimum_effect = serializers.FloatField(
        default=0.0, min_value=0, max_value=1e12,
        help_text="The difference that must not be missed; of shares, 0.01 is one point. A bandit has none",
    )  # fmt: skip
    share = serializers.FloatField(
        required=False, min_value=0.01, max_value=0.99,
        help_text="B's share of the units, default 0.5; of a bandit the first one of each version beside A, default the same for all",
    )  # fmt: skip
    alpha = serializers.FloatField(default=0.05, min_value=0.0001, max_value=0.5, help_text="False verdicts, two-sided")
    power = serializers.FloatField(
        default=0.8, min_value=0.1, max_value=0.999, help_text="The probability to find the minimum effect"
    )
    looks = serializers.IntegerField(default=28, min_value=1, max_value=99, help_text="How often it is looked at")
    cap = serializers.FloatField(
        required=False, allow_null=True, min_value=0, max_value=1e12, help_text="A unit counts at most this much"
    )
    missing_as_zero = serializers.BooleanField(default=False, help_text="Of `number`: no feedback says 0")
    baseline = serializers.FloatField(
        required=False, allow_null=True, min_value=0, max_value=1e12,
        help_text="A's share, or the standard deviation of a unit's outcome; of pairs the share of requests that one version "
        "alone gets right, or the standard deviation of the difference; default: measured in the log",
    )  # fmt: skip


class DeploymentExperimentIn(DesignIn):
    hypothesis = SafeCharField(
        required=False, allow_blank=True, max_length=10_000, help_text="What is expected, and why"
    )
    challenger = serializers.UUIDField(help_text="Version B; the same as A makes an A/A test")
    further = serializers.ListField(
        child=serializers.UUIDField(), required=False,
        help_text=f"Of a bandit: versions C, D, …; {MOST_ARMS} with A and B at most. Anything else compares two",
    )  # fmt: skip
    floor = serializers.FloatField(
        required=False, allow_null=True, min_value=LEAST_FLOOR, max_value=0.5,
        help_text="Of a bandit: each version's share of the traffic is at least this; default 0.1 divided by their number",
    )  # fmt: skip
    higher_is_better = serializers.BooleanField(required=False, allow_null=True, help_text="Of `number` alone")
    guardrails = GuardrailIn(many=True, required=False, max_length=guardrails.MOST)
    promotes = serializers.BooleanField(default=False, help_text="Act on the verdict without a person")
    covariate = serializers.BooleanField(default=False, help_text="Adjust by what the same keys did before the start")


class PlanOut(serializers.Serializer):
    units_a = serializers.IntegerField(source="plan.units_a", help_text="At most")
    units_b = serializers.IntegerField(source="plan.units_b")
    days = serializers.IntegerField(source="plan.days", allow_null=True, help_text="At most; null without traffic")
    usual_days = serializers.IntegerField(
        source="plan.usual_days", allow_null=True, help_text="On average, if B is better by the minimum effect"
    )
    baseline = serializers.FloatField(help_text="What it was planned with")
    units_a_day = serializers.FloatField(source="traffic.per_day", allow_null=True)
    labels_split = serializers.IntegerField(allow_null=True, help_text="Of pairs: labels that a split would take")
    sentence = serializers.CharField()


class ReasonIn(Strict):
    reason = SafeCharField(required=False, allow_blank=True, max_length=2000, help_text=REASON)


class StartIn(ReasonIn):
    revision = serializers.IntegerField(required=False, min_value=0, help_text=REVISION)


class BeginIn(StartIn):
    """Of what brings versions into a deployment."""

    despite_problems = serializers.BooleanField(default=False, help_text=DESPITE)


class PromoteIn(StartIn):
    arm = SafeCharField(
        required=False, allow_blank=True, max_length=1, help_text="Of a bandit with several beside A, which: b, c, …"
    )


class PutBackIn(Strict):
    arm = SafeCharField(max_length=1, help_text="That a guardrail has taken out: b, c, …")
    reason = SafeCharField(max_length=2000, help_text="Why it may answer again, for the logs")


class ArmOut(serializers.Serializer):
    arm = serializers.CharField(source="letter", help_text="a, b, …")
    version = serializers.UUIDField()
    variant = serializers.UUIDField(allow_null=True, help_text="Of the deployment; null before the start")


class DeploymentExperimentOut(serializers.ModelSerializer):
    deployment = serializers.UUIDField(source="deployment_id")
    control = serializers.UUIDField(source="control_id", help_text="Version A")
    challenger = serializers.UUIDField(source="challenger_id", help_text="Version B")
    variant_a = serializers.UUIDField(source="variant_a_id", allow_null=True)
    variant_b = serializers.UUIDField(source="variant_b_id", allow_null=True)
    arms = serializers.SerializerMethodField()
    guardrails = serializers.ListField(child=serializers.DictField())
    created_by = serializers.CharField(source="created_by.username", default=None)
    started_by = serializers.CharField(source="started_by.username", default=None)

    class Meta:
        model = Experiment
        fields = [
            "id", "deployment", "number", "state", "mode", "hypothesis", "control", "challenger", "variant_a", "variant_b", "arms", "share", "floor",
            "metric", "higher_is_better", "minimum_effect", "alpha", "power", "looks", "cap", "missing_as_zero", "covariate",
            "baseline", "units_a", "units_b", "guardrails", "promotes", "created_by", "created_at", "started_by",
            "started_at", "ended_at", "outcome", "conclusion", "promoted",
        ]  # fmt: skip

    @extend_schema_field(ArmOut(many=True))
    def get_arms(self, experiment: Experiment) -> Any:
        """All of them, A first; of a bandit up to ten."""
        return ArmOut(arms_of(experiment), many=True).data


class StepIn(Strict):
    share = serializers.FloatField(
        min_value=rollouts.LEAST_SHARE, max_value=1, help_text="Of the traffic; the last step has 1"
    )
    minutes = serializers.FloatField(
        default=10, min_value=0, max_value=rollouts.LONGEST, help_text="That it lasts at least"
    )
    requests = serializers.IntegerField(
        default=0, min_value=0, max_value=rollouts.MOST_REQUESTS, help_text="That the candidate answers in it at least"
    )


class CanaryIn(BeginIn):
    candidate = serializers.UUIDField(help_text="The version that takes over")
    steps = StepIn(
        many=True, required=False, min_length=1, max_length=rollouts.MOST_STEPS,
        help_text="Default: 1, 5, 25 and 100 %; one step of share 1 swaps at once (blue/green)",
    )  # fmt: skip
    guardrails = GuardrailIn(many=True, required=False, max_length=guardrails.MOST)


class CanaryOut(serializers.ModelSerializer):
    deployment = serializers.UUIDField(source="deployment_id")
    stable = serializers.UUIDField(source="stable_id", help_text="The version that answered before")
    candidate = serializers.UUIDField(source="candidate_id")
    share = serializers.FloatField(help_text="Of the traffic, at this step")
    steps = serializers.ListField(child=serializers.DictField(), help_text="[{share, minutes, requests}]")
    step = serializers.IntegerField(help_text="Position of the step that it is at, from 0 on")
    guardrails = serializers.ListField(child=serializers.DictField())
    watched = serializers.DictField(
        help_text="{requests of the candidate in this step, guardrails with their sentences}"
    )
    created_by = serializers.CharField(source="created_by.username", default=None)

    class Meta:
        model = Rollout
        fields = [
            "id", "deployment", "number", "state", "stable", "candidate", "share", "steps", "step", "step_began_at",
            "paused_at", "guardrails", "watched", "watched_at", "conclusion", "created_by", "started_at", "ended_at",
        ]  # fmt: skip


class LookOut(serializers.ModelSerializer):
    """``verdict`` is told first; the rest is what it was computed from."""

    verdict = serializers.DictField(
        source="results.verdict",
        help_text="{outcome, sentence, ended, fraction, gain, low, high, observed, z, edge, days}: the interval holds at all "
        "looks together; gain is positive where B is better",
    )
    balance = serializers.DictField(source="results.balance", help_text="{alarm, sentence, p_value, tested}")
    guardrails = serializers.ListField(
        child=serializers.DictField(),
        source="results.guardrails",
        help_text="{kind, …, alarm, harm, low, sentence}, and the arm where several are beside A",
    )
    variance_left = serializers.FloatField(
        source="results.variance_left", allow_null=True, help_text="By the covariate, of 1"
    )
    bandit = serializers.DictField(
        source="results.bandit", default=None, allow_null=True,
        help_text="Of a bandit, by arm: {shares, best (probability of being the best one), means, values (if it had always been "
        "asked), requests, expected_regret (of a request that it answers)}, and {regret (so far), regret_of_even, regret_ahead "
        "(of a request by these shares), out (arms that guardrails have taken out)}; where arms were put back, returned by arm: "
        "{times, guardrails (their sums until then, which the guardrails do not count any more)}",
    )  # fmt: skip
    copies = serializers.DictField(
        source="results.copies", default=None, allow_null=True,
        help_text="Of pairs: {sentence}, how many labelled requests B has no answer to, and why",
    )  # fmt: skip
    revision = serializers.IntegerField(
        allow_null=True, help_text="Of the deployment, after a bandit moved its traffic"
    )
    sums = serializers.DictField(
        help_text="By arm: units [units, requests]; outcomes [count, total, squares], with a covariate also its total, its "
        "squares and the products; of a bandit also propensities [probability, requests, total]; of pairs differences, labelled, means; guardrails in their order"
    )
    taken_by = serializers.CharField(source="taken_by.username", default=None)

    class Meta:
        model = Look
        fields = [
            "number", "kind", "until", "last_record", "verdict", "balance", "guardrails", "variance_left", "bandit", "copies", "revision",
            "sums", "arm", "reason", "taken_by", "taken_at",
        ]  # fmt: skip


class ReplayedLookOut(serializers.Serializer):
    number = serializers.IntegerField()
    results_agree = serializers.BooleanField(help_text="Its results come out of its stored sums, to nine digits")
    sums_agree = serializers.BooleanField(help_text="Its sums come out of the log, to the digit")


class ReplayOut(serializers.Serializer):
    agrees = serializers.BooleanField(help_text="All of both")
    looks = ReplayedLookOut(many=True)


def wanted_of(given: dict[str, Any]) -> dict[str, Any]:
    """A request's fields as `services.create_experiment` names them."""
    wanted = dict(given)
    wanted["guardrails_wanted"] = wanted.pop("guardrails", [])
    return wanted
