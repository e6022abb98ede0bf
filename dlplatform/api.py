"""What every API view shares: errors, paging, strict input, the description of an operation."""

import json
from typing import Any

import orjson
from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import DataError
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema, inline_serializer
from drf_standardized_errors.handler import ExceptionHandler
from rest_framework import serializers
from rest_framework.exceptions import (
    APIException,
    AuthenticationFailed,
    ErrorDetail,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    ValidationError,
)
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

ONCE = OpenApiParameter(
    "Idempotency-Key", str, OpenApiParameter.HEADER,
    description="Your name for this request, up to 200 characters: sent again within a day, it gets the first answer",
)  # fmt: skip

UNAUTHENTICATED = "The credentials are missing, wrong, expired or revoked."


class Conflict(APIException):
    """The state of the object does not allow this now (a ref that moved, a run that ended)."""

    status_code = 409
    default_code = "conflict"
    default_detail = "The object is not in a state that allows this."


class Unavailable(APIException):
    """A part of the platform that this needs does not answer; try again after ``retry_after`` seconds."""

    status_code = 503
    default_code = "unavailable"
    default_detail = "This part of the platform is starting or restarting; try again in a few seconds."


class ErrorHandler(ExceptionHandler):
    """Django's ValidationError, which services raise, becomes the API's 400 with the same fields and codes; its
    PermissionDenied a 403 with the same sentence."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        if isinstance(exc, DjangoValidationError):
            return ValidationError(detail=error_details(exc))
        if isinstance(exc, DjangoPermissionDenied) and exc.args:
            return PermissionDenied(str(exc))
        if isinstance(exc, AuthenticationFailed | NotAuthenticated):
            return _unauthenticated(exc)
        return super().convert_known_exceptions(exc)


def _unauthenticated(refused: APIException) -> NotAuthenticated:
    """One body for every cause, so that nobody learns from it which of their guesses was near."""
    answer = NotAuthenticated(UNAUTHENTICATED)
    answer.auth_header = getattr(refused, "auth_header", None)  # type: ignore[attr-defined]
    return answer


def error_details(error: DjangoValidationError) -> Any:
    """A Django ValidationError as DRF error details: {field: [detail with code]} or a list."""
    if hasattr(error, "error_dict"):
        return {
            field: [ErrorDetail(message, code=one.code or "invalid") for one in errors for message in one.messages]
            for field, errors in error.error_dict.items()
        }
    return [ErrorDetail(message, code=one.code or "invalid") for one in error.error_list for message in one.messages]


class Paging(CursorPagination):
    """Cursor paging, newest first; `?limit=` up to 200."""

    page_size = 50
    max_page_size = 200
    page_size_query_param = "limit"
    ordering = "-created_at"
    invalid_cursor_message = "This cursor is not one that the API gave; start again without it."

    def get_page_size(self, request: Request) -> int:
        return whole_parameter(request, "limit", self.page_size, 1, self.max_page_size)

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> Any:
        """A page of rows; NotFound for a cursor whose position is not a value of the column it is compared with."""
        try:
            return super().paginate_queryset(queryset, request, view)
        except (DjangoValidationError, DataError, ValueError):
            if self.cursor_query_param not in request.query_params:
                raise
            raise NotFound(self.invalid_cursor_message) from None


class Strict(serializers.Serializer):
    """Input that refuses fields it does not know: a typo must not be silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = set(data) - {name for name, field in self.fields.items() if not field.read_only}
            if unknown:
                known = ", ".join(name for name, field in self.fields.items() if not field.read_only)
                raise ValidationError(
                    {
                        writable(name): [
                            ErrorDetail(f"There is no field of this name. Fields: {known}.", "unknown_field")
                        ]
                        for name in sorted(unknown, key=str)
                    }
                )
        return super().to_internal_value(data)


