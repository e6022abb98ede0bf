"""Forms of the deployment pages."""

from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.http import QueryDict
from django.utils.text import Truncator

from dlplatform.accounts.models import Organization, User
from registry.forms import TryForm
from registry.models import ModelVersion

from .changes import kept
from .experiments.holding import Holder, name_of
from .following import version_named
from .models import Deployment, Variant
from .services import MODEL_FILE, Wanted
from .states import DETAILS, own_details

MOST_CHOICES = 300
DESCRIPTION_TOLD = 400  # characters of it in a message
REMOVED = "removed"


def candidates(user: User, deployment: Deployment) -> list[ModelVersion]:
    """What could answer beside what a deployment has: first the versions of the models that answer in it already."""
    models = set(deployment.variants.filter(removed_at=None).values_list("version__model", flat=True))
    return sorted(servable_versions(user, deployment.organization), key=lambda version: version.model_id not in models)


def candidate_named(user: User, deployment: Deployment, identifier: str) -> ModelVersion | None:
    """Of the candidates the one with this id, as a form sent it."""
    return next((one for one in candidates(user, deployment) if str(one.pk) == identifier), None)


def servable_versions(user: User, organization: Organization) -> list[ModelVersion]:
    """The newest versions that could be deployed."""
    rows = ModelVersion.objects.visible_to(user).filter(
        model__organization=organization, model__archived_at=None, deleted_at=None, tree__has_key=MODEL_FILE
    )
    return list(
        rows.select_related("model").only("number", "model__name", "task").order_by("-created_at")[:MOST_CHOICES]
    )


DESPITE = "Also a version that was measured to be slower, bigger or worse than what it was made from. Give a reason"


class TextField(forms.CharField):
    """A text of several lines, with the line ends that are stored: browsers send two characters for each."""

    def to_python(self, value: Any) -> str:
        return _plain(super().to_python(value))


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


class DeploymentForm(forms.Form):
    name = forms.CharField(max_length=80, help_text="A part of its address: letters, digits, dot, dash, underscore")
    version = forms.UUIDField(widget=forms.Select, help_text="It answers alone at first; more are added on its page")
    description = TextField(max_length=10_000, required=False, widget=forms.Textarea({"rows": 3}))
    despite_problems = forms.BooleanField(required=False, label="Despite what was measured", help_text=DESPITE)
    reason = forms.CharField(max_length=2000, required=False, label="Reason, for the log")

    def __init__(self, *args: Any, versions: list[ModelVersion], **more: Any) -> None:
        super().__init__(*args, **more)
        self.fields["version"].widget.choices = [(one.pk, str(one)) for one in versions]  # type: ignore[attr-defined]


class ChangeForm(forms.Form):
    """What every change says: why, and which change it was made in sight of."""

    reason = forms.CharField(max_length=2000, required=False)
    revision = forms.IntegerField(min_value=0, max_value=2**31 - 1, required=False)


class VariantsForm(ChangeForm):
    """A change that may bring in versions that something speaks against."""

    despite_problems = forms.BooleanField(required=False)


class DetailsForm(ChangeForm):
    """Description and sample rate, filled with what they are.

    ``held``: why the rate cannot be changed now; its input is disabled then, and a rate that is sent nevertheless is given to
    the service, which refuses it.
    """

    description = TextField(max_length=10_000, required=False, strip=False, widget=forms.Textarea({"rows": 3}))
    sample_rate = forms.FloatField(
        min_value=0, max_value=1, label="Share of the requests that the log keeps",
        help_text="From 0, none, to 1, all. It changes no answer",
        widget=forms.NumberInput({"min": 0, "max": 1, "step": "any"}),
    )  # fmt: skip
    reason = forms.CharField(max_length=2000, required=False, label="Reason, for the log")
    revision = forms.IntegerField(min_value=0, max_value=2**31 - 1, required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, held: str = "", **more: Any) -> None:
        super().__init__(*args, auto_id="details-%s", **more)
        self.order_fields(["description", "sample_rate", "reason", "revision"])
        if held:
            rate = self.fields["sample_rate"]
            rate.required, rate.help_text = False, held
            rate.widget.attrs["disabled"] = True

    @property
    def changed(self) -> dict[str, Any]:
        """What differs from what there is. Line ends that browsers write otherwise are no change."""
        given = {name: self.cleaned_data[name] for name in DETAILS}
        now = self.initial | {"description": _plain(self.initial["description"])}
        return {name: value for name, value in given.items() if value is not None and value != now[name]}


def details_form(deployment: Deployment, holder: Holder | None, posted: Any = None) -> DetailsForm:
    """Filled with what they are now, or with what was ``posted``."""
    now = own_details(deployment)
    held = f"{name_of(holder)} needs the whole log: end it first." if holder else ""
    if posted is not None and held and not posted.get("sample_rate"):
        posted = _with(posted, sample_rate=now["sample_rate"])  # a browser sends nothing of a disabled input
    return DetailsForm(posted, initial=now | {"revision": deployment.revision}, held=held)


def say_moved(form: DetailsForm, deployment: Deployment) -> None:
    """Others have changed the details since the form was filled: what they are now, and that a further save replaces it."""
    form.add_error(
        None, f"It was changed meanwhile. {_as_they_stand(own_details(deployment))} Save again to replace that."
    )
    form.data = _with(form.data, revision=deployment.revision)


def _as_they_stand(details: dict[str, Any]) -> str:
    text = Truncator(details["description"]).chars(DESCRIPTION_TOLD)
    described = f"The description is “{text}” now" if text else "There is no description now"
    return f"{described}, and the log keeps {kept(details['sample_rate'])}."


def _with(posted: Any, **values: Any) -> Any:
    changed = posted.copy()
    changed.update({name: str(value) for name, value in values.items()})
    return changed


class GoLiveForm(forms.Form):
    """Which version shall answer alone, and which change of the deployment that was decided in sight of."""

    version = forms.UUIDField()
    revision = forms.IntegerField(min_value=0, max_value=2**31 - 1, required=False)


class DeploymentTryForm(TryForm):
    """The inputs of the model, and the key that chooses who answers."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.fields["key"] = forms.CharField(
            max_length=200, required=False, label="Key",
            help_text="Whom the answer is for. Blank: chance decides who answers",
        )  # fmt: skip
        self.order_fields(["key"])


def variants_of(user: User, posted: QueryDict) -> list[Wanted]:
    """The rows of the table of variants: a version, or a model's alias as `following.Followed` writes it. Raises
    ValidationError for what is no row."""
    columns = [posted.getlist(name) for name in ("version", "weight", "role")]
    try:
        rows = list(zip(*columns, strict=True))
    except ValueError:
        raise ValidationError("Each variant needs a version, a weight and a role.") from None
    return [_variant(user, *row) for row in rows if row[0] and row[2] != REMOVED]


def _variant(user: User, version: str, weight: str, role: str) -> Wanted:
    model, _, alias = version.partition("@")
    role = role if role in Variant.Role.values else ""
    try:
        if alias:
            named = version_named(ModelVersion.objects.visible_to(user), UUID(model), alias)
            return Wanted(named, float(weight), role, alias=alias)
        return Wanted(UUID(version), float(weight), role, alias="")
    except ValueError:
        raise ValidationError("A weight is a number from 0 on.") from None
