"""Every URL of the platform, app by app."""

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.urls import include, path
from django.views.generic import RedirectView

from . import health, reference

api = [
    path("", include("dlplatform.accounts.api_urls")),
    path("", include("datasets.api_urls")),
    path("", include("training.api_urls")),
    path("", include("registry.api_urls")),
    path("", include("registry.serving.api_urls")),
]

icon = RedirectView.as_view(url=f"{settings.STATIC_URL}icon.svg")

urlpatterns = [
    path("favicon.ico", login_not_required(icon)),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", health.metrics),
    path("openapi.json", login_not_required(reference.SchemaView.as_view()), name="schema"),
    path("docs", reference.swagger, name="docs"),
    path("redoc", reference.redoc, name="redoc"),
    path("api/v1/", include(api)),
    path("", include("registry.hub.urls")),
    path("admin/", admin.site.urls),
    path("", include("dlplatform.accounts.urls")),
    path("", include("datasets.urls")),
    path("", include("training.urls")),
    path("", include("registry.urls")),
    path("", include("registry.serving.urls")),
]
