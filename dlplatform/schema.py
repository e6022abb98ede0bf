"""The OpenAPI schema of the API."""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema as SpectacularSchema
from drf_standardized_errors.openapi import AutoSchema
from rest_framework import serializers

REFUSALS = {"409", "413", "422"}


class Refusal(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="Stable, for programs: `ref_moved`, `too_large`, …")
    detail = serializers.CharField(help_text="What is wrong and what to do, for people")
    attr = serializers.CharField(allow_null=True, help_text="The field that it is about")


class RefusalResponse(serializers.Serializer[Any]):
    """409 (not in this state), 413 (too large) and 422 (the key stands for another request)."""

    type = serializers.ChoiceField(choices=["client_error"])
    errors = Refusal(many=True)


class Schema(AutoSchema):
    """Errors of the house's format on every operation; the body of a request is described by its serializer."""

    def get_request_serializer(self) -> Any:
        return SpectacularSchema.get_request_serializer(self)

    def _should_add_error_response(self, responses: dict[str, Any], status_code: str) -> bool:
        """Reading changes nothing, so it meets no conflict and sends no body."""
        if status_code in REFUSALS and self.method == "GET":
            return False
        return bool(super()._should_add_error_response(responses, status_code))

    def _is_list_view(self, serializer: Any = None) -> bool:
        """Lists describe their page themselves (`dlplatform.api.documented`)."""
        return False


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "dlplatform.accounts.authentication.TokenAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An access token of /auth/token, or an API key (`dlp_…`).",
        }


class ApiKeyScheme(BearerScheme):
    target_class = "dlplatform.accounts.authentication.ApiKeyAuthentication"
    name = "apiKey"


class CookieScheme(OpenApiAuthenticationExtension):
    target_class = "dlplatform.accounts.authentication.CookieAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": "sessionid", "description": "The browser's session."}
