from django.apps import AppConfig


class PlatformConfig(AppConfig):
    """The project package as an app: it owns the management commands and no table."""

    name = "dlplatform"
