"""Runs on two machines: another worker, under another name and with a folder of its own, is the second one."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from dlplatform import embedded
from tests.e2e.test_faults import as_csv
from tests.integration.conftest import flower_rows
from tests.live import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("platform")]

CONFIG = {
    "architecture": "mlp", "epochs": 60, "early_stopping": False, "batch_size": 16, "threads": 1, "seed": 11,
    "importance": False, "checkpoint_seconds": 0.5, "nodes": 2,
}  # fmt: skip


class Machine:
    """A worker that shares PostgreSQL, Valkey and the objects with the platform, and no folder of jobs."""

    def __init__(self, platform, home):
        ours = embedded.read_environment(platform.home)
        self.environment = platform.environment | ours | {
            "NODE_NAME": "second", "DLP_HOME": str(home), "MODEL_STORAGE_PATH": str(platform.home / "models"),
            "DATASET_PATH": str(platform.home / "datasets"),
        }  # fmt: skip
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "worker", "--count", "1", "--queue", "training"],
            env=self.environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def die(self):
        """As if its power were cut."""
        root = psutil.Process(self.process.pid)
        for one in [root, *root.children(recursive=True)]:
            os.kill(one.pid, signal.SIGKILL)
        self.process.wait(timeout=60)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def client(platform):
    with platform.client() as made:
        yield made


@pytest.fixture(scope="module")
def version(platform, client):
    return platform.upload(client, "flowers for two machines", as_csv(flower_rows()))["id"]


@pytest.fixture(scope="module")
def waited(platform, client, version):
    """A run for two machines that was queued while there was one."""
    run = platform.train(client, version, task="classification", target="kind", config=CONFIG)
    said = platform.wait(
        lambda: {"state": client.get(f"/runs/{run['id']}").json()["phase"]},
        ("waiting for 2 machines: 1 of 2 machines have workers",),
    )
    return run | said


@pytest.fixture(scope="module")
def machine(platform, waited, tmp_path_factory):
    made = Machine(platform, tmp_path_factory.mktemp("second"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def undisturbed(platform, client, waited, machine):
    return outcome(platform, client, waited)


def outcome(platform, client, run):
    ended = platform.finished(client, run["id"], 180)
    assert ended["state"] == "succeeded", ended["error"]
    assert ended["environment"]["processes"] == 2
    files = client.get(f"/model-versions/{ended['output_version']}").json()["files"]
    return files["model.safetensors"]["sha256"], ended["attempt"]


def messages(client, run):
    return [line["message"] for line in client.get(f"/runs/{run['id']}/logs").json()["results"]]


def under_way(platform, client, version):
    run = platform.train(client, version, task="classification", target="kind", config=CONFIG)
    platform.wait(lambda: {"state": client.get(f"/runs/{run['id']}").json()["epoch"] > 3}, (True,), 120)
    return run


def test_a_run_waits_for_its_machines_and_trains_on_both(undisturbed, client, waited):
    assert undisturbed[1] == 1
    said = [line for line in messages(client, waited) if "waits" in line]
    assert said[0] == "The run trains on 2 machines and waits: 1 of 2 machines have workers."


def test_the_loss_of_a_machine_costs_nothing(platform, client, version, machine, undisturbed):
    run = under_way(platform, client, version)
    machine.die()
    platform.wait(lambda: {"state": client.get(f"/runs/{run['id']}").json()["phase"]}, ("waiting for second",), 120)
    machine.start()
    weights, attempts = outcome(platform, client, run)
    assert weights == undisturbed[0] and attempts == 2


def test_a_machine_that_is_stopped_hands_the_run_over(platform, client, version, machine, undisturbed):
    run = under_way(platform, client, version)
    machine.stop()
    platform.wait(lambda: client.get(f"/runs/{run['id']}").json(), ("queued", "preparing"), 120)
    assert any("is stopping; the run goes on" in line for line in messages(client, run))
    machine.start()
    assert outcome(platform, client, run)[0] == undisturbed[0]


def test_a_cancel_leaves_no_process_on_either(platform, client, version, machine, undisturbed):
    run = under_way(platform, client, version)
    client.post(f"/runs/{run['id']}/cancel").raise_for_status()
    assert platform.finished(client, run["id"], 120)["state"] == "cancelled"
    platform.wait(lambda: {"state": engines(machine)}, (0,), 60)


def engines(machine):
    return sum(is_engine(one) for one in psutil.Process(machine.process.pid).children(recursive=True))


def is_engine(process):
    try:
        return "dlplatform.engine" in process.cmdline()
    except psutil.Error:  # it is just ending
        return False
