"""What somebody gets who tried too many wrong passwords: a page, or the API's error."""

from typing import Any

from axes.helpers import get_cool_off
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from dlplatform.web import API_PREFIX


def locked_out(request: HttpRequest, _response: HttpResponse | None, _credentials: Any) -> HttpResponse:
    """The answer in place of the view's own; called by axes' middleware."""
    pause = get_cool_off(request)
    seconds = int(pause.total_seconds()) if pause else 0
    if request.path_info.startswith(API_PREFIX):
        detail = f"Too many wrong passwords for this name from here; try again in {seconds // 60} minutes."
        error = {"code": "locked_out", "detail": detail, "attr": None}
        answer: HttpResponse = JsonResponse({"type": "client_error", "errors": [error]}, status=429)
    else:
        answer = render(request, settings.AXES_LOCKOUT_TEMPLATE, status=429)
    answer["Retry-After"] = str(seconds)
    return answer
