"""Predictions of a small MLP over HTTP: the inference server as it is, with credentials and the prediction log, beside peers.

The ceiling is an ASGI application on uvicorn that answers a constant. FastAPI and LitServe (batched) run an MLP written by
hand, without credentials and log; they are measured where they are installed: `pip install --target peers litserve`, then
BENCHMARK_PEERS=peers. All take turns, round by round; the client has a process of its own on the same machine.

    python -m benchmarks.serve [--short]
"""

import asyncio
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from dlplatform import embedded
from tests.live import ROOT, Platform

from .measuring import arguments, median, platform, quantile, report, spread, table

CONNECTIONS = (1, 8, 64)
LIMIT = 1.0  # times LitServe's requests a second, at the least
BODY = orjson.dumps({"instances": [{"a": 0.5, "b": 0.7, "c": 3, "d": 4}]})


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    path: str = "/predict"
    bearer: str = ""

    @property
    def request(self) -> bytes:
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {self.bearer}\r\n" if self.bearer else ""
        return f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY


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
        if not found or not _is_whole(head, body):
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


def _is_whole(head: bytes, body: bytes) -> bool:
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
        await asyncio.gather(*(one.ended for one in made))
        return len(seconds) / (time.perf_counter() - began), seconds

    return asyncio.run(run())


@contextmanager
def peer(name: str) -> Iterator[Server]:
    port = embedded.free_port()
    path = os.pathsep.join(filter(None, [os.environ.get("BENCHMARK_PEERS"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "benchmarks.serve_peers", name, str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL)
    try:
        server = Server(name, port)
        wait_for(server)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def wait_for(server: Server) -> None:
    deadline = time.monotonic() + 60
    headers = {"Content-Type": "application/json"}
    if server.bearer:
        headers["Authorization"] = f"Bearer {server.bearer}"
    while time.monotonic() < deadline:
        try:
            url = f"http://127.0.0.1:{server.port}{server.path}"
            if httpx.post(url, content=BODY, headers=headers, trust_env=False, timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{server.name} does not answer")


def deployed(running: Platform) -> Server:
    """A deployment of an MLP that was trained here, asked with an API key."""
    with running.client() as client:
        version = running.upload(client, "yes or no", table())
        config = {"architecture": "mlp", "epochs": 3, "threads": 1, "folds": 1}
        run = running.train(client, version["id"], task="classification", target="label", config=config)
        ended = running.finished(client, run["id"])
        wanted = {"name": "mlp", "variants": [{"version": ended["output_version"]}]}
        client.post("/deployments", json=wanted).raise_for_status()
        key = (
            client.post("/api-keys", json={"name": "benchmark", "scopes": ["predict"]}).raise_for_status().json()["key"]
        )
    server = Server("ours", running.serve_port, "/api/v1/deployments/mlp/predict", key)
    wait_for(server)
    return server


def main() -> None:
    short = arguments(__doc__).short
    rounds, seconds = (3, 1.0) if short else (7, 3.0)
    sys.path += [os.environ["BENCHMARK_PEERS"]] if "BENCHMARK_PEERS" in os.environ else []
    names = ["ceiling", *(name for name in ("fastapi", "litserve") if importlib.util.find_spec(name))]
    with ExitStack() as stack:
        running = stack.enter_context(platform())
        servers = [deployed(running), *(stack.enter_context(peer(name)) for name in names)]
        with multiprocessing.get_context("spawn").Pool(1) as client:
            for connections in CONNECTIONS:
                told = {server.name: ([], []) for server in servers}
                for server in servers:
                    client.apply(measured, [(server, connections, 0.5)])
                for _ in range(rounds):
                    for server in servers:
                        rate, times = client.apply(measured, [(server, connections, seconds)])
                        told[server.name][0].append(rate)
                        told[server.name][1].extend(times)
                tell(connections, told, rounds, missing=sorted({"fastapi", "litserve"} - set(names)))


def tell(connections: int, told: dict[str, Any], rounds: int, missing: list[str]) -> None:
    rates = {name: median(found, 0) for name, (found, _) in told.items()}
    figures = {
        name: {
            "per_second": rates[name], "spread": spread(found, 0), "p50_ms": round(quantile(times, 0.5) * 1000, 2),
            "p99_ms": round(quantile(times, 0.99) * 1000, 2),
        }
        for name, (found, times) in told.items()
    }  # fmt: skip
    times = {name: round(rates["ours"] / rate, 2) for name, rate in rates.items() if name != "ours"}
    report(
        "serve", f"{connections} connections", rounds=rounds, **figures, times_as_fast_as=times, missing=missing,
        limit=f"{LIMIT} × LitServe", passes=times.get("litserve", LIMIT) >= LIMIT,
    )  # fmt: skip


if __name__ == "__main__":
    main()
