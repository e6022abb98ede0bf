"""Predictions of a small MLP and of a CNN over HTTP: the inference server as it is, with credentials and the prediction log,
beside peers.

The CNN answers as a graph, as it does by itself once it was asked a thousand times. Two more deployments answer with the variants that
`torch-compile` and `onnx` make of it; the limits are judged by the first, and what the best of the three reaches stands beside it.
The ceiling is the lower of an ASGI application on uvicorn that answers a constant, and torch alone on 64 rows at a time. A bare
application there runs the same network as FastAPI, one request after the other, and looks at nothing. FastAPI, LitServe (batched) and `mlflow models serve` run
an MLP written by hand, or the very network of the CNN on images that they decode with Pillow, without credentials and log;
they are measured where they are installed: `pip install --target peers litserve mlflow`, then BENCHMARK_PEERS=peers (or
peers:others). All take turns, round by round;
the client has a process of its own on the same machine.

With `--processes 2` ours answers with as many processes, and so do the ceiling, FastAPI, mlflow, and LitServe's workers.

    python -m benchmarks.serve [--short] [--processes 1]
"""

import argparse
import asyncio
import base64
import importlib.util
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
from PIL import Image

from dlplatform import embedded
from tests.live import ROOT, Platform

from .images import digits
from .measuring import median, platform, quantile, report, spread, table, uncollected

CONNECTIONS = (1, 8, 64)
LIMIT_LITSERVE = 3.0  # times its requests a second, at 8 and 64 connections
LIMIT_FASTAPI = 1.0  # at each
LIMIT_CEILING = 0.6  # of the lower of a constant's requests and torch's rows a second
PEERS = ("fastapi", "litserve", "mlflow")
BODY = orjson.dumps({"instances": [{"a": 0.5, "b": 0.7, "c": 3, "d": 4}]})
SECONDS_TO_ANSWER = 20.0


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    path: str = "/predict"
    bearer: str = ""
    body: bytes = BODY

    @property
    def request(self) -> bytes:
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {self.bearer}\r\n" if self.bearer else ""
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body


