"""`manage.py up`: everything on one machine, with one command and one Ctrl-C."""

import gc
import http.client
import io
import multiprocessing
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from dlplatform import embedded
from dlplatform.processes import Child, Supervisor

START_SECONDS = 90.0


class Command(BaseCommand):
    help = "Start PostgreSQL, Valkey, web, inference, workers and the scheduler; Ctrl-C stops them."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job starts with SIGINT ignored
            signal.signal(number, signal.default_int_handler)
        try:
            with embedded.only_one(settings.DLP_HOME):
                self._run()
        except embedded.StartError as error:
            raise CommandError(str(error)) from None

    def _run(self) -> None:
        _require_free_ports()
        embedded.close_to_others(settings.DLP_HOME)
        supervisor = Supervisor(settings.DLP_HOME / "logs", self._say)
        try:
            self._start(supervisor)
            self._say("Ctrl-C stops everything. Logs: " + str(supervisor.logs))
            while True:
                time.sleep(0.5)
                supervisor.restart_the_dead()
        except KeyboardInterrupt:
            self._say("Stopping …")
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            supervisor.stop()

    def _start(self, supervisor: Supervisor) -> None:
        for service in _embedded_services(settings.DLP_HOME):
            _start_service(supervisor, service)
        first_admin = _prepare_database()
        gc.collect()
        gc.freeze()  # collections in the forks would copy the pages that they share
        for child in _own_processes():
            supervisor.start(child)
        _wait_until_ready(supervisor)
        if first_admin and settings.DLP_SAMPLES:
            supervisor.start(_management("samples", once=True))
        address = (
            f"http://{'localhost' if settings.HOST in ('127.0.0.1', '0.0.0.0') else settings.HOST}:{settings.PORT}"  # noqa: S104
        )
        self._say(f"DL Platform is ready: {address}")
        if first_admin:
            self._say(first_admin)

    def _say(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def _require_free_ports() -> None:
    if settings.PORT == settings.SERVE_PORT:
        raise embedded.StartError(f"PORT and SERVE_PORT are both {settings.PORT}; give each a port of its own")
    for name, port in (("PORT", settings.PORT), ("SERVE_PORT", settings.SERVE_PORT)):
        if not embedded.port_is_free(settings.HOST, port):
            raise embedded.StartError(f"Port {port} is in use by another program; choose a free one: {name}=… make run")


def _embedded_services(home: Path) -> list[embedded.Postgres | embedded.Valkey]:
    """The servers to start ourselves: those whose address came from our own environment file."""
    ours = embedded.read_environment(home)
    services: list[embedded.Postgres | embedded.Valkey] = []
    if ours.get("DATABASE_URL") == settings.DATABASE_URL:
        services.append(embedded.Postgres(home, settings.DATABASE_URL))
    if ours.get("REDIS_URL") == settings.REDIS_URL:
        services.append(embedded.Valkey(home, settings.REDIS_URL))
    return services


def _start_service(supervisor: Supervisor, service: embedded.Postgres | embedded.Valkey) -> None:
    described = service.prepare()
    supervisor.start(
        Child(
            described.name,
            described.command,
            described.user,
            described.group,
            described.stop_signal,
            grace=30.0,
            environment=described.environment,
        )
    )
    service.wait_until_ready()


def _prepare_database() -> str | None:
    """Migrate and make the first admin; the line that tells their password, if one was made.

    In a forked process: what migrations load would otherwise stay in this one's memory for good.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as process:
        return process.submit(_prepare).result() or None


def _prepare() -> str:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    told = io.StringIO()
    call_command("prepare", stdout=told)
    return told.getvalue().strip()


def _own_processes() -> list[Child]:
    """Web, workers, scheduler, inference."""
    return [
        _management("web", grace=15.0),
        _management("worker", grace=40.0),
        _management("scheduler", grace=5.0),
        _management("serve", grace=25.0),
    ]


def _management(command: str, *, grace: float = 15.0, once: bool = False) -> Child:
    """A management command as a child: a fork of this process where forking is safe, which macOS does not promise."""
    work = partial(call_command, command) if sys.platform == "linux" else None
    return Child(
        command, [sys.executable, str(settings.BASE_DIR / "manage.py"), command], work=work, grace=grace, once=once
    )


def _wait_until_ready(supervisor: Supervisor) -> None:
    host = "127.0.0.1" if settings.HOST == "0.0.0.0" else settings.HOST  # noqa: S104
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        supervisor.restart_the_dead()
        if _answers(host):
            return
        time.sleep(0.1)
    raise embedded.StartError(f"The web process did not become ready; see {supervisor.logs / 'web.log'}")


def _answers(host: str) -> bool:
    try:
        asked = http.client.HTTPConnection(host, settings.PORT, timeout=2)
        asked.request("GET", "/readyz", headers={"Host": "localhost"})
        return asked.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
