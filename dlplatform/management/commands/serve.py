"""`manage.py serve`: the inference server, on SERVE_PORT."""

import os
import shutil
from typing import Any

import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand

from dlplatform.http_protocol import WholeAnswers

GRACE_SECONDS = 10
APPLICATION = "registry.serving.server.process:application"


class Command(BaseCommand):
    help = "Answer predictions of deployments on HOST:SERVE_PORT."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.SERVE_PROCESSES > 1:
            _share_metrics()
        uvicorn.run(
            APPLICATION,
            factory=True,
            http=WholeAnswers,
            ws="none",
            workers=settings.SERVE_PROCESSES,  # of several, uvicorn starts the dead again and passes signals on
            host=settings.HOST,
            port=settings.SERVE_PORT,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody asks for the caller's address
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_worker_healthcheck=30,  # a process that loads a large model is not dead
            lifespan="on",
        )


def _share_metrics() -> None:
    """A folder in which the processes add up what Prometheus reads; they import its library after this."""
    folder = settings.DLP_HOME / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
