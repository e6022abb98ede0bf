"""Forms of the pages of experiments."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django import forms

from registry.models import ModelVersion
from registry.serving.forms import ChangeForm

from .arms import LEAST_FLOOR
from .models import MOST_ARMS, Experiment
from .sums import SLOW

METRICS = {
    Experiment.Metric.ACCURACY: "Accuracy, by the labels",
    Experiment.Metric.ABSOLUTE_ERROR: "Mean absolute error, by the labels",
    Experiment.Metric.NUMBER: "A number sent as feedback",
    Experiment.Metric.LATENCY: "Milliseconds to the answer",
    Experiment.Metric.ERRORS: "Failed requests",
}


MODES = {
    Experiment.Mode.SPLIT: "Split the traffic until there is a verdict",
    Experiment.Mode.PAIRED: "Pairs: B is A's shadow, and labels judge both",
    Experiment.Mode.BANDIT: f"Bandit of 2 to {MOST_ARMS}: the traffic follows what they earn, no verdict",
}


ROLES = {"live": ", answers here", "shadow": ", a shadow here"}


class LimitsForm(forms.Form):
    """Guardrails on the new version alone, of experiments and canaries."""

    errors_limit = forms.FloatField(
        min_value=0,
        max_value=1,
        required=False,
        label="Fails at most",
        help_text="The new one, as a share; blank: not watched",
    )
    slow_milliseconds = forms.FloatField(
        min_value=0, max_value=3_600_000, required=False, label="Slow is above", help_text="Milliseconds"
    )
    slow_limit = forms.FloatField(
        min_value=0,
        max_value=1,
        required=False,
        label="Is slow at most",
        help_text="The new one, as a share of its requests",
    )

    def limits(self) -> list[dict[str, Any]]:
        """As guardrails."""
        given = self.cleaned_data
        wanted: list[dict[str, Any]] = []
        if given.get("errors_limit") is not None:
            wanted.append({"kind": Experiment.Metric.ERRORS.value, "limit": given["errors_limit"]})
        slow = {"milliseconds": given.get("slow_milliseconds"), "limit": given.get("slow_limit")}
        if any(value is not None for value in slow.values()):
            wanted.append({"kind": SLOW, **slow})
        return wanted


class DesignForm(forms.Form):
    """What a plan depends on; each field as the API names it."""

    mode = forms.ChoiceField(choices=MODES.items(), initial=Experiment.Mode.SPLIT, required=False, label="How")
    metric = forms.ChoiceField(choices=METRICS.items(), label="What decides")
    minimum_effect = forms.FloatField(
        min_value=0, max_value=1e12, label="Difference not to be missed", initial=0.02, required=False,
        help_text="Of accuracy and failures as a share: 0.02 is two points. Else in the metric's unit. Not of a bandit",
    )  # fmt: skip
    share = forms.FloatField(
        min_value=0.01, max_value=0.99, required=False, label="B's share of the traffic",
        help_text="Blank: half. Of a bandit what each version beside A gets at first; blank: all get the same",
    )  # fmt: skip
    looks = forms.IntegerField(min_value=1, max_value=99, initial=28, label="Looks")
    alpha = forms.FloatField(
        min_value=0.0001, max_value=0.5, initial=0.05, label="False verdicts", help_text="As a share"
    )
    power = forms.FloatField(min_value=0.1, max_value=0.999, initial=0.8, label="Power")
    baseline = forms.FloatField(
        min_value=0, max_value=1e12, required=False, label="A's rate, or deviation",
        help_text="Blank: measured in the log. The rate of accuracy and failures, else a unit's standard deviation. Of pairs: the "
        "share that one alone gets right, or the deviation of the difference",
    )  # fmt: skip
    cap = forms.FloatField(
        min_value=0, max_value=1e12, required=False, label="A unit counts at most",
        help_text="A bandit needs it, but for accuracy and failures",
    )  # fmt: skip
    missing_as_zero = forms.BooleanField(required=False, label="No feedback counts as 0")

    def design(self) -> dict[str, Any]:
        """The fields that `design.make_plan` takes."""
        given = {name: self.cleaned_data[name] for name in DesignForm.base_fields}
        if given["share"] is None:
            del given["share"]
        return given | {
            "minimum_effect": given["minimum_effect"] or 0.0,
            "mode": given["mode"] or Experiment.Mode.SPLIT,
        }


class ExperimentForm(DesignForm, LimitsForm):
    challenger = forms.UUIDField(widget=forms.Select, label="B", help_text="The version that answers most is A")
    further = forms.TypedMultipleChoiceField(
        required=False, coerce=UUID, widget=forms.CheckboxSelectMultiple, label="C, D, … of a bandit"
    )
    floor = forms.FloatField(
        min_value=LEAST_FLOOR, max_value=0.5, required=False, label="Each gets at least",
        help_text="Of a bandit, as a share. Blank: a tenth of the traffic divided among them",
    )  # fmt: skip
    hypothesis = forms.CharField(
        max_length=10_000, required=False, widget=forms.Textarea({"rows": 2}), help_text="What you expect, and why"
    )
    higher_is_better = forms.BooleanField(required=False, initial=True, label="More is better, of a number")
    covariate = forms.BooleanField(required=False, label="Adjust by what the same keys did before")
    promotes = forms.BooleanField(required=False, label="Act on the verdict without a person")
    tolerance = forms.FloatField(
        min_value=0, max_value=1e12, required=False, label="B is worse by at most", help_text="In what decides"
    )

    field_order = [
        "challenger", "mode", "hypothesis", "metric", "minimum_effect", "share", "floor", "baseline", "looks", "alpha", "power", "cap",
        "higher_is_better", "missing_as_zero", "covariate", "promotes",
    ]  # fmt: skip
    of_guardrails = ["errors_limit", "slow_milliseconds", "slow_limit", "tolerance"]

    def __init__(
        self, *args: Any, versions: list[ModelVersion], control: ModelVersion | None, roles: Mapping[UUID, str], **more: Any
    ) -> None:  # fmt: skip
        """``roles``: of those that are in the deployment, by the id of their version."""
        super().__init__(*args, **more)
        beside = sorted((one for one in versions if one != control), key=lambda one: one.pk not in roles)
        self.fields["further"].choices = [(one.pk, f"{one}{ROLES.get(roles.get(one.pk, ''), '')}") for one in beside]  # type: ignore[attr-defined]
        choices = [(one.pk, f"{one} (the same as A: an A/A test)" if one == control else str(one)) for one in versions]
        self.fields["challenger"].widget.choices = choices  # type: ignore[attr-defined]

    @property
    def plain_fields(self) -> list[Any]:
        apart = {*self.of_guardrails, "further"}
        return [field for field in self if field.name not in apart and not self.is_check(field)]

    @property
    def checks(self) -> list[Any]:
        return [field for field in self if self.is_check(field)]

    @property
    def guardrail_fields(self) -> list[Any]:
        return [self[name] for name in self.of_guardrails]

    @staticmethod
    def is_check(field: Any) -> bool:
        return isinstance(field.field, forms.BooleanField)

    def wanted(self) -> dict[str, Any]:
        """As `services.create_experiment` names it."""
        given = self.cleaned_data
        named = ("challenger", "further", "floor", "hypothesis", "covariate", "promotes")
        plain = {name: given[name] for name in named}
        higher = given["higher_is_better"] if given["metric"] == Experiment.Metric.NUMBER else None
        return self.design() | plain | {"higher_is_better": higher, "guardrails_wanted": self.guardrails(higher)}

    def guardrails(self, higher_is_better: bool | None) -> list[dict[str, Any]]:
        wanted = self.limits()
        if (tolerance := self.cleaned_data["tolerance"]) is not None:
            one = {"kind": self.cleaned_data["metric"], "tolerance": tolerance}
            wanted.append(one if higher_is_better is None else one | {"higher_is_better": higher_is_better})
        return wanted


class PromoteForm(ChangeForm):
    arm = forms.CharField(max_length=1, required=False)


class PutBackForm(forms.Form):
    arm = forms.CharField(max_length=1)
    reason = forms.CharField(max_length=2000)
