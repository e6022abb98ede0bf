"""Early plugin: real PostgreSQL and Valkey for the tests, unless DATABASE_URL and REDIS_URL name others.

Loaded by `-p tests.services` before Django's settings are read. Parallel test processes share the servers and get
a database and a Valkey number of their own.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dlplatform import embedded
from dlplatform.processes import die_with_parent, stop_tree

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")


def _start(home: Path) -> None:
    embedded.ensure_environment(home)
    values = embedded.read_environment(home)
    services = {"DATABASE_URL": embedded.Postgres, "REDIS_URL": embedded.Valkey}
    parent = os.getpid()
    for name, kind in services.items():
        if name in os.environ:
            continue
        service = kind(home, values[name])
        described = service.prepare()
        child = subprocess.Popen(
            described.command,
            user=described.user,
            group=described.group,
            extra_groups=[] if described.user is not None else None,
            env={**os.environ, **described.environment},
            stdout=(home / f"{described.name}.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            preexec_fn=lambda sent=described.stop_signal: die_with_parent(sent, parent),
        )
        atexit.register(stop_tree, child.pid, grace=20)
        service.wait_until_ready()
        os.environ[name] = values[name]


def _begin() -> None:
    home = Path(tempfile.mkdtemp(prefix="dlp-tests-"))
    if os.geteuid() == 0:
        home.chmod(0o755)  # PostgreSQL runs as another user
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["DLP_HOME"] = str(home)
    if WORKER:
        number = int(WORKER.removeprefix("gw")) + 1
        base, _, _ = os.environ["REDIS_URL"].rpartition("/")
        os.environ["REDIS_URL"] = f"{base}/{number % 16}"
    else:
        _start(home)


if "pytest" in sys.modules:
    _begin()
