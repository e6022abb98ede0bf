"""Every URL of the platform, app by app."""

from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularRedocView, SpectacularSwaggerView

from . import health

api = [
    path("", include("dlplatform.accounts.api_urls")),
    path("", include("datasets.api_urls")),
    path("", include("training.api_urls")),
    path("", include("registry.api_urls")),
]


class SchemaView(SpectacularAPIView):
    policy = {"GET": "public"}


class DocsView(SpectacularSwaggerView):
    policy = {"GET": "public"}


class RedocView(SpectacularRedocView):
    policy = {"GET": "public"}


urlpatterns = [
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("metrics", health.metrics),
    path("openapi.json", login_not_required(SchemaView.as_view()), name="schema"),
    path("docs", login_not_required(DocsView.as_view(url_name="schema")), name="docs"),
    path("redoc", login_not_required(RedocView.as_view(url_name="schema")), name="redoc"),
    path("api/v1/", include(api)),
    path("", include("registry.hub.urls")),
    path("admin/", admin.site.urls),
    path("", include("dlplatform.accounts.urls")),
    path("", include("datasets.urls")),
    path("", include("training.urls")),
    path("", include("registry.urls")),
]
