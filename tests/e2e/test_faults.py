"""Faults injected into a running platform: whatever is killed, the run ends with the same weights and metrics.

FAULT_REPEATS=10 repeats every kill ten times, as the acceptance asks; once is what every run of the suite does.
"""

import os
import random
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.fixtures.inference import eventually
from tests.integration.conftest import flower_rows

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("platform")]

REPEATS = int(os.environ.get("FAULT_REPEATS", "1"))
VICTIMS = ("engine", "worker", "web", "valkey", "postgres")
CONFIG = {
    "architecture": "mlp", "epochs": 120, "early_stopping": False, "batch_size": 16, "threads": 1, "seed": 11,
    "importance": False, "checkpoint_seconds": 0.5,
}  # fmt: skip


def as_csv(rows):
    return "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]).encode()


@pytest.fixture(scope="module")
def client(platform):
    with platform.client() as made:
        yield made


@pytest.fixture(scope="module")
def version(platform, client):
    ready = platform.upload(client, "flowers for faults", as_csv(flower_rows()))
    assert ready["state"] == "ready", ready
    return ready["id"]


def outcome(platform, client, run):
    ended = platform.finished(client, run["id"], 300)
    assert ended["state"] == "succeeded", ended["error"]
    files = client.get(f"/model-versions/{ended['output_version']}").json()["files"]
    series = client.get(f"/runs/{run['id']}/metrics", params={"max_points": 10000}).json()["series"]
    return files["model.safetensors"]["sha256"], series


@pytest.fixture(scope="module")
def undisturbed(platform, client, version):
    """Weights and metrics of the same run with nothing killed."""
    run = platform.train(client, version, task="classification", target="kind", config=CONFIG)
    return outcome(platform, client, run)


@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_at_a_random_moment_changes_nothing(platform, client, version, undisturbed, victim, repeat):
    run = platform.train(client, version, task="classification", target="kind", config=CONFIG)
    # A random moment of the training, not of the clock: a fast machine has not ended, a slow one has begun.
    moment = random.randint(1, CONFIG["epochs"] // 4)
    platform.wait(lambda: {"state": client.get(f"/runs/{run['id']}").json()["epoch"] >= moment}, (True,), 120)
    eventually(lambda: platform.processes(victim))[0].send_signal(signal.SIGKILL)
    weights, series = outcome(platform, client, run)
    assert weights == undisturbed[0]
    assert series == undisturbed[1]
    assert platform.processes("engine") == []


def test_ctrl_c_stops_everything_and_the_next_start_finds_all_data():
    from tests.live import Platform

    with Platform() as other:
        with other.client() as client:
            ready = other.upload(client, "kept", as_csv(flower_rows()))
            run = other.train(client, ready["id"], task="classification", target="kind", config=CONFIG)
            other.wait(lambda: client.get(f"/runs/{run['id']}").json(), ("running",), 120)
        family = psutil.Process(other.process.pid).children(recursive=True)
        other.stop()
        assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
        other.start()
        with other.client() as client:
            assert [row["name"] for row in client.get("/datasets").json()["results"]] == ["kept"]
            assert other.finished(client, run["id"], 120)["state"] == "succeeded"


def test_a_second_start_in_the_same_folder_says_so(platform):
    environment = platform.environment | {"PORT": "1", "SERVE_PORT": "2"}
    command = [platform.process.args[0], *platform.process.args[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "already running" in done.stderr


def test_a_busy_port_is_a_clear_message(platform, tmp_path):
    environment = platform.environment | {"DLP_HOME": str(tmp_path / "other")}
    done = subprocess.run(list(platform.process.args), env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"Port {platform.port} is in use" in done.stderr
    assert Path(tmp_path / "other").exists()
