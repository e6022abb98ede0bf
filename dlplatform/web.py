"""What every page shares: page or HTMX partial, errors in words, trailing slashes."""

from collections.abc import Callable
from typing import Any

from csp.middleware import CSPMiddleware, PolicyParts
from django.conf import settings
from django.core.exceptions import SuspiciousOperation, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseNotFound, JsonResponse
from django.shortcuts import render

API_PREFIX = "/api/"
ADMIN_PREFIX = "/admin/"


def page(
    request: HttpRequest, template: str, context: dict[str, Any], *, partial: str | None = None, status: int = 200
) -> HttpResponse:
    """Render the whole page, or only its changing part when HTMX asks for that part."""
    htmx = getattr(request, "htmx", None)
    chosen = partial if partial and htmx and not htmx.boosted else template
    response = render(request, chosen, context, status=status)
    response["Vary"] = "HX-Request"
    return response


def add_errors(form: Any, error: ValidationError) -> None:
    """Show a service's errors on the form: on the named field or the one that it is a part of, else at its top."""
    if not hasattr(error, "error_dict"):
        form.add_error(None, error)
        return
    for field, errors in error.error_dict.items():
        form.add_error(_field_of(form, field), errors)


def _field_of(form: Any, name: str) -> str | None:
    """`config.text_model.hidden_size` is a part of the field `config.text_model`."""
    while name and name not in form.fields:
        name = name.rpartition(".")[0]
    return name or None


class TrailingSlash:
    """An API path works with and without its trailing slash; the routes are written without.

    A path with a NUL names nothing: PostgreSQL cannot even be asked for it.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if "\0" in request.path_info:
            return HttpResponseNotFound()
        if request.path_info.startswith(API_PREFIX) and request.path_info.endswith("/"):
            request.path_info = request.path_info.rstrip("/")
        return self.get_response(request)


class ContentSecurityPolicy(CSPMiddleware):
    """The platform's policy everywhere; on the pages of Django admin the one that its theme can live with."""

    def get_policy_parts(
        self, request: HttpRequest, response: HttpResponseBase, report_only: bool = False
    ) -> PolicyParts:
        parts = super().get_policy_parts(request, response, report_only)
        if request.path_info.startswith(ADMIN_PREFIX):
            parts.replace = settings.ADMIN_CONTENT_SECURITY_POLICY | (parts.replace or {})
        return parts


class AdminQuery:
    """Django admin hands what the query string says to the database, which cannot even be asked for a NUL."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        query = request.META.get("QUERY_STRING", "")
        if request.path_info.startswith(ADMIN_PREFIX) and ("%00" in query or "\0" in query):
            raise SuspiciousOperation("A NUL in the query string")
        return self.get_response(request)


class ContentTypeOfErrors:
    """Never HTML on the API: an error page that Django itself makes becomes the API's JSON error."""

    codes = {400: "bad_request", 403: "permission_denied", 404: "not_found", 500: "error"}

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        html = response.get("Content-Type", "").startswith("text/html")
        if request.path_info.startswith(API_PREFIX) and response.status_code >= 400 and html:
            kind = "server_error" if response.status_code >= 500 else "client_error"
            code = self.codes.get(response.status_code, "error")
            return JsonResponse(
                {"type": kind, "errors": [{"code": code, "detail": response.reason_phrase, "attr": None}]},
                status=response.status_code,
            )
        return response
