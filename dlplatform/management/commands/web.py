"""`manage.py web`: pages, API and sockets on one port, by uvicorn."""

import resource
from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand

from dlplatform.http_protocol import HttpProtocol

MESSAGE_BYTES = 64 * 1024


class Command(BaseCommand):
    help = "Serve pages, API and WebSockets on HOST:PORT."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        _raise_open_files()
        share_connections()
        uvicorn.run(
            "dlplatform.asgi:application",
            host=settings.HOST,
            port=settings.PORT,
            http=HttpProtocol,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=settings.NUM_PROXIES > 0,
            timeout_graceful_shutdown=10,
            ws_max_size=MESSAGE_BYTES,
            ws_per_message_deflate=False,  # a compressor for every socket and message costs more than it saves
            lifespan="off",
        )


def _raise_open_files() -> None:
    """As many sockets as the system allows; the usual soft limit of 1,024 is for select(), which nobody here uses."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def share_connections() -> None:
    """A pool for the threads of this process, which would otherwise keep a connection each."""
    pool = {"min_size": 1, "max_size": settings.DATABASE_POOL_SIZE, "timeout": 20}
    settings.DATABASES["default"].update(CONN_MAX_AGE=0, OPTIONS={"pool": pool})
