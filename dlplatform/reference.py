"""The description of the API: as a file, and as two pages drawn from that file by Swagger UI and ReDoc."""

from csp.constants import SELF, UNSAFE_INLINE
from csp.decorators import csp_replace
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from drf_spectacular.views import SpectacularAPIView

# ReDoc draws with styles that it makes in the browser, and searches in a worker made of a blob.
_FOR_REDOC = {"style-src": [SELF, UNSAFE_INLINE], "worker-src": ["blob:"]}


class SchemaView(SpectacularAPIView):
    policy = {"GET": "public"}


@login_not_required
@require_safe
def swagger(request: HttpRequest) -> HttpResponse:
    return render(request, "reference/swagger.html")


@login_not_required
@require_safe
@csp_replace(_FOR_REDOC)
def redoc(request: HttpRequest) -> HttpResponse:
    return render(request, "reference/redoc.html")