def writable(name: Any) -> str:
    """A name that a client made up, fit for an answer: half a surrogate pair cannot be encoded."""
    return str(name)[:100].encode("utf-8", "replace").decode()


def can_be_encoded(value: Any) -> bool:
    """Whether a JSON value holds whole characters alone: half a surrogate pair can neither be sent on nor stored."""
    try:
        orjson.dumps(value)
    except TypeError:  # it may also be a number that orjson does not know
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return False
    return True


class SafeCharField(serializers.CharField):
    """Text without control characters; PostgreSQL cannot store NUL and logs must not show escapes."""

    def run_validation(self, data: Any = serializers.empty) -> Any:
        value = super().run_validation(data)
        if isinstance(value, str) and any(ord(character) < 32 and character not in "\n\t\r" for character in value):
            raise ValidationError("Remove the control characters from this text.", code="control_character")
        return value


class DeletionOut(serializers.Serializer):
    """What deleting something would do (`objects.grace.Preview`)."""

    bytes = serializers.IntegerField(help_text="Stored bytes that nothing else needs; freed after the grace period")
    versions = serializers.IntegerField(help_text="Versions that lose their content")
    obstacles = serializers.ListField(child=serializers.CharField(), help_text="What stands against it now")


class PagedView(APIView):
    """Lists a queryset through the paginator and a serializer."""

    ordering: str | tuple[str, ...] = "-created_at"

    def paged(self, request: Request, queryset: Any, serializer: Any, **context: Any) -> Response:
        paginator = Paging()
        paginator.ordering = self.ordering  # type: ignore[assignment]
        rows: Any = paginator.paginate_queryset(queryset, request, view=self)
        data = serializer(rows, many=True, context={"request": request, **context}).data
        return paginator.get_paginated_response(data)


def _is_list(answer: Any) -> bool:
    return isinstance(answer, serializers.ListSerializer)


def _page_of(answer: Any) -> Any:
    """A list in the schema is a page, as `Paging` answers it."""
    if not _is_list(answer):
        return answer
    return inline_serializer(
        name=f"PageOf{type(answer.child).__name__.removesuffix('Out')}",
        fields={
            "next": serializers.URLField(allow_null=True, help_text="The next page, or null"),
            "previous": serializers.URLField(allow_null=True, help_text="The page before, or null"),
            "results": answer,
        },
    )


def documented(
    summary: str, *, answer: Any, status: int = 200, request: Any = None, example: Any = None, **more: Any
) -> Any:
    """Describe one operation in the schema: what it does, what goes in, what comes out, an example of each.

    ``example`` is (request body, answer body), either of them None.
    """
    if _is_list(answer):
        name = type(answer.child).__name__.removesuffix("Out")
        more.setdefault("operation_id", f"list_{name.lower()}s")
    examples = []
    sent, received = example or (None, None)
    if sent is not None:
        examples.append(OpenApiExample("Request", value=sent, request_only=True))
    if received is not None:
        received = {"next": None, "previous": None, "results": [received]} if _is_list(answer) else received
        examples.append(OpenApiExample("Answer", value=received, response_only=True, status_codes=[str(status)]))
    return extend_schema(
        summary=summary,
        description=more.pop("description", summary + "."),
        request=request,
        responses={status: _page_of(answer)},
        examples=examples,
        **more,
    )


def boolean_parameter(request: Request, name: str) -> bool:
    """A yes or no from the query string, no by default; ValidationError names the parameter otherwise."""
    text = request.query_params.get(name, "").lower()
    if text not in ("", "0", "1", "false", "true"):
        raise ValidationError({name: [ErrorDetail("Give true or false.", "invalid")]})
    return text in ("1", "true")


def whole_parameter(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number from the query string, within limits; ValidationError names the parameter otherwise."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or not low <= int(text[:19]) <= high:
        raise ValidationError({name: [ErrorDetail(f"Give a whole number from {low} to {high}.", "invalid")]})
    return int(text[:19])
