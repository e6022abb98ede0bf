"""Errors in the form that Hugging Face clients turn into their exceptions: the header decides, the text explains."""

from collections.abc import Iterator
from typing import Any

from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response

from dlplatform.api import error_details
from registry.pickles import PickleRefused

BAD_CREDENTIALS = "Invalid credentials in Authorization header"  # these words tell the client it was not the repository
QUOTES = str.maketrans({"“": '"', "”": '"', "’": "'", "–": "-", "…": "...", "\n": " ", "\r": " "})


class HubError(exceptions.APIException):
    """``error_code`` becomes the header X-Error-Code."""

    status_code = 400
    error_code = ""

    def __init__(self, detail: str, *, status: int | None = None, **headers: str) -> None:
        super().__init__(detail)
        self.status_code = status or self.status_code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class RepoNotFound(HubError):
    status_code = 404
    error_code = "RepoNotFound"

    def __init__(self) -> None:
        super().__init__("There is no such repository, or you may not see it.")


class RevisionNotFound(HubError):
    status_code = 404
    error_code = "RevisionNotFound"

    def __init__(self, revision: str) -> None:
        super().__init__(f"There is no branch, tag or commit {revision[:100]!r}.")


class EntryNotFound(HubError):
    """``commit`` lets the client remember that this commit has no such file."""

    status_code = 404
    error_code = "EntryNotFound"

    def __init__(self, detail: str = "There is no such file in this revision.", commit: str = "") -> None:
        super().__init__(detail, **({"X_Repo_Commit": commit} if commit else {}))


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """The exception handler of the façade's views; None leaves the error to the server."""
    known = known_error(error)
    if known is None:
        return None
    response = Response({"error": text_of(known)}, status=known.status_code, headers=headers_of(known))
    if known.status_code == 401:
        response["WWW-Authenticate"] = 'Bearer realm="api"'
    return response


def known_error(error: Exception) -> exceptions.APIException | None:
    """What we can tell the client; None for a failure of our own."""
    if isinstance(error, Http404):
        return RepoNotFound()
    if isinstance(error, PickleRefused):  # a code for which clients have an error of its own
        return HubError(str(error.detail))
    if isinstance(error, DjangoPermissionDenied):
        return exceptions.PermissionDenied(str(error) or None)
    if isinstance(error, DjangoValidationError):
        return exceptions.ValidationError(error_details(error))
    return error if isinstance(error, exceptions.APIException) else None


def text_of(error: exceptions.APIException) -> str:
    if isinstance(error, exceptions.AuthenticationFailed):
        return BAD_CREDENTIALS
    return " ".join(_sentences(error.detail)).translate(QUOTES)


def headers_of(error: exceptions.APIException) -> dict[str, str]:
    headers = {"X-Error-Message": text_of(error).encode("ascii", "replace").decode()} | getattr(error, "headers", {})
    code = "RepoNotFound" if isinstance(error, exceptions.NotAuthenticated) else getattr(error, "error_code", "")
    return headers | ({"X-Error-Code": code} if code else {})


def _sentences(detail: Any) -> Iterator[str]:
    if isinstance(detail, dict):
        for field, inner in detail.items():
            plain = field in ("non_field_errors", "detail")
            yield from (sentence if plain else f"{field}: {sentence}" for sentence in _sentences(inner))
    elif isinstance(detail, list | tuple):
        for inner in detail:
            yield from _sentences(inner)
    else:
        yield str(detail)
