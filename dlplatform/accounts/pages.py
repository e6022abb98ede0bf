"""What the pages of every app share: where the person works, refusals as messages, lists in pages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.core.paginator import Page, Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import url_has_allowed_host_and_scheme

from dlplatform.api import Conflict
from dlplatform.web import add_errors

from .models import Organization
from .organizations import context

T = TypeVar("T")

PAGE_ROWS = 50


def organization_of(request: HttpRequest) -> Organization | None:
    """The organization in force for this request; asked of the database once a request."""
    return context(request)["organization"]


def organization_or_404(request: HttpRequest) -> Organization:
    organization = organization_of(request)
    if organization is None:
        raise Http404
    return organization


def no_organization(request: HttpRequest) -> HttpResponse:
    return render(request, "accounts/no_organization.html")


def made_or_none(form: Any, make: Callable[[], T]) -> T | None:
    """What a service makes of a form; None, with the reason on the form, when it refuses."""
    try:
        return make()
    except ValidationError as error:
        add_errors(form, error)
    except Conflict as conflict:
        form.add_error(None, str(conflict.detail))
    return None


@contextmanager
def refusals_as_messages(request: HttpRequest) -> Iterator[None]:
    """What a service refuses is said at the top of the next page, not shown as an error page."""
    try:
        yield
    except Conflict as conflict:
        messages.error(request, str(conflict.detail))
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))


def submitted(form: Any) -> dict[str, Any]:
    """What a form asks for; ValidationError naming the fields when it asks for nothing that is possible."""
    if not form.is_valid():
        raise ValidationError([f"{field}: {' '.join(errors)}" for field, errors in form.errors.items()])
    return dict(form.cleaned_data)


def said(request: HttpRequest, text: str, undo: str = "") -> None:
    """A message of success; ``undo`` is the address that takes the action back by POST."""
    messages.success(request, text, extra_tags=undo)


def page_of(request: HttpRequest, rows: Any, size: int = PAGE_ROWS) -> Page[Any]:
    """The page that `?page=` asks for; the nearest one when there is no such page."""
    return Paginator(rows, size).get_page(request.GET.get("page"))


def search_text(request: HttpRequest) -> str:
    return request.GET.get("q", "").replace("\0", "").strip()[:120]


def safe_next(request: HttpRequest, default: str) -> str:
    """Where a form asked to go afterwards, if that is a page of ours."""
    wanted = request.POST.get("next", "")
    ours = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, request.is_secure())
    return wanted if wanted and ours else default
