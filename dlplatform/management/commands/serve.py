"""`manage.py serve`: the inference process, on SERVE_PORT."""

from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Answer predictions for the web process on HOST:SERVE_PORT."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        from registry.serving.application import application, warm_up

        warm_up()
        uvicorn.run(
            application,
            host=settings.HOST,
            port=settings.SERVE_PORT,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=10,
            lifespan="off",
        )
