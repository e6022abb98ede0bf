"""Several inference processes on one port, as `manage.py serve` starts them."""

import os
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest
from django.conf import settings
from django.db import connection

from dlplatform import embedded
from registry.serving import processes
from tests.fixtures.inference import eventually
from tests.integration.answering import deployed, key_of, three_versions
from tests.live import ROOT

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


@pytest.fixture
def serving(tmp_path, empty_queues):
    port = embedded.free_port()
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    environment = os.environ | {
        "DATABASE_URL": f"{base}/{connection.settings_dict['NAME']}", "SERVE_PORT": str(port), "SERVE_PROCESSES": "2",
        "DLP_HOME": str(tmp_path), "SECRET_KEY": settings.SECRET_KEY, "SERVE_KEY_RATE": "1",
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "manage.py", "serve"], cwd=ROOT, env=environment)
    yield process, f"http://127.0.0.1:{port}"
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(address, path="/readyz"):
    """By a connection of its own."""
    try:
        return httpx.get(address + path, timeout=10, trust_env=False)
    except httpx.HTTPError:
        return None


def workers(process):
    return {one.pid for one in psutil.Process(process.pid).children() if is_worker(one)}


def is_worker(process):
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:  # it is just ending
        return False


def test_one_that_is_killed_is_started_again_while_the_others_go_on(serving):
    process, address = serving
    eventually(lambda: len(workers(process)) == 2 and (told := answers(address)) and told.status_code == 200, 90)
    eventually(lambda: "dlplatform_inference_deployments 0.0" in answers(address, "/metrics").text)
    eventually(lambda: len(processes.told()) == 2, 20)
    before = workers(process)
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    killed_at = time.monotonic()
    for _ in range(50):
        told = answers(address, "/healthz")
        assert told is not None and told.status_code == 200, "the other one answers"
    eventually(lambda: len(workers(process)) == 2 and killed not in workers(process), 90)
    assert before & workers(process), "the other one was left alone"
    forgotten_at = killed_at + processes.KEPT_SECONDS + 0.5  # what the killed one said last
    eventually(lambda: time.monotonic() > forgotten_at and len(processes.told()) == 2 and answers(address), 90)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) is not None
    assert answers(address) is None and processes.told() == [], "who has ended says nothing"


def test_a_key_has_its_rate_once_and_not_in_each_process(serving, viewer, maintainer, organization):
    """The versions cannot be loaded, and nothing is asked of them: what the limit lets pass has no rows."""
    process, address = serving
    deployed(maintainer, organization, three_versions(organization)[0])
    headers = {"Authorization": f"Bearer {key_of(viewer)}", "Content-Type": "application/json"}
    eventually(lambda: len(workers(process)) == 2 and answers(address), 90)
    eventually(lambda: "dlplatform_inference_deployments 1.0" in answers(address, "/metrics").text, 90)

    def ask():
        url = f"{address}/api/v1/deployments/screening/predict"
        return httpx.post(url, content="{}", headers=headers, timeout=10, trust_env=False).status_code

    began, told = time.monotonic(), []
    while time.monotonic() - began < 8:
        told.append(ask())
        time.sleep(0.03)
    passed = time.monotonic() - began
    assert set(told) == {400, 429}
    assert passed - 1 <= told.count(400) <= passed + 6, "apart they would let twice as many pass"
    assert passed + 6 < 2 * passed + 4
