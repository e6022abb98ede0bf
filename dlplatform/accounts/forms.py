"""Forms of the account pages."""

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.utils import timezone

from .roles import Role, Scope

SCOPE_MEANINGS = {
    Scope.READ: "read: see everything you see",
    Scope.PREDICT: "predict: ask models",
    Scope.INGEST: "ingest: upload data",
    Scope.TRAIN: "train: launch runs, commit versions",
    Scope.DEPLOY: "deploy: move production and other aliases",
    Scope.ADMIN: "admin: manage members and keys",
}
LIFETIMES = {"30": "in 30 days", "90": "in 90 days", "365": "in a year", "": "never"}


class SignInForm(AuthenticationForm):
    error_messages = {
        "invalid_login": "The username or the password is wrong.",
        "inactive": "The username or the password is wrong.",
    }


class OrganizationForm(forms.Form):
    name = forms.CharField(max_length=120, help_text="Such as the name of a team.")


class MemberForm(forms.Form):
    user = forms.CharField(
        max_length=150,
        label="Username",
        help_text="An existing account.",
        widget=forms.TextInput({"autocomplete": "off"}),
    )
    role = forms.ChoiceField(choices=Role.choices, initial=Role.TRAINER)
    may_run_code = forms.BooleanField(
        required=False, label="May run their own code", help_text="In a sandbox. No role implies it."
    )


class ApiKeyForm(forms.Form):
    name = forms.CharField(max_length=120, help_text="What uses it, such as “nightly upload”.")
    expires = forms.ChoiceField(choices=list(LIFETIMES.items()), required=False, initial="90", label="Expires")
    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, SCOPE_MEANINGS[scope]) for scope in Scope],
        widget=forms.CheckboxSelectMultiple,
        initial=[Scope.READ.value],
        error_messages={"required": "Choose at least one scope."},
    )

    def given(self) -> dict[str, Any]:
        """Arguments of the service."""
        days = self.cleaned_data["expires"]
        return {
            "name": self.cleaned_data["name"],
            "scopes": self.cleaned_data["scopes"],
            "expires_at": timezone.now() + timedelta(days=int(days)) if days else None,
        }
