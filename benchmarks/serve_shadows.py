"""What a bad shadow costs the live answers: p99 of a deployment alone, with a shadow that takes two seconds for each row, and
with one whose process dies at each row. Rounds take turns; requests come at a fixed rate, well below what the server can do.

    python -m benchmarks.serve_shadows [--short]
"""

import io
import multiprocessing
import zipfile
from typing import Any

import httpx

from tests.live import USERNAME, Platform

from .measuring import arguments, median, platform, quantile, report, spread, table
from .serve import Server, deployed, measured

LIMIT = 1.05
CONNECTIONS, EVERY = 8, 0.04  # 200 requests a second
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
    rounds, seconds = (5, 2.0) if short else (15, 4.0)
    with platform() as running, running.client() as client:
        slug = client.get("/me").json()["default_organization"]
        given = {"user": USERNAME, "role": "admin", "may_run_code": True}
        client.post(f"/organizations/{slug}/members", json=given).raise_for_status()
        server = deployed(running)
        data = running.upload(client, "for shadows", table())["id"]
        shadows = {name: bad_version(running, client, data, name) for name in SHADOWS}
        url = f"/deployments/{client.get('/deployments').json()['results'][0]['id']}"
        live = client.get(url).json()["variants"][0]["version"]
        times: dict[str, list[float]] = {name: [] for name in ("alone", *shadows)}
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            for _ in range(rounds):
                for name, found in times.items():
                    _shadow(client, url, live, shadows.get(name))
                    pool.apply(measured, [(server, CONNECTIONS, 2.0), EVERY])  # the shadow is loaded, its queue full
                    found.append(_p99(pool, server, seconds))
        copies = _copies(running)
    for name in shadows:
        ratios = [one / alone for one, alone in zip(times[name], times["alone"], strict=True)]
        report(
            "serve_shadows", f"a shadow that {name}, {CONNECTIONS / EVERY:.0f} requests/s", rounds=rounds, ratio=median(ratios),
            spread=spread(ratios), p99_ms=median([one * 1000 for one in times[name]]),
            alone_p99_ms=median([one * 1000 for one in times["alone"]]), copies=copies,
            limit=f"p99 at most {LIMIT} of the live ones alone", passes=median(ratios) <= LIMIT,
        )  # fmt: skip


def _shadow(client: httpx.Client, url: str, live: str, shadow: str | None) -> None:
    variants = [{"version": live}] + ([{"version": shadow, "role": "shadow", "weight": 0}] if shadow else [])
    client.patch(url, json={"variants": variants}).raise_for_status()


def _p99(pool: Any, server: Server, seconds: float) -> float:
    _, times = pool.apply(measured, [(server, CONNECTIONS, seconds), EVERY])
    return quantile(times, 0.99)


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
