"""A whole running platform for tests: started by `manage.py up`, killed in parts, stopped as a whole."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from dlplatform import embedded

ROOT = Path(__file__).resolve().parent.parent
USERNAME, PASSWORD = "admin", "password-1234"
START_SECONDS = 300.0


class Platform:
    """`manage.py up` in a folder of its own, on free ports. Use as a context."""

    def __init__(self, **environment: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="dlp-live-")
        self.home = Path(self.folder.name) / "data"
        if os.geteuid() == 0:
            Path(self.folder.name).chmod(0o755)
        self.port, self.serve_port = embedded.free_port(), embedded.free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        inherited = {
            name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY")
        }
        self.environment = inherited | {
            "DLP_HOME": str(self.home), "PORT": str(self.port), "SERVE_PORT": str(self.serve_port),
            "DLP_ADMIN_PASSWORD": PASSWORD, "DLP_SAMPLES": "0", "MAX_WORKERS": "1", **environment,
        }  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self.folder.cleanup()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "up"],
            env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the platform did not start: {self.process.stdout.read()}")  # type: ignore[union-attr]
            try:
                if httpx.get(f"{self.address}/readyz", timeout=10).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise AssertionError("the platform did not become ready")

    def stop(self) -> str:
        """Ctrl-C; what it printed."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=90)
        return output

    # --- the API as a program sees it ---------------------------------------------------------------

    def client(self) -> httpx.Client:
        answer = httpx.post(
            f"{self.address}/api/v1/auth/token", json={"username": USERNAME, "password": PASSWORD}, timeout=20
        )
        token = answer.raise_for_status().json()["access"]
        return httpx.Client(base_url=f"{self.address}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def upload(self, client: httpx.Client, name: str, content: bytes, filename: str = "data.csv") -> dict[str, Any]:
        """A dataset with one version, waited for until it is ingested; the version."""
        dataset = client.post("/datasets", json={"name": name}).raise_for_status().json()
        path = f"/datasets/{dataset['id']}/versions"
        sent = client.post(path, params={"filename": filename}, content=content, headers={"Content-Type": "text/csv"})
        number = sent.raise_for_status().json()["number"]
        return self.wait(lambda: client.get(f"{path}/{number}").json(), ("ready", "rejected", "cancelled"))

    def train(self, client: httpx.Client, version: str, **wanted: Any) -> dict[str, Any]:
        return client.post("/runs", json={"dataset_version": version, **wanted}).raise_for_status().json()

    def finished(self, client: httpx.Client, run: str, seconds: float = 300) -> dict[str, Any]:
        return self.wait(lambda: client.get(f"/runs/{run}").json(), ("succeeded", "failed", "cancelled"), seconds)

    def wait(self, look: Any, states: tuple[str, ...], seconds: float = 120) -> dict[str, Any]:
        """Look until the state is one of these, through failures of whatever was killed meanwhile."""
        deadline = time.monotonic() + seconds
        seen: Any = None
        while time.monotonic() < deadline:
            try:
                seen = look()
                if seen.get("state") in states:
                    return seen
            except (httpx.HTTPError, ValueError):
                pass
            time.sleep(0.1)
        raise AssertionError(f"still {seen} after {seconds} s")

    # --- its processes ------------------------------------------------------------------------------

    def processes(self, name: str) -> list[psutil.Process]:
        """web, worker, scheduler, serve (their first process first), postgres, valkey or engine."""
        assert self.process is not None
        family = psutil.Process(self.process.pid).children(recursive=True)
        if name == "engine":
            return [one for one in family if _is_engine(one, self.home)]
        found = [one for one in family if _runs(one, name)]
        return sorted(found, key=lambda one: one.create_time())


def _runs(process: psutil.Process, name: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    if name in ("postgres", "valkey"):
        return bool(command) and name in Path(command[0].split(":")[0]).name
    words = " ".join(command).split()  # the title of a fork is one text
    return name in words[-2:]


def _is_engine(process: psutil.Process, home: Path) -> bool:
    """The engine is a fork of the worker that works inside its job directory."""
    try:
        return Path(process.cwd()).parent == home / "jobs"
    except psutil.Error:
        return False
