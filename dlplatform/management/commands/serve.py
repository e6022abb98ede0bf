"""`manage.py serve`: the inference server, on SERVE_PORT."""

from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand

GRACE_SECONDS = 10


class Command(BaseCommand):
    help = "Answer predictions of deployments on HOST:SERVE_PORT."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        from registry.serving.server.application import InferenceServer, warm_up

        warm_up()
        uvicorn.run(
            InferenceServer(),
            host=settings.HOST,
            port=settings.SERVE_PORT,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            lifespan="on",
        )
