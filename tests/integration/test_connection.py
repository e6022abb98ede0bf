"""The local connection: what the forked engine has, has not, and leaves behind."""

import os
import signal
import socket
import time

import coverage
import psutil
import pytest

from tests.fixtures.inference import eventually
from training.connection import OUTPUT_FILE, LocalConnection


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """``engine(work)`` forks a child that runs ``work(directory)`` in place of training."""
    started = []

    def start(work):
        def run_job(directory):
            leave = os._exit

            def save_and_leave(code):  # a child that leaves by _exit saves no coverage by itself
                if measuring := coverage.Coverage.current():
                    measuring.stop()
                    measuring.save()
                leave(code)

            os._exit = save_and_leave
            code = work(directory)
            if isinstance(code, BaseException):
                raise code
            return code

        monkeypatch.setattr("dlplatform.engine.run.run_job", run_job)
        connection = LocalConnection()
        connection.start(tmp_path)
        started.append(connection)
        return connection

    yield start
    for connection in started:
        connection.kill()


def ended(connection):
    eventually(lambda: connection.poll() is not None)
    return connection.poll()


def test_the_engine_has_a_session_of_its_own_and_no_credentials(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "do not tell")

    def work(directory):
        assert os.getsid(0) == os.getpid()
        assert "SECRET_KEY" not in os.environ and "DATABASE_URL" not in os.environ
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert os.getcwd() == str(directory)
        print("heard", flush=True)
        return 7

    assert ended(engine(work)) == 7
    assert "heard" in (tmp_path / OUTPUT_FILE).read_text()


def test_inherited_sockets_point_at_nothing_and_their_numbers_stay_taken(engine):
    ours, theirs = socket.socketpair()

    def work(directory):
        number = theirs.fileno()
        assert not os.path.sameopenfile(number, 1)
        assert os.fstat(number).st_rdev == os.stat(os.devnull).st_rdev
        with open(directory / "file", "w") as fresh:
            assert fresh.fileno() != number
            theirs.close()  # what the garbage collector does sooner or later
            fresh.write("whole")
        return 0 if (directory / "file").read_text() == "whole" else 1

    assert ended(engine(work)) == 0
    ours.sendall(b"still open")
    assert theirs.recv(10) == b"still open"


def test_an_exception_is_told_in_the_output_and_by_the_exit_code(engine, tmp_path):
    assert ended(engine(lambda _: RuntimeError("beyond the engine's own boundary"))) == 1
    assert "beyond the engine's own boundary" in (tmp_path / OUTPUT_FILE).read_text()


def test_an_interrupt_reaches_the_engine_and_a_kill_takes_its_children_too(engine, tmp_path):
    def patient(directory):
        signal.signal(signal.SIGTERM, lambda *_: (directory / "asked").touch())
        if os.fork() == 0:
            time.sleep(600)
        (directory / "ready").touch()
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            time.sleep(0.05)
        return 0

    connection = engine(patient)
    eventually((tmp_path / "ready").exists)
    family = psutil.Process(connection._pid).children(recursive=True)
    assert len(family) == 1 and connection.poll() is None
    connection.interrupt()
    eventually((tmp_path / "asked").exists)
    connection.kill()
    assert connection.poll() == -signal.SIGKILL
    psutil.wait_procs(family, 60)
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert connection.dump_stacks() == ""
    connection.kill()


def test_nothing_was_started_yet():
    connection = LocalConnection()
    assert connection.poll() is None
    connection.interrupt()
    connection.kill()
