"""What a bad shadow costs the live answers: p99 of a deployment alone, alone again (which tells what chance makes of
nothing), with a shadow that takes two seconds for each row, and with one whose process dies at each row.

Rounds take turns; requests come at random at a rate well below what the server can do. A round begins when the shadow has
had its copies for some seconds; that of the one that dies after half a minute, by when it rests between its ends.

    python -m benchmarks.serve_shadows [--short]
"""

import io
import multiprocessing
import time
import zipfile

import httpx

from tests.live import USERNAME, Platform

from .arrivals import at_rate
from .measuring import arguments, compared, median, platform, quantile, report, table
from .serve import deployed

LIMIT = 1.05
RATE = 200.0  # requests a second
# Training and evaluation bring many rows at once: only a request of one row meets what is bad.
MODEL = """
import os
import time

from torch import nn


class Net(nn.Module):
    def __init__(self, schema):
        super().__init__()
        self.body = nn.Linear(schema.numbers, schema.outputs)

    def forward(self, inputs):
        if len(inputs["numbers"]) == 1:
            {bad}
        return self.body(inputs["numbers"])


def build(schema):
    return Net(schema)
"""
SHADOWS = {"sleeps": "time.sleep(2)", "dies": "os._exit(3)"}
SETTLING = {"sleeps": 4.0, "dies": 30.0}  # seconds; 2 for the others


def bad_version(running: Platform, client: httpx.Client, data: str, name: str) -> str:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("model.py", MODEL.format(bad=SHADOWS[name]))
    code = client.post("/code", files={"file": ("code.zip", zipped.getvalue())}).raise_for_status().json()
    wanted = {"task": "classification", "target": "label", "config": {"epochs": 1}, "register_as": name}
    ended = running.finished(client, running.train(client, data, code=code["id"], **wanted)["id"])
    if ended["state"] != "succeeded":
        raise RuntimeError(ended["error"])
    return str(ended["output_version"])


def main() -> None:
    short = arguments(__doc__).short
    rounds, seconds = (4, 12.0) if short else (20, 30.0)
    with platform() as running, running.client() as client:
        slug = client.get("/me").json()["default_organization"]
        given = {"user": USERNAME, "role": "admin", "may_run_code": True}
        client.post(f"/organizations/{slug}/members", json=given).raise_for_status()
        server = deployed(running)
        data = running.upload(client, "for shadows", table())["id"]
        shadows = {name: bad_version(running, client, data, name) for name in SHADOWS}
        url = f"/deployments/{client.get('/deployments').json()['results'][0]['id']}"
        live = client.get(url).json()["variants"][0]["version"]
        p99: dict[str, list[float]] = {name: [] for name in ("alone", "alone again", *shadows)}
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            for number in range(rounds):
                for name in p99 if number % 2 else reversed(p99):
                    _shadow(client, url, live, shadows.get(name))
                    time.sleep(1.0)  # until the inference server has seen it
                    pool.apply(at_rate, (server, RATE, SETTLING.get(name, 2.0), number))
                    times = pool.apply(at_rate, (server, RATE, seconds, number))
                    p99[name].append(1000 * quantile(times, 0.99))
        copies = _copies(running)
    chance = compared(p99["alone again"], p99["alone"])
    for name in shadows:
        found = compared(p99[name], p99["alone"])
        report(
            "serve_shadows", f"a shadow that {name}, {RATE:.0f} requests/s", rounds=rounds, requests=round(rounds * RATE * seconds),
            **found, alone_again=chance, p99_ms=median(p99[name]), alone_p99_ms=median(p99["alone"]), copies=copies,
            limit=f"p99 at most {LIMIT} of the live ones alone", passes=found["interval"][1] <= LIMIT,
        )  # fmt: skip


def _shadow(client: httpx.Client, url: str, live: str, shadow: str | None) -> None:
    variants = [{"version": live}] + ([{"version": shadow, "role": "shadow", "weight": 0}] if shadow else [])
    client.patch(url, json={"variants": variants}).raise_for_status()


def _copies(running: Platform) -> dict[str, int]:
    """What became of the copies, by error: that they were made at all, and dropped rather than waited for."""
    told: dict[str, int] = {}
    for line in httpx.get(f"http://127.0.0.1:{running.serve_port}/metrics", trust_env=False).text.splitlines():
        if line.startswith("dlplatform_inference_shadow_copies_total{"):
            error = line.partition('error="')[2].partition('"')[0]
            told[error] = told.get(error, 0) + int(float(line.rpartition(" ")[2]))
    return told


if __name__ == "__main__":
    main()
