"""`manage.py web`: pages, API and sockets on one port, by uvicorn."""

from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand

MESSAGE_BYTES = 64 * 1024


class Command(BaseCommand):
    help = "Serve pages, API and WebSockets on HOST:PORT."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        uvicorn.run(
            "dlplatform.asgi:application",
            host=settings.HOST,
            port=settings.PORT,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=settings.NUM_PROXIES > 0,
            timeout_graceful_shutdown=10,
            ws_max_size=MESSAGE_BYTES,
            lifespan="off",
        )
