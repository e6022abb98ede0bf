"""Forms of the pages of canaries."""

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms

from registry.models import ModelVersion
from registry.serving.forms import DESPITE

from .forms import METRICS, LimitsForm
from .models import Experiment

FAILS_AT_MOST = 0.05
KEPT = ("candidate", "steps", "reason", "despite_problems")  # as they are, for `rollouts.start_rollout`


def written(steps: Sequence[Mapping[str, Any]]) -> str:
    """Steps as `CanaryForm` reads them: a line each, percent, minutes, requests."""
    return "\n".join(f"{100 * one['share']:g} {one['minutes']:g} {one['requests']}" for one in steps)


class CanaryForm(LimitsForm):
    candidate = forms.UUIDField(widget=forms.Select, label="Version that takes over")
    steps = forms.CharField(
        max_length=2000, widget=forms.Textarea({"rows": 4}),
        help_text="A line each: percent of the traffic, minutes at least, requests at least. The last has 100",
    )  # fmt: skip
    reason = forms.CharField(max_length=2000, required=False, label="Reason, for the log")
    despite_problems = forms.BooleanField(required=False, label="Despite what was measured", help_text=DESPITE)
    metric = forms.ChoiceField(
        choices=[("", "nothing"), *METRICS.items()], required=False, label="Compared with the version before"
    )
    tolerance = forms.FloatField(
        min_value=0,
        max_value=1e12,
        required=False,
        label="Worse by at most",
        help_text="In what is compared; shares as 0.01",
    )

    def __init__(self, *args: Any, versions: list[ModelVersion], **more: Any) -> None:
        super().__init__(*args, **more)
        self.fields["errors_limit"].initial = FAILS_AT_MOST
        self.fields["candidate"].widget.choices = [(one.pk, str(one)) for one in versions]  # type: ignore[attr-defined]

    def clean_steps(self) -> list[dict[str, Any]]:
        lines = [line.replace("%", " ").split() for line in self.cleaned_data["steps"].splitlines() if line.strip()]
        try:
            return [
                {"share": float(share) / 100, "minutes": float(minutes), "requests": int(requests)}
                for share, minutes, requests in lines
            ]
        except ValueError:
            raise forms.ValidationError("Write three numbers a line, such as “5 10 100”.", code="invalid") from None

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        if bool(given.get("metric")) != (given.get("tolerance") is not None) and not self.errors:
            self.add_error(
                "tolerance", "What is compared needs a tolerance, and a tolerance something that is compared."
            )
        return given

    def wanted(self) -> dict[str, Any]:
        """As `rollouts.start_rollout` names it."""
        given, guards = self.cleaned_data, self.limits()
        if given["metric"]:
            guards.append({"kind": Experiment.Metric(given["metric"]).value, "tolerance": given["tolerance"]})
        return {name: given[name] for name in KEPT} | {"guardrails_wanted": guards}
