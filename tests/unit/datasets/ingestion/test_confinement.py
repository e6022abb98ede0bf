"""What a child that has been taken over cannot do: reach the network, look into others, act as root."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datasets.ingestion import isolation
from datasets.ingestion.isolation import ingest_in_child
from datasets.ingestion.limits import Limits
from dlplatform.sandbox import kernel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of this system has no such confinement")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user to give up")
REAL = Path(isolation.__file__).parent
ATTEMPT = """
def attempt(family, address):
    try:
        with socket.socket(family) as own:
            own.settimeout(2)
            own.connect(address)
        return "connected"
    except OSError as error:
        return errno.errorcode[error.errno]
"""


@pytest.fixture
def in_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """``in_the_child(body)``: the real child, but where it would read the file, it runs this; the `outcome` it sets."""

    def run(body: str) -> Any:
        package = tmp_path / "impostor" / "datasets" / "ingestion"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (tmp_path / "impostor" / "dlplatform").symlink_to(isolation.PROJECT_ROOT / "dlplatform")
        for name in ("__init__.py", "__main__.py", "confinement.py"):
            shutil.copy(REAL / name, package)
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (package / "child.py").write_text(
            f"import errno, json, os, socket\n{ATTEMPT}\n"
            f"def run_job(job, send):\n{lines}\n    open('outcome', 'w').write(json.dumps(outcome))\n"
        )
        monkeypatch.setattr(isolation, "PROJECT_ROOT", tmp_path / "impostor")
        (tmp_path / "upload").write_text("a\n1\n")
        with caplog.at_level("INFO"):
            ingest_in_child(tmp_path / "upload", tmp_path / "parts", filename="d.csv", content_type="", limits=Limits())
        if "refuses to take the network away" in caplog.text:
            pytest.skip("the kernel of this machine refuses namespaces and filters")
        return json.loads((tmp_path / "parts" / "outcome").read_text())

    return run


def test_the_child_reaches_no_socket(in_the_child: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        port = tcp.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), 2).close()
        outcome = in_the_child(
            f"outcome = [attempt(socket.AF_INET, ('127.0.0.1', {port})), "
            f"attempt(socket.AF_UNIX, {str(tmp_path / 'socket')!r})]"
        )
    assert "connected" not in outcome
    assert set(outcome) <= {"EACCES", "EPERM", "ENETUNREACH"}


def test_the_child_has_no_privileges_and_gains_none(in_the_child: Any) -> None:
    status = in_the_child("outcome = dict(line.split(':', 1) for line in open('/proc/self/status'))")
    kept = int(status["CapEff"], 16) | int(status["CapPrm"], 16)
    assert kept & ~(1 << kernel.CAP_DAC_OVERRIDE) == 0
    assert kept == 0 or os.geteuid() == 0
    assert status["NoNewPrivs"].strip() == "1"


def _alone(tmp_path: Path, body: str) -> Any:
    """What a fresh interpreter, with `libc` and the confinement at hand, writes as JSON."""
    folder = tmp_path / "work"
    folder.mkdir()
    script = (
        "import ctypes, errno, json, os, socket\nfrom datasets.ingestion import confinement\n"
        f"libc = ctypes.CDLL(None, use_errno=True)\n{ATTEMPT}\n{body}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env={"PYTHONPATH": str(REAL.parents[1])}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize(("step", "answer"), [("_leave_network", "ENETUNREACH"), ("kernel.deny_reading", "EACCES")])
def test_either_means_alone_takes_the_network_away(tmp_path: Path, step: str, answer: str) -> None:
    body = (
        "confinement._drop_capabilities()\n" if step == "kernel.deny_reading" else ""
    ) + f"held = confinement.{step}()\nprint(json.dumps([held, attempt(socket.AF_INET, ('127.0.0.1', 9))]))"
    held, outcome = _alone(tmp_path, body)
    if not held:
        pytest.skip(f"the kernel of this machine refuses {step}")
    assert outcome == answer


@as_root
def test_root_becomes_nobody_and_reads_and_writes_only_what_it_needs(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "upload").write_text("the upload")
    (tmp_path / "secret").write_text("a secret")
    (tmp_path / "secret").chmod(0o600)
    body = f"""
secret = os.open({str(tmp_path)!r}, os.O_PATH)
confinement._program_folders = lambda: ["/"]
path, = confinement.confine([{str(tmp_path / "upload")!r}])
try:
    found = os.read(os.open("secret", os.O_RDONLY, dir_fd=secret), 9).decode()
except OSError as error:
    found = errno.errorcode[error.errno]
open("part-00000.parquet", "w").close()
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), open(path).read(), found]))"""
    nobody = [kernel.NOBODY] * 3
    assert _alone(tmp_path, body) == [nobody, nobody, [], "the upload", "EACCES"]
    isolation._take_back(tmp_path / "work")
    assert (tmp_path / "work").stat().st_uid == 0
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["part-00000.parquet"]
    assert (tmp_path / "upload").read_text() == "the upload"


@as_root
@pytest.mark.parametrize("closed", ["program", "upload"])
def test_root_stays_where_nobody_could_not_read(tmp_path: Path, closed: str) -> None:
    (tmp_path / "program").mkdir()
    (tmp_path / "upload").write_text("the upload")
    tmp_path.chmod(0o755)
    (tmp_path / closed).chmod(0o700)
    upload = str(tmp_path / "upload")
    body = f"""
confinement._program_folders = lambda: [{str(tmp_path / "program")!r}]
path, = confinement.confine([{upload!r}])
print(json.dumps([os.geteuid(), path, open(path).read()]))"""
    assert _alone(tmp_path, body) == [0, upload, "the upload"]
