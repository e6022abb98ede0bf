"""JSON in and out of the accounts API. Every field is listed; unknown fields are refused."""

from rest_framework import serializers

from dlplatform.api import SafeCharField, Strict

from .models import ApiKey, Membership, Organization
from .roles import Role, Scope


class CredentialsIn(Strict):
    username = SafeCharField(max_length=150, help_text="Name that you sign in with")
    password = serializers.CharField(max_length=256, trim_whitespace=False, help_text="Your password")


class RefreshIn(Strict):
    refresh = serializers.CharField(max_length=4096, help_text="A refresh token")


class TokensOut(serializers.Serializer):
    access = serializers.CharField(help_text="Send it as `Authorization: Bearer …`; lives 15 minutes")
    refresh = serializers.CharField(help_text="Exchange it at /auth/refresh; lives 7 days, works once")


class ApiKeyIn(Strict):
    name = SafeCharField(max_length=120, help_text="What the key is for")
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.choices), min_length=1, help_text="What the key may do"
    )
    expires_at = serializers.DateTimeField(required=False, allow_null=True, help_text="Moment it stops working")


class ApiKeyOut(serializers.ModelSerializer):
    class Meta:
        model = ApiKey
        fields = ["id", "name", "prefix", "scopes", "state", "created_at", "expires_at", "last_used_at"]


class NewApiKeyOut(ApiKeyOut):
    key = serializers.CharField(help_text="The key itself; shown only in this answer")

    class Meta(ApiKeyOut.Meta):
        fields = [*ApiKeyOut.Meta.fields, "key"]


class OrganizationIn(Strict):
    name = SafeCharField(max_length=120, help_text="Name of the organization")
    slug = serializers.SlugField(max_length=60, required=False, help_text="Short name in URLs")


class OrganizationOut(serializers.ModelSerializer):
    role = serializers.SerializerMethodField(help_text="Your role in it")

    class Meta:
        model = Organization
        fields = ["id", "slug", "name", "created_at", "role"]

    def get_role(self, organization: Organization) -> str | None:
        return self.context.get("roles", {}).get(organization.pk)


class MemberIn(Strict):
    user = SafeCharField(max_length=150, help_text="Username")
    role = serializers.ChoiceField(choices=Role.choices, help_text="viewer, trainer, maintainer or admin")
    may_run_code = serializers.BooleanField(
        required=False, allow_null=True, default=None,
        help_text="Whether they may run code of their own; left out: as it is, for a new member no",
    )  # fmt: skip


class MemberOut(serializers.ModelSerializer):
    user = serializers.CharField(source="user.username")

    class Meta:
        model = Membership
        fields = ["user", "role", "may_run_code", "created_at"]


class MeOut(serializers.Serializer):
    id = serializers.UUIDField()
    username = serializers.CharField()
    default_organization = serializers.CharField(allow_null=True, help_text="Slug")
    organizations = OrganizationOut(many=True)
