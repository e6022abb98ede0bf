"""Forms of the training pages: filters and experiments. The form of a new run is in `training.run_form`."""

from typing import Any

from django import forms
from django.db.models import QuerySet

from datasets.models import Dataset
from dlplatform.accounts.models import Organization

from .models import Experiment, Run

MOST_CHOICES = 200


def filter_choices(organization: Organization) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(experiments, datasets) to filter by."""
    experiments = Experiment.objects.filter(organization=organization)
    datasets = Dataset.objects.filter(organization=organization, archived_at=None)
    return _choices(experiments), _choices(datasets)


def _choices(rows: QuerySet[Any]) -> list[tuple[str, str]]:
    return [(str(pk), name) for pk, name in rows.order_by("name").values_list("pk", "name")[:MOST_CHOICES]]


class RunFilter(forms.Form):
    q = forms.CharField(required=False, max_length=120)
    state = forms.ChoiceField(required=False)
    task = forms.ChoiceField(required=False, choices=[("", "Any task"), *Run.Task.choices])
    experiment = forms.ChoiceField(required=False)
    dataset = forms.ChoiceField(required=False)
    archived = forms.BooleanField(required=False)

    def __init__(self, *args: Any, organization: Organization, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        experiments, datasets = filter_choices(organization)
        self.fields["state"].choices = [  # type: ignore[attr-defined]
            ("", "Any state"), ("active", "active now"), *((value, value) for value in Run.State.values)
        ]  # fmt: skip
        self.fields["experiment"].choices = [("", "Any experiment"), *experiments]  # type: ignore[attr-defined]
        self.fields["dataset"].choices = [("", "Any dataset"), *datasets]  # type: ignore[attr-defined]
        self.fields["q"].widget = forms.SearchInput({"placeholder": "Name or target"})


class ExperimentForm(forms.Form):
    name = forms.CharField(max_length=120)
    description = forms.CharField(
        max_length=2000, required=False, widget=forms.Textarea({"rows": 2}), help_text="What it is to find out."
    )


class NameForm(forms.Form):
    name = forms.CharField(max_length=120)


class PromotionForm(forms.Form):
    """Where the best trial of a sweep goes."""

    kind = forms.ChoiceField(choices=[("branch", "branch"), ("alias", "alias")])
    name = forms.CharField(max_length=80)
