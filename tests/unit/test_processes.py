"""Supervised children, and the services that `up` starts."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dlplatform import embedded
from dlplatform.processes import Child, Supervisor, stop_tree


@pytest.fixture
def said():
    return []


@pytest.fixture
def supervisor(tmp_path, said):
    made = Supervisor(tmp_path / "logs", said.append)
    yield made
    made.stop()


def python(code):
    return [sys.executable, "-c", code]


def wait_for(look, seconds=60):
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_dead_child_is_started_again_and_said(supervisor, said):
    child = Child("brief", python("import time; time.sleep(600)"))
    supervisor.start(child)
    first = child.process.pid
    child.process.kill()
    child.process.wait()
    wait_for(lambda: supervisor.restart_the_dead() or child.process.pid != first)
    assert child.process.poll() is None
    assert said == ["brief ended (signal SIGKILL); starting it again"]


def test_a_child_that_runs_once_is_left_alone(supervisor, said):
    child = Child("once", python(""), once=True)
    supervisor.start(child)
    child.process.wait()
    supervisor.restart_the_dead()
    assert said == []


def test_stopping_takes_the_whole_tree_and_uses_force_at_last(supervisor, tmp_path):
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}]); {stubborn}"
    child = Child("stubborn", python(parent), grace=0.5)
    supervisor.start(child)
    wait_for(lambda: (tmp_path / "logs" / "stubborn.log").read_text() == "up\nup\n")
    family = [psutil.Process(child.process.pid), *psutil.Process(child.process.pid).children(recursive=True)]
    assert len(family) == 2
    supervisor.stop()
    wait_for(lambda: not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE])


def test_a_fork_is_a_child_like_any_other(supervisor, said, tmp_path):
    """It has a title, a session and a log of its own, and is started again when it dies."""

    def work():
        os.write(1, f"forked {os.getsid(0) == os.getpid()}\n".encode())
        time.sleep(600)

    child = Child("forked", ["python", "manage.py", "forked"], work=work)
    supervisor.start(child)
    first = child.process.pid
    wait_for(lambda: (tmp_path / "logs" / "forked.log").read_text() == "forked True\n")
    if sys.platform == "linux":
        assert " ".join(psutil.Process(first).cmdline()).strip() == "python manage.py forked"
    child.process.kill()
    assert child.process.wait(60) == -signal.SIGKILL
    wait_for(lambda: supervisor.restart_the_dead() or child.process.pid != first)
    assert said == ["forked ended (signal SIGKILL); starting it again"]
    with pytest.raises(subprocess.TimeoutExpired):
        child.process.wait(0.01)
    supervisor.stop()
    assert child.process.poll() == -signal.SIGTERM


def test_a_fork_that_is_asked_to_end_at_once_ends(supervisor):
    """Before it has let go of the handlers that it inherits, the request would be lost, and the stop take its grace."""
    for number in range(10):
        child = Child(f"brief-{number}", ["brief"], work=lambda: time.sleep(600), once=True)
        supervisor.start(child)
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(60) == -signal.SIGTERM


def test_a_fork_that_fails_is_told_with_its_code(supervisor, tmp_path):
    child = Child("failing", ["failing"], work=lambda: sys.exit(3), once=True)
    supervisor.start(child)
    assert child.process.wait(60) == 3


def test_a_fork_does_not_hold_the_folder_of_its_parent(supervisor, tmp_path):
    """Killed by force, `up` must be able to start again while its children are still ending."""
    with embedded.only_one(tmp_path):
        child = Child("lasting", ["lasting"], work=lambda: (os.write(1, b"started"), time.sleep(600)))
        supervisor.start(child)
        wait_for(lambda: (tmp_path / "logs" / "lasting.log").read_text() == "started")
    with embedded.only_one(tmp_path):
        assert child.process.poll() is None


def test_stop_tree_of_what_is_gone_is_nothing_and_takes_nobody_else():
    gone, other = subprocess.Popen(python("")), subprocess.Popen(python("import time; time.sleep(600)"))
    try:
        gone.wait()
        stop_tree(gone.pid, grace=0.1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_the_environment_file_is_private_and_keeps_what_it_has(tmp_path, monkeypatch):
    for name in ("SECRET_KEY", "DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    embedded.ensure_environment(tmp_path)
    first = embedded.read_environment(tmp_path)
    assert set(first) == {"SECRET_KEY", "DATABASE_URL", "REDIS_URL"}
    assert embedded.environment_file(tmp_path).stat().st_mode & 0o777 == 0o600
    embedded.ensure_environment(tmp_path)
    assert embedded.read_environment(tmp_path) == first
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/db")
    (tmp_path / "new").mkdir()
    embedded.ensure_environment(tmp_path / "new")
    assert set(embedded.read_environment(tmp_path / "new")) == {"SECRET_KEY", "REDIS_URL"}


def test_a_folder_belongs_to_one_at_a_time(tmp_path):
    with (
        embedded.only_one(tmp_path),
        pytest.raises(embedded.StartError, match="already running"),
        embedded.only_one(tmp_path),
    ):
        pass
    with embedded.only_one(tmp_path):
        pass


def test_reachability_looks_at_every_folder_and_changes_none(tmp_path):
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    owner = inner.stat().st_uid
    for mode, reachable in ((0o700, False), (0o755, True)):
        inner.parent.chmod(mode)
        shared = all(folder.stat().st_mode & 0o001 for folder in tmp_path.parents)
        assert embedded._reachable(inner, 54321) == (reachable and shared and bool(tmp_path.stat().st_mode & 0o001))
        assert inner.parent.stat().st_mode & 0o777 == mode
    assert embedded._reachable(inner, owner)


def test_ports_are_found_and_recognised_as_taken():
    import socket

    port = embedded.free_port()
    assert embedded.port_is_free("127.0.0.1", port)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        assert not embedded.port_is_free("127.0.0.1", port)


def test_valkey_is_taken_from_the_path_where_there_is_no_wheel(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setattr(
        embedded.shutil, "which", lambda name: "/usr/bin/redis-server" if name == "redis-server" else None
    )
    assert str(embedded._valkey_program()) == "/usr/bin/redis-server"
    monkeypatch.setattr(embedded.shutil, "which", lambda name: None)
    with pytest.raises(embedded.StartError, match="REDIS_URL"):
        embedded._valkey_program()
    with pytest.raises(embedded.StartError, match="DATABASE_URL"):
        embedded._postgres_binaries()


def test_signals_have_names_in_words():
    from dlplatform.processes import _how

    assert _how(-signal.SIGKILL) == "signal SIGKILL" and _how(3) == "exit code 3"
