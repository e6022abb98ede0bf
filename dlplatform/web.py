"""What every page shares: page or HTMX partial, errors in words, trailing slashes, static files of wheels."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.contrib.staticfiles.finders import BaseFinder
from django.core.exceptions import ValidationError
from django.core.files.storage import FileSystemStorage
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

API_PREFIX = "/api/"
PLOTLY_FILES = {"plotly.min.js"}


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
    """Show a service's errors on the form: on the named field where the form has it, else at its top."""
    if not hasattr(error, "error_dict"):
        form.add_error(None, error)
        return
    for field, errors in error.error_dict.items():
        form.add_error(field if field in form.fields else None, errors)


class TrailingSlash:
    """An API path works with and without its trailing slash; the routes are written without."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path_info.startswith(API_PREFIX) and request.path_info.endswith("/"):
            request.path_info = request.path_info.rstrip("/")
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


class PlotlyFinder(BaseFinder):
    """plotly.min.js, and only that, out of the plotly wheel's package data, as `plotly/plotly.min.js`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        spec = find_spec("plotly")
        assert spec is not None and spec.origin is not None
        self.storage = FileSystemStorage(location=str(Path(spec.origin).parent / "package_data"))
        self.storage.prefix = "plotly"  # type: ignore[attr-defined]

    def find(self, path: str, find_all: bool = False, **kwargs: Any) -> Any:
        folder, _, name = path.partition("/")
        if folder == "plotly" and name in PLOTLY_FILES:
            found = self.storage.path(name)
            return [found] if find_all else found
        return []

    def list(self, ignore_patterns: Iterable[str] | None) -> Iterable[tuple[str, Any]]:
        for name in PLOTLY_FILES:
            yield name, self.storage