class Asking(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, or ``every`` so many seconds; no more of HTTP than that
    needs."""

    def __init__(self, request: bytes, seconds: list[float], until: float, every: float) -> None:
        self.request, self.seconds, self.until, self.every = request, seconds, until, every
        self.buffer = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.asked = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found or not is_whole(head, body):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.ended.set_exception(RuntimeError(self.buffer[:300].decode()))
            return
        took = time.perf_counter() - self.asked
        self.seconds.append(took)
        self.buffer = b""
        if time.perf_counter() < self.until:
            if self.every > took:
                asyncio.get_running_loop().call_later(self.every - took, self._ask)
            else:
                self._ask()
        else:
            self.transport.close()
            self.ended.set_result(None)


def is_whole(head: bytes, body: bytes) -> bool:
    """Whether all of an answer is here."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return body.endswith(b"0\r\n\r\n")  # in chunks


def measured(given: tuple[Server, int, float], every: float = 0.0) -> tuple[float, list[float]]:
    """(requests a second, their seconds) of so many connections for a time."""
    server, connections, duration = given

    async def run() -> tuple[float, list[float]]:
        seconds: list[float] = []
        began = time.perf_counter()
        loop = asyncio.get_running_loop()
        made = [
            (
                await loop.create_connection(
                    lambda: Asking(server.request, seconds, began + duration, every), "127.0.0.1", server.port
                )
            )[1]
            for _ in range(connections)
        ]
        await asyncio.wait_for(asyncio.gather(*(one.ended for one in made)), duration + SECONDS_TO_ANSWER)
        return len(seconds) / (time.perf_counter() - began), seconds

    with uncollected():
        return asyncio.run(run())


@contextmanager
def peer(name: str, case: str, package: Path, body: bytes) -> Iterator[Server]:
    port = embedded.free_port()
    path = os.pathsep.join(filter(None, [os.environ.get("BENCHMARK_PEERS"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "benchmarks.serve_peers", name, str(port)]
    more = {"PYTHONPATH": path, "BENCHMARK_CASE": case, "BENCHMARK_PACKAGE": str(package)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | more, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        server = as_asked(Server(name, port, body=body))
        wait_for(server)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # mlflow's command starts its server through a shell
        process.wait(20)


def as_asked(server: Server) -> Server:
    """mlflow has a path of its own and calls rows the records of a data frame."""
    if server.name != "mlflow":
        return server
    body = orjson.dumps({"dataframe_records": orjson.loads(server.body)["instances"]})
    return replace(server, path="/invocations", body=body)


def wait_for(server: Server) -> None:
    deadline = time.monotonic() + 60
    headers = {"Content-Type": "application/json"}
    if server.bearer:
        headers["Authorization"] = f"Bearer {server.bearer}"
    while time.monotonic() < deadline:
        try:
            url = f"http://127.0.0.1:{server.port}{server.path}"
            if httpx.post(url, content=server.body, headers=headers, trust_env=False, timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{server.name} does not answer")


def deployed(running: Platform, name: str = "mlp", body: bytes = BODY) -> Server:
    """A deployment of a model that was trained here, asked with an API key."""
    with running.client() as client:
        version = mlp(running, client) if name == "mlp" else cnn(running, client)
        return _deployed(running, client, name, version, body)


def _deployed(
    running: Platform, client: httpx.Client, name: str, version: str, body: bytes, title: str = "ours"
) -> Server:
    wanted = {"variants": [{"version": version}], "despite_problems": True, "reason": "to be measured"}
    client.post("/deployments", json={"name": name, **wanted}).raise_for_status()
    key = client.post("/api-keys", json={"name": f"benchmark {name}", "scopes": ["predict"]}).raise_for_status()
    server = Server(title, running.serve_port, f"/api/v1/deployments/{name}/predict", key.json()["key"], body)
    wait_for(server)
    return server


def compiled(running: Platform, server: Server) -> Server:
    """What optimising the version of a deployment with `torch-compile` gives, deployed too, once it answers compiled."""
    found, made = optimised(running, server, "torch-compile", "compiled")
    answering(found, made, "compiled")
    return found


def answering(server: Server, version: str, runtime: str) -> None:
    """Ask until all processes answer with a version in that form: what a server that was just started does is not measured."""
    deadline, told = (
        time.monotonic() + 300,
        f'runtime="{runtime}",version="{version}"}} {os.environ["BENCHMARK_PROCESSES"]}.0',
    )
    while told not in httpx.get(f"http://127.0.0.1:{server.port}/metrics", trust_env=False).text:
        if time.monotonic() > deadline:
            raise RuntimeError(f"it does not answer {runtime}")
        measured((server, 8, 0.5))


def optimised(running: Platform, server: Server, kind: str, name: str) -> tuple[Server, str]:
    """What one pass of optimising makes of the version of a deployment, deployed by a name, and its id."""
    with running.client() as client:
        plan = {"variants": [{"passes": [kind]}]}
        asked = client.post(f"/model-versions/{version_of(server)}/optimizations", json=plan).raise_for_status().json()
        while asked["state"] not in ("succeeded", "failed", "cancelled"):
            time.sleep(0.5)
            asked = client.get(f"/optimizations/{asked['id']}").raise_for_status().json()
        made = asked["variants"][0]["output_version"]
        if made is None:
            raise RuntimeError(str(asked))
        return _deployed(running, client, name, made, server.body, f"ours, {name}"), made


def mlp(running: Platform, client: httpx.Client) -> str:
    """One network, as the peers have; by default it would be an ensemble of folds."""
    data = running.upload(client, "yes or no", table())
    return _trained(running, client, data, {"architecture": "mlp", "epochs": 3, "threads": 1, "folds": 1})


def cnn(running: Platform, client: httpx.Client) -> str:
    """Of 300 handwritten digits, enlarged to 28×28 pixels."""
    pixels, labels = digits()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for row in range(300):
            archive.writestr(f"{labels[row]}/{row}.png", enlarged(pixels[row]))
    data = running.upload(client, "digits", content.getvalue(), "digits.zip")
    return _trained(running, client, data, {"epochs": 2, "threads": 1, "params": {"image_width": 8}})


def enlarged(pixels: Any) -> bytes:
    """A PNG of 28×28 pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).resize((28, 28)).save(file, "PNG")
    return file.getvalue()


def _trained(running: Platform, client: httpx.Client, data: dict[str, Any], config: dict[str, Any]) -> str:
    run = running.train(client, data["id"], task="classification", target="label", config=config)
    ended = running.finished(client, run["id"])
    if ended["state"] != "succeeded":
        raise RuntimeError(ended["error"])
    return str(ended["output_version"])


def package_of(running: Platform, server: Server, folder: Path) -> Path:
    """The files of the version that a deployment answers with, for peers that run the same network."""
    version = version_of(server)
    with running.client() as client:
        for name in client.get(f"/model-versions/{version}").raise_for_status().json()["files"]:
            path = folder / version / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get(f"/model-versions/{version}/files/{name}").raise_for_status().content)
    return folder / version


def version_of(server: Server) -> str:
    """The id of the version that a deployment answers with."""
    headers = {"Authorization": f"Bearer {server.bearer}", "Content-Type": "application/json"}
    url = f"http://127.0.0.1:{server.port}{server.path}"
    return str(httpx.post(url, content=server.body, headers=headers, trust_env=False).json()["version"])


def torch_alone(package: Path, row: dict[str, Any], rows: int = 64) -> float:
    """Rows a second of the network on encoded rows, in a loop without a server."""
    import torch

    from dlplatform.engine.dataset import batches
    from dlplatform.engine.predict import Predictor

    torch.set_num_threads(1)
    predictor = Predictor(package)
    (batch,) = batches(predictor.read([row] * rows), predictor.network.shape.groups, rows)
    with torch.inference_mode():
        for _ in range(5):
            predictor.network(batch)
        began, runs = time.perf_counter(), 0
        while time.perf_counter() - began < 2:
            predictor.network(batch)
            runs += 1
    return rows * runs / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer repetitions")
    parser.add_argument("--processes", type=int, default=1, help="that answer, of each server")
    wanted = parser.parse_args()
    os.environ["BENCHMARK_PROCESSES"] = str(wanted.processes)
    sys.path += filter(None, os.environ.get("BENCHMARK_PEERS", "").split(os.pathsep))
    image = base64.b64encode(enlarged(digits()[0][0])).decode()
    with platform(SERVE_PROCESSES=str(wanted.processes)) as running, tempfile.TemporaryDirectory() as folder:
        compare(running, "mlp", BODY, Path(folder), wanted.short)
        compare(running, "cnn", orjson.dumps({"instances": [{"image": image}]}), Path(folder), wanted.short)


def compare(running: Platform, case: str, body: bytes, folder: Path, short: bool) -> None:
    rounds, seconds = (3, 1.0) if short else (7, 3.0)
    server = deployed(running, case, body)
    package = package_of(running, server, folder)
    alone = round(torch_alone(package, orjson.loads(body)["instances"][0]))
    variants = [compiled(running, server), optimised(running, server, "onnx", "onnx")[0]] if case == "cnn" else []
    if case == "cnn":
        answering(server, version_of(server), "graph")
    names = ["ceiling", "bare", *(name for name in PEERS if importlib.util.find_spec(name))]
    with ExitStack() as stack:
        servers = [server, *variants, *(stack.enter_context(peer(name, case, package, body)) for name in names)]
        with multiprocessing.get_context("spawn").Pool(1) as client:
            for connections in CONNECTIONS:
                told: dict[str, Any] = {one.name: ([], []) for one in servers}
                for one in servers:
                    client.apply(measured, [(one, connections, 0.5)])
                for _ in range(rounds):
                    for one in servers:
                        rate, times = client.apply(measured, [(one, connections, seconds)])
                        told[one.name][0].append(rate)
                        told[one.name][1].extend(times)
                missing = sorted(set(PEERS) - set(names))
                tell(case, connections, told, alone, rounds=rounds, missing=missing)


def tell(case: str, connections: int, told: dict[str, Any], alone: int, **more: Any) -> None:
    rates = {name: median(found, 0) for name, (found, _) in told.items()}
    figures = {
        name: {
            "per_second": rates[name], "spread": spread(found, 0), "p50_ms": round(quantile(times, 0.5) * 1000, 2),
            "p99_ms": round(quantile(times, 0.99) * 1000, 2),
        }
        for name, (found, times) in told.items()
    }  # fmt: skip
    peers = [name for name in rates if not name.startswith("ours")]
    times = {name: round(rates["ours"] / rates[name], 2) for name in peers}
    best = {name: round(max(rates[one] for one in rates if one not in peers) / rates[name], 2) for name in peers}
    share = round(rates["ours"] / min(rates["ceiling"], alone), 2)
    fast = connections == 1 or times.get("litserve", LIMIT_LITSERVE) >= LIMIT_LITSERVE
    report(
        "serve", f"{case}, {connections} connections", processes=int(os.environ["BENCHMARK_PROCESSES"]), **figures, times_as_fast_as=times, best_times_as_fast_as=best,
        torch_alone_rows_per_second=alone, share_of_ceiling=share, **more,
        limit=f"{LIMIT_LITSERVE} × LitServe at 8 and 64, {LIMIT_FASTAPI} × FastAPI, {LIMIT_CEILING} of the ceiling that binds",
        passes=fast and times.get("fastapi", LIMIT_FASTAPI) >= LIMIT_FASTAPI and share >= LIMIT_CEILING,
    )  # fmt: skip


if __name__ == "__main__":
    main()
