"""The OpenAPI schema of the API."""

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema as SpectacularSchema
from drf_standardized_errors.openapi import AutoSchema


class Schema(AutoSchema):
    """Errors of the house's format on every operation; the body of a request is described by its serializer."""

    def get_request_serializer(self) -> Any:
        return SpectacularSchema.get_request_serializer(self)

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


class CookieScheme(OpenApiAuthenticationExtension):
    target_class = "dlplatform.accounts.authentication.CookieAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": "sessionid", "description": "The browser's session."}
