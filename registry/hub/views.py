"""What all views of the façade share: callers with a bearer credential only, and errors that clients understand."""

from typing import Any
from urllib.parse import parse_qs

from rest_framework.exceptions import PermissionDenied
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dlplatform.accounts.access import in_scope
from dlplatform.accounts.authentication import ApiKeyAuthentication, TokenAuthentication
from dlplatform.accounts.roles import ACTIONS
from registry.models import ModelVersion, RegisteredModel

from . import errors, revisions

PAGE = 1000


class OneFormat(BaseContentNegotiation):
    """Clients name all sorts of content types for their JSON, and text/plain for what they accept."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class FieldsParser(BaseParser):
    """A form of any number of fields: {name: [values]}."""

    media_type = "application/x-www-form-urlencoded"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> dict[str, list[str]]:
        return parse_qs(stream.read().decode("utf-8", "replace"))


class HubView(APIView):
    """No cookies here, so nothing that another site could make a browser send."""

    authentication_classes = [ApiKeyAuthentication, TokenAuthentication]
    content_negotiation_class = OneFormat
    schema = None  # not of our API: its description is the clients' own

    def get_exception_handler(self) -> Any:
        return errors.handle

    def permission_denied(self, request: Any, message: str | None = None, code: str | None = None) -> Any:
        action = self.policy.get(request.method)  # type: ignore[attr-defined]
        if request.user.is_authenticated and action in ACTIONS and not in_scope(request.user, action):
            raise PermissionDenied(f"This API key lacks the scope {ACTIONS[action].scope.value!r}.")
        super().permission_denied(request, message, code)


class RepoView(HubView):
    """A view of one repository: `self.model` is the model that it names, which the caller may see."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        self.model: RegisteredModel = revisions.model_of(request.user, kwargs["namespace"], kwargs["name"])

    def version(self, revision: str) -> ModelVersion:
        return revisions.version_of(self.model, revision)


def origin(request: Any) -> str:
    """The address under which the caller reaches us, without a slash."""
    return str(request.build_absolute_uri("/")).rstrip("/")


def flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("true", "1")


def page_of(request: Request, rows: Any, most: int = PAGE) -> tuple[Any, dict[str, str]]:
    """One page of a list or queryset and the Link header that leads to the next."""
    start, limit = (_whole(request.query_params.get(name, "")) for name in ("cursor", "limit"))
    count = min(limit or most, most)
    taken = list(rows[start : start + count + 1])
    if len(taken) <= count:
        return taken, {}
    query = request.query_params.copy()
    query["cursor"] = str(start + count)
    return taken[:count], {"Link": f'<{origin(request)}{request.path}?{query.urlencode()}>; rel="next"'}


def paged(request: Request, rows: Any, entry: Any = lambda row: row, most: int = PAGE) -> Response:
    taken, headers = page_of(request, rows, most)
    return Response([entry(row) for row in taken], headers=headers)


def _whole(text: str) -> int:
    return int(text[:9]) if text.isascii() and text.isdecimal() else 0
